# SPDX-License-Identifier: Apache-2.0
"""The worker's side with a nano model: what comes out of an engine, without a process or a network."""

from __future__ import annotations

import dataclasses
import io
import json
import queue
import threading
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from aapt_fast.models.aapt.presets import NANO
from aapt_fast.profiling.inputs import random_image
from aapt_fast.serve.encoders import H264Encoder, JpegEncoder
from aapt_fast.serve.host import Host
from aapt_fast.serve.settings import Limits, Settings
from aapt_fast.serve.uploaded_picture import read_upload
from aapt_fast.testing.streams import random_model
from aapt_fast.worlds import WORLDS
from aapt_fast.worlds.person.skeleton import CAMERA
from aapt_fast.worlds.world import FirstFrame

PATIENCE = 60.0


class Server:
    """Calls a host, and keeps what it sends."""

    def __init__(self, folder: str, **settings: Any) -> None:
        model = random_model(dataclasses.replace(NANO, grid=(2, 2)), world=WORLDS["person"], name="nano")
        self._answers: queue.Queue[tuple[dict, bytes]] = queue.Queue()
        self._steps: dict[str, queue.Queue[tuple[dict, bytes]]] = {}
        self.others: queue.Queue[dict] = queue.Queue()
        self._lock = threading.Lock()
        settings = {"streams": 3, "parked": 2, "history": 8, "limits": Limits(decoded_pixels=10_000), **settings}
        gallery = [FirstFrame(((random_image(model) + 1) * 127.5).byte().permute(1, 2, 0).numpy())]
        self.host = Host(model, gallery, Settings(**settings), self._send, folder)

    def _send(self, header: dict, body: bytes) -> None:
        if "answer" in header:
            self._answers.put((header, body))
        elif "shown" in header:
            self.steps(header["shown"]).put((header, body))
        else:
            self.others.put(header)

    def steps(self, key: str) -> queue.Queue[tuple[dict, bytes]]:
        with self._lock:
            return self._steps.setdefault(key, queue.Queue())

    def step(self, key: str) -> dict:
        """The header of the next step of a stream."""
        return self.steps(key).get(timeout=PATIENCE)[0]

    def call(self, do: str, key: str = "a", body: bytes = b"", **header: Any) -> tuple[dict, bytes]:
        self.host.handle({"do": do, "call": 1, "key": key, **header}, body)
        return self._answers.get(timeout=PATIENCE)

    def open(self, key: str = "a", body: bytes = b"", **header: Any) -> dict:
        usual = {"action": "walk", "seed": 3, "prompt": None, "paused": True, "codecs": ["jpeg"]}
        first = {} if body else {"gallery": 0}
        return self.call("open", key, body, **{**usual, **first, **header})[0]

    def take(self, key: str = "a", steps: int = 1) -> dict:
        """Take steps of a paused stream; returns the header of the last."""
        for _ in range(steps):
            assert "error" not in self.call("step", key)[0]
            header = self.step(key)
        return header


@pytest.fixture
def server(tmp_path):
    found = Server(str(tmp_path))
    yield found
    found.host.close()
    assert not list(tmp_path.iterdir())  # parked streams and replays are gone


def test_a_description_and_the_gallery(server):
    found = server.host.describe()
    assert (found["name"], found["width"], found["frames_per_step"], found["gallery"]) == ("nano", 16, 4, 1)
    assert found["control"]["entry"] == [19, 3] and "left_hand" in found["control"]["names"]
    assert found["control"]["camera"] == dataclasses.asdict(CAMERA)
    assert [5, 6, "left"] in found["control"]["bones"] and [0, 1, "middle"] in found["control"]["bones"]
    [picture] = server.host.gallery_pictures()
    assert Image.open(io.BytesIO(picture)).size == (16, 16)


def test_steps_controls_and_states(server):
    state = {"step": 0, "oldest_step": 0, "paused": True, "parked": False, "action": "walk", "seed": 3}
    assert server.open() == {"answer": 1, **state}
    header = server.take()
    assert (header["step"], header["frame"], header["obeyed"], header["codecs"]) == (1, 0, 0, [1] * 4)
    assert len(header["pose"]) == 19 and sum(header["sizes"]) > 0
    pose = [[0.5, 0.5, 0.0]] * 19
    server.host.handle({"do": "control", "key": "a", "track": "pose", "value": pose, "number": 7}, b"")
    header = server.take()
    assert (header["obeyed"], header["pose"], header["action"]) == (7, pose, None)
    for message in ({"key": "a", "value": [[0.5]]}, {"key": "nothing", "value": pose}):
        server.host.handle({"do": "control", "track": "pose", "number": 8, **message}, b"")
        assert server.others.get(timeout=PATIENCE)["number"] == 8
    assert server.call("resume")[0]["paused"] is False
    assert [server.step("a")["step"] for _ in range(3)] == [3, 4, 5]
    assert server.call("close")[0] and server.others.get(timeout=PATIENCE) == {"ended": "a", "why": "it was closed"}
    assert "has ended" in server.call("pause")[0]["error"]["message"]


def test_rewind_fork_and_reset_begin_discontinuous(server):
    server.open()
    pictures = []
    for _ in range(4):
        server.call("step")
        pictures.append(server.steps("a").get(timeout=PATIENCE)[1])
    assert server.call("rewind", step=1)[0]["step"] == 1
    header = server.take()
    assert (header["step"], header["frame"], header["discontinuous"]) == (2, 4, True)
    assert not server.take()["discontinuous"]
    answer = server.call("fork", "b", origin="a", codecs=["jpeg"])[0]
    assert (answer["step"], answer["paused"]) == (3, True)
    assert server.take("b")["step"] == server.take("a")["step"] == 4
    assert server.call("reset", prompt=None, seed=None)[0]["step"] == 0
    server.call("step")
    header, body = server.steps("a").get(timeout=PATIENCE)
    assert header["discontinuous"] and body == pictures[0]  # the same seed, picture and action
    error = server.call("rewind", step=9)[0]["error"]
    assert (error["argument"], error["got"]) == ("step", "9")
    assert server.call("reset", body=random_pixels().tobytes(), prompt=None, seed=5)[0]["step"] == 0


def random_pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


def test_a_full_engine_parks_what_is_paused_and_then_refuses(server):
    keys = "abcdef"
    answers = [server.open(key) for key in keys]
    assert ["error" in each for each in answers] == [False] * 5 + [True] and answers[-1]["error"]["full"]
    assert [server.call("look", key)[0]["parked"] for key in keys[:5]] == [True, True, False, False, False]
    server.call("close", "e"), server.call("close", "d")
    assert server.take("a")["step"] == 1  # it comes back from its file
    assert server.call("park", "a")[0]["parked"]


def test_a_replay_goes_out_and_comes_back(server):
    server.open()
    first = [server.take()["pose"], server.take()["pose"]]
    _, data = server.call("replay")
    answer = server.open("b", data, replay=True, seed=0)
    assert (answer["step"], answer["seed"]) == (0, 3)
    assert [server.take("b")["pose"], server.take("b")["pose"]] == first
    server.call("resume", "b")
    assert server.step("b")["step"] == 3  # it goes on under the action
    server.call("close", "b")
    server.open("c", data, replay=True, paused=False)
    assert [server.step("c")["paused"] for _ in range(2)] == [False, True]  # it waits at the end of the replay


def test_a_stream_that_is_too_long_has_no_replay_until_it_is_reset(tmp_path):
    server = Server(str(tmp_path), limits=Limits(replay_steps=2))
    server.open()
    server.take(steps=2)
    assert "error" not in server.call("replay")[0]
    server.take()
    assert server.call("replay")[0]["error"]["got"] == "one that keeps no controls"
    server.call("reset", prompt=None, seed=1)
    server.take()
    assert "error" not in server.call("replay")[0]
    server.host.close()


def with_tensor(data: bytes, name: str, change) -> bytes:
    """A replay one of whose tensors is another one."""
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    metadata = json.loads(header)["__metadata__"]
    tensors = load_tensors(data)
    tensors[name] = change(tensors[name]).contiguous()
    return save_tensors(tensors, metadata)


def test_replays_of_strangers_are_checked_before_they_are_played(server):
    server.open()
    server.take(steps=2)
    _, data = server.call("replay")
    bad = [
        b"x",
        data[:-3],
        save_tensors(load_tensors(data), {}),
        with_tensor(data, "start.image", lambda tensor: tensor[..., :1]),
        with_tensor(data, "start.image", lambda tensor: tensor * float("nan")),
        with_tensor(data, "controls", lambda tensor: tensor[:1]),
        with_tensor(data, "controls", lambda tensor: tensor.int()),
        with_tensor(data, "start.control", lambda tensor: tensor[:3]),
    ]
    for each in bad:
        error = server.open("b", each, replay=True)["error"]
        assert error["message"].startswith("replay: ") and "/" not in error["message"].split("expected")[0]
    assert "error" not in server.open("b", data, replay=True)


def picture_file(kind: str, size: tuple[int, int] = (40, 20)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_uploaded_pictures_fit_the_model(server, kind):
    answer, body = server.call("fit", body=picture_file(kind))
    pixels = np.frombuffer(body, np.uint8).reshape(16, 16, 3)
    assert "error" not in answer and (abs(pixels.astype(int) - (255, 0, 0)) < 12).all()
    assert server.open("b", body)["step"] == 0


def png_bomb() -> bytes:
    """A PNG of 65,000 x 65,000 black pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = (65_000).to_bytes(4, "big")
    header = chunk(b"IHDR", size + size + bytes([8, 0, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (png_bomb(), "many more"),
        (picture_file("PNG", (200, 51)), "200 x 51"),
        (b"no picture", "something else"),
        (picture_file("GIF"), "something else"),
        (picture_file("JPEG")[:300], "damaged"),
        (picture_file("PNG")[:60], "damaged"),
    ],
)
def test_bombs_and_other_files_are_refused_before_they_are_decoded(data, got, monkeypatch):
    if "x" in got or got == "many more":
        monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match=f"^image: expected .*{got}"):
        read_upload(data, 10_000)


def test_a_stream_whose_encoder_fails_ends_and_others_go_on(server, monkeypatch):
    server.open(), server.open("b")
    monkeypatch.setattr(JpegEncoder, "encode", lambda self, pixels, key: 1 / 0)
    server.call("step")
    assert server.others.get(timeout=PATIENCE)["why"] == "its encoder failed: ZeroDivisionError: division by zero"
    monkeypatch.undo()
    assert server.take("b")["step"] == 1 and "has ended" in server.call("step")[0]["error"]["message"]


def test_h264_begins_with_a_key_frame_and_decodes_to_the_picture():
    av = pytest.importorskip("av")
    pixels = np.zeros((15, 17, 3), np.uint8)
    pixels[:, :8] = (200, 40, 40)
    encoder = H264Encoder(17, 15)
    packets = [encoder.encode(pixels, key=number in (0, 3)) for number in range(5)]
    assert [codec for codec, _ in packets] == [2, 3, 3, 2, 3]
    assert packets[0][1].startswith(b"\x00\x00\x00\x01")
    for begin in (0, 3):  # a decoder may begin at any key frame
        decoder = av.CodecContext.create("h264", "r")
        decoder.thread_count = 1
        decoded = [frame for _, data in packets[begin:] for frame in decoder.decode(av.Packet(data))]
        decoded += decoder.decode(None)
        shown = decoded[0].to_ndarray(format="rgb24")[:15, :6]
        assert len(decoded) == 5 - begin and (abs(shown.astype(int) - (200, 40, 40)) < 25).all()
    assert JpegEncoder().encode(pixels, True)[1].startswith(b"\xff\xd8")
