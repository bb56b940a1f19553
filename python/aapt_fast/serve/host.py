# SPDX-License-Identifier: Apache-2.0
"""The streams of a worker process: commands of the server in, pictures and answers out.

server    control, open, rewind, ...  -> Host.handle -> engine
engine    the video of a step         -> encoder's thread -> server
"""

from __future__ import annotations

import dataclasses
import io
import queue
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from aapt_fast.errors import EngineFull, SessionClosed, require
from aapt_fast.media.first_picture import fit_picture
from aapt_fast.models.likeness import gallery_errors, unlike_gallery
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.serve.encoders import H264Encoder, JpegEncoder, has_h264
from aapt_fast.serve.live_controls import LiveControls, kind_of_control
from aapt_fast.serve.pipe import Header
from aapt_fast.serve.protocol import refusal, refusal_of
from aapt_fast.serve.settings import Settings
from aapt_fast.serve.uploaded_picture import read_upload
from aapt_fast.streaming.engine import StreamEngine
from aapt_fast.streaming.engine_stream import EngineStream, Shown
from aapt_fast.streaming.session_source import SessionSource
from aapt_fast.worlds.person.skeleton import CAMERA, JOINTS
from aapt_fast.worlds.world import FPS, FirstFrame

Send = Callable[[Header, bytes], None]
WAITING = 3  # steps of one stream that wait for the encoder; older ones are dropped
PROMPT_TOKENS = 512


@dataclass
class _Hosted:
    """One stream, with what the server sees of it."""

    key: str
    stream: EngineStream
    controls: LiveControls
    codecs: tuple[str, ...]
    h264: H264Encoder | None = None
    wants_key: bool = True
    is_discontinuous: bool = False
    waiting: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class _Step:
    """The video of one step, on its way to the encoder."""

    hosted: _Hosted
    shown: Shown
    obeyed: int
    is_discontinuous: bool
    entry: torch.Tensor | None
    action: str | None


class Host:
    """Serves the streams of one model.

    Args:
        model: of all streams.
        gallery: first frames that clients can choose from.
        settings: of the server.
        send: takes the messages for the server: a header for JSON and a body; from several threads.
        folder: for parked streams and replays.
        sessions: of ranks that share each frame, where `model` decodes alone; None for those of this process.
    """

    def __init__(
        self,
        model: StreamModel,
        gallery: Sequence[FirstFrame],
        settings: Settings,
        send: Send,
        folder: str,
        sessions: SessionSource | None = None,
    ) -> None:
        self.model, self.gallery, self._settings, self._send = model, list(gallery), settings, send
        self._folder = folder
        warnings.filterwarnings("ignore", message="control: ")  # poses that no body has: clients may try them
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `Limits.decoded_pixels` is ours
        text_length = PROMPT_TOKENS if model.text_encoder is not None else 0
        self.engine = StreamEngine(
            model if sessions is None else sessions.model,
            settings.streams,
            history=settings.history,
            parked=settings.parked,
            folder=folder,
            text_length=text_length,
            replayable=True,
            sessions=sessions,
        )
        self._hosted: dict[str, _Hosted] = {}
        self._gallery_errors: list[float] | None = None  # computed for the first upload
        self._commands = ThreadPoolExecutor(1, "aapt_fast-commands")
        self._pictures = ThreadPoolExecutor(1, "aapt_fast-pictures")
        self._steps: queue.SimpleQueue[_Step | None] = queue.SimpleQueue()
        self._encoder = threading.Thread(target=self._encode_steps, name="aapt_fast-encoder", daemon=True)
        self._encoder.start()

    def describe(self) -> dict[str, Any]:
        """The `model` of the message `welcome`."""
        model, control = self.model, self.model.control
        height, width = model.video_size
        kind, entry = kind_of_control(model)
        bones, names, camera = [], [], None
        if control is not None and kind == "pose":
            named = control.joints == len(JOINTS) and model.has_world and model.world.name == "person"
            names = list(JOINTS) if named else [str(joint) for joint in range(control.joints)]
            bones = [[a, b, _side(names[a], names[b])] for a, b in control.limbs]
            camera = dataclasses.asdict(CAMERA) if named else None
        return {
            "name": model.name,
            "width": width,
            "height": height,
            "fps": int(FPS),
            "frames_per_step": round(self.engine.period * FPS),
            "actions": list(model.world.actions) if model.has_world else [],
            "gallery": len(self.gallery),
            "has_prompt": model.text_encoder is not None,
            "history": self._settings.history,
            "control": {"kind": kind, "entry": entry, "bones": bones, "names": names, "camera": camera},
            "codecs": ["jpeg", *(["h264"] if has_h264() else [])],
        }

    def gallery_pictures(self) -> list[bytes]:
        """The first pictures as PNG."""
        return [_png(fit_picture(each.image, *reversed(self.model.video_size))) for each in self.gallery]

    def handle(self, header: Header, body: bytes) -> None:
        """Take one message of the server; returns at once. Answers and pictures go to `send`."""
        kind = header["do"]
        if kind == "control":
            self._control(header)
        elif kind == "codecs":
            self._set_codecs(header)
        else:
            worker = self._pictures if kind == "fit" else self._commands
            worker.submit(self._answer, header, body)

    def close(self) -> None:
        """End all streams and threads."""
        self._commands.shutdown(wait=True, cancel_futures=True)
        self._pictures.shutdown(wait=True, cancel_futures=True)
        self.engine.close()
        self._steps.put(None)
        self._encoder.join()

    # ---- commands ----

    def _answer(self, header: Header, body: bytes) -> None:
        answer: Header = {"answer": header["call"]}
        data = b""
        try:
            commands: dict[str, Callable[[Header, bytes], tuple[Header, bytes]]] = {
                "fit": self._fit,
                "open": self._open,
                "fork": self._fork,
                "replay": self._replay,
                "keep": self._keep,
                "take over": self._take_over,
            }
            more, data = commands.get(header["do"], self._command)(header, body)
            answer |= more
        except Exception as error:
            answer["error"] = refusal_of(error)
            if isinstance(error, EngineFull):
                expected = f"a free one of the {self._settings.streams} places of this server"
                answer["error"] = refusal("streams", expected, "all taken; try again later") | {"full": True}
        self._send(answer, data)

    def _control(self, header: Header) -> None:
        hosted = self._hosted.get(header["key"])
        try:
            if hosted is None:
                raise SessionClosed("stream: it has ended")
            hosted.controls.set(header["track"], header["value"], header["number"])
        except Exception as error:
            self._send({"refused": header["key"], "number": header["number"], "error": refusal_of(error)}, b"")

    def _set_codecs(self, header: Header) -> None:
        hosted = self._hosted.get(header["key"])
        if hosted is not None:
            hosted.codecs, hosted.wants_key = tuple(header["codecs"]), True

    def _fit(self, header: Header, body: bytes) -> tuple[Header, bytes]:
        """An uploaded picture -> uint8 [H, W, 3] of the model's size, and a note if it is unlike the gallery."""
        height, width = self.model.video_size
        picture = fit_picture(read_upload(body, self._settings.limits.decoded_pixels), width, height)
        if self._gallery_errors is None:
            self._gallery_errors = gallery_errors(self.model, self.gallery)
        return {"note": unlike_gallery(picture, self.model, self._gallery_errors)}, picture.tobytes()

    def _open(self, header: Header, body: bytes) -> tuple[Header, bytes]:
        if "replay" in header:
            return self._open_replay(header, body), b""
        first = self._first(header, body)
        controls = LiveControls(self.model, first, header["action"], header["seed"], self._settings.history)
        stream = self.engine.open(first, source=controls, prompt=header["prompt"], seed=header["seed"], paused=True)
        return self._host(header, stream, controls), b""

    def _open_replay(self, header: Header, body: bytes) -> Header:
        height, width = self.model.video_size
        unknown = FirstFrame(np.zeros((height, width, 3), np.uint8))
        controls = LiveControls(self.model, unknown, header["action"], header["seed"], self._settings.history)
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            path = Path(folder) / "upload.safetensors"
            path.write_bytes(body)
            try:
                stream, taken = self.engine.open_replay(path, paused=True)
            except ValueError as error:
                said = str(error).replace(f"{path}: ", "replay: ").partition("; ")[0]  # the rest is about weights
                raise ValueError(said) from error
        controls.follow([each for each in taken if each is not None])
        stream.follow(controls).result()
        return self._host(header, stream, controls)

    def _host(self, header: Header, stream: EngineStream, controls: LiveControls) -> Header:
        """Begin to show a stream, which is paused so far."""
        hosted = _Hosted(header["key"], stream, controls, tuple(header["codecs"]))
        self._hosted[hosted.key] = hosted
        stream.tell_of_end(lambda why: self._end(hosted, why))
        stream.watch(lambda shown: self._show(hosted, shown))
        if not header["paused"]:
            stream.resume().result()
        seed = stream._session.seed if stream._session is not None else 0
        return self._state(hosted) | {"seed": seed}

    def _fork(self, header: Header, body: bytes) -> tuple[Header, bytes]:
        origin = self._find(header["origin"])

        def fork() -> tuple[EngineStream, LiveControls, bool]:
            controls = origin.controls.fork()
            stream = origin.stream.fork(controls).result()
            paused = stream.paused
            stream.pause().result()
            return stream, controls, paused

        stream, controls, paused = self.engine.command(fork).result()
        return self._host({**header, "paused": paused}, stream, controls), b""

    def _command(self, header: Header, body: bytes) -> tuple[Header, bytes]:
        hosted = self._find(header["key"])
        stream, kind = hosted.stream, header["do"]
        if kind == "reset":
            first = self._first(header, body) if "gallery" in header or body else None
            future: Future[Any] = self.engine.command(lambda: self._restart(hosted, first, header))
        elif kind == "rewind":
            future = self.engine.command(lambda: self._rewind(hosted, header["step"]))
        elif kind == "prompt":
            future = stream.set_prompt(header["prompt"], header["policy"])
        else:
            simple = {
                "pause": stream.pause,
                "resume": stream.resume,
                "step": stream.step_once,
                "park": stream.park,
                "close": stream.close,
                "look": lambda: self.engine.command(lambda: None),
            }
            future = simple[kind]()
        future.result()
        return self._state(hosted), b""

    def _restart(self, hosted: _Hosted, first: FirstFrame | None, header: Header) -> None:
        """Reset a stream and its controls between two steps."""
        hosted.stream.reset(first, prompt=header["prompt"], seed=header["seed"]).result()
        hosted.controls.begin(first, header["seed"])
        hosted.is_discontinuous = True

    def _rewind(self, hosted: _Hosted, step: int) -> None:
        before = hosted.stream.steps
        try:
            hosted.stream.rewind(step).result()
        except ValueError as error:
            raise ValueError(str(error).replace("to_step:", "step:")) from error
        hosted.controls.rewind(before - step)
        hosted.is_discontinuous = True

    def _replay(self, header: Header, body: bytes) -> tuple[Header, bytes]:
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            path = Path(folder) / "replay.safetensors"
            self._find(header["key"]).stream.export_replay(path).result()
            return {}, path.read_bytes()

    def _keep(self, header: Header, body: bytes) -> tuple[Header, bytes]:
        """Copy a stream to a file of the server's choice. The answer has what `_take_over` needs besides."""
        hosted, path = self._find(header["key"]), header["path"]

        def copy() -> Header:
            stream, entry = hosted.stream, hosted.controls.entry
            save = stream.save if header["kind"] == "state" else stream.export_replay
            save(path).result()
            newest = None if entry is None or entry.ndim != 2 else entry.tolist()
            return self._state(hosted) | {"entry": newest, "action": hosted.controls.action}

        return self.engine.command(copy).result(), b""

    def _take_over(self, header: Header, body: bytes) -> tuple[Header, bytes]:
        """Go on with a stream from the file of `_keep`."""
        height, width = self.model.video_size
        unknown = FirstFrame(np.zeros((height, width, 3), np.uint8))
        controls = LiveControls(self.model, unknown, header["action"], header["seed"], self._settings.history)
        if header["kind"] == "state":
            stream = self.engine.open_saved(header["path"], paused=True)
        else:
            stream, taken = self.engine.open_replay(header["path"], paused=True)
            self.engine.command(lambda: [stream._live().step(control) for control in taken]).result()
        if header["entry"] is not None:
            controls.go_on_from(torch.tensor(header["entry"]))
        stream.follow(controls).result()
        return self._host(header, stream, controls), b""

    def _first(self, header: Header, body: bytes) -> FirstFrame:
        """The first frame that a message names, or that lies in its body: uint8 [H, W, 3]."""
        if body:
            return FirstFrame(np.frombuffer(body, np.uint8).reshape(*self.model.video_size, 3).copy())
        number, count = header["gallery"], len(self.gallery)
        expected = f"0..{count - 1}" if count else "none, as this model has no gallery; upload a picture"
        require(number < count, "first.gallery", expected, number)
        return self.gallery[number]

    def _find(self, key: str) -> _Hosted:
        hosted = self._hosted.get(key)
        if hosted is None:
            raise SessionClosed("stream: it has ended")
        return hosted

    def _state(self, hosted: _Hosted) -> Header:
        stream = hosted.stream
        return {
            "step": stream.steps,
            "oldest_step": stream.oldest_step,
            "paused": stream.paused,
            "parked": stream.parked,
            "action": hosted.controls.action,
        }

    def _end(self, hosted: _Hosted, why: str) -> None:
        if self._hosted.pop(hosted.key, None) is not None:
            self._send({"ended": hosted.key, "why": why}, b"")

    # ---- pictures ----

    def _show(self, hosted: _Hosted, shown: Shown) -> None:
        """Hand the video of a step to the encoder; in the engine's thread."""
        controls = hosted.controls
        discontinuous, hosted.is_discontinuous = hosted.is_discontinuous, False
        hosted.wants_key |= discontinuous
        if controls.replay_has_ended:
            controls.replay_has_ended = False
            hosted.stream.pause().result()
        if shown.step == self._settings.limits.replay_steps + 1:
            hosted.stream.forget_controls().result()
        hosted.waiting += 1
        self._steps.put(_Step(hosted, shown, controls.obeyed, discontinuous, controls.entry, controls.action))

    def _encode_steps(self) -> None:
        while (step := self._steps.get()) is not None:
            hosted = step.hosted
            hosted.waiting -= 1
            if hosted.stream.ended is not None or not hosted.codecs:
                continue
            if hosted.waiting >= WAITING:
                hosted.dropped += 1
                hosted.wants_key = True
                continue
            try:
                video = step.shown.video.cpu().numpy()
                for codec in hosted.codecs:
                    self._encode(step, codec, video)
            except Exception as error:
                self._end(hosted, f"its encoder failed: {type(error).__name__}: {error}")
                hosted.stream.close()

    def _encode(self, step: _Step, codec: str, video: np.ndarray) -> None:
        """Encode the video uint8 [F, H, W, 3] of a step, and send it."""
        hosted, shown, begun = step.hosted, step.shown, time.perf_counter()
        encoder: JpegEncoder | H264Encoder = JpegEncoder()
        key = False
        if codec == "h264":
            hosted.h264 = hosted.h264 or H264Encoder(video.shape[2], video.shape[1])
            encoder, key, hosted.wants_key = hosted.h264, hosted.wants_key, False
        pictures = [encoder.encode(picture, key and number == 0) for number, picture in enumerate(video)]
        header = {
            "shown": hosted.key,
            "step": shown.step,
            "frame": (shown.step - 1) * len(video),
            "done": shown.done * 1e3,
            "step_ms": (shown.done - shown.begun) * 1e3,
            "encode_ms": (time.perf_counter() - begun) * 1e3 / len(video),
            "obeyed": step.obeyed,
            "discontinuous": step.is_discontinuous,
            "late": hosted.stream.late,
            "dropped": hosted.dropped,
            "paused": hosted.stream.paused,
            "action": step.action,
            "oldest_step": hosted.stream.oldest_step,
            "codec": codec,
            "codecs": [number for number, _ in pictures],
            "sizes": [len(data) for _, data in pictures],
        }
        if step.entry is not None and step.entry.ndim == 2:
            header["pose"] = [[round(number, 4) for number in joint] for joint in step.entry.tolist()]
        self._send(header, b"".join(data for _, data in pictures))


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _side(*names: str) -> str:
    """The side of the body that a bone is on, by the names of its joints."""
    sides = {name.partition("_")[0] for name in names} & {"left", "right"}
    return sides.pop() if len(sides) == 1 else "middle"
