# SPDX-License-Identifier: Apache-2.0
"""One user's stream: an image, then four video frames per step, each under that step's control.

A step draws noise from (seed, step), evaluates the generator over the cached past, and decodes the new frames. The
whole state of a session is in its object, so it can be forked, started over and closed between any two steps.
"""

from __future__ import annotations

import copy
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from aapt_fast.errors import require, require_integer, require_type
from aapt_fast.models.sampling import Sampler
from aapt_fast.models.stream_model import ImageLike, StreamModel
from aapt_fast.streaming.ahead import Ahead
from aapt_fast.streaming.boundary import check_start, checked_seed, computing, separate
from aapt_fast.streaming.controls import ControlSource, controls_of, image_entries
from aapt_fast.streaming.frames import FrameIterator
from aapt_fast.streaming.latency import LatencyCounter
from aapt_fast.streaming.pages import PagePool
from aapt_fast.streaming.recompute import can_recompute, recompute_past
from aapt_fast.streaming.run import Start
from aapt_fast.streaming.saved import Replay, read_replay, read_state, write_replay, write_state
from aapt_fast.streaming.session_life import SessionLife
from aapt_fast.worlds.world import FirstFrame


class StreamSession(SessionLife):
    """A stream of video under live control. Not safe to use from several threads at a time.

    It serves the process that opened it: after `os.fork()` its calls raise RuntimeError in the child, where torch's
    threads do not exist, and so does opening another session of the parent's model there.

    Args:
        model: shared by any number of sessions.
        image: the first video frame: a `FirstFrame` (of `load_gallery`, for example), with its control if it has one;
            or a picture alone: a PIL image, uint8 [H, W, 3], or float [3, H, W] in -1..1, not in 0..1 (see
            `StreamModel.encode_image`). Of exactly `model.video_size`. None for a run without, which a Wan transformer
            allows.
        prompt: embeddings [L, text_width], or a str if the model has a text encoder; None for no text, which a Wan
            transformer does not allow.
        seed: of the noise, a 64-bit integer.
        sampler: makes the frames of a step: `EulerSampler` for AAPT generators, `FewStepSampler` for Wan transformers,
            or another subclass of `Sampler`. None for the generator's own choice.
        cuda_graph: record the step and the decoder as CUDA graphs when a run begins, and replay them from the second
            step on. For sessions on a GPU, with the kernels that are on at that time. A fork records its own, and a
            reset records anew.
        image_control: one control entry, [J, 3] or [C, h, w], that describes the image, for models whose steps also
            take the control of the step before; None for that of the `FirstFrame`, or zeros for a picture alone.
        pool: home of the session's past (`PagePool.for_sessions`). The session reserves its pages here and now, so that
            no later step can run out of memory. Without a pool it makes one of exactly that size for itself. The
            pool may have been made for another model: pages hold nothing but keys and values, so layers, heads, width
            of a head, dtype and device are all that has to be equal.
        history: steps that `rewind` can go back by. The pages of so many more steps are kept, and copies of the
            decoder's state on the host, one for every six steps.
        replayable: keep the control of every step, for `export_replay`; of poses that is a kilobyte per step.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument with another size, shape, dtype or range, or one that the model has no use for.
        PoolExhausted: the pool has too few pages, or the device too little memory; the pool stays as it was.
        RuntimeError: the model was made in another process, before `os.fork()`.
    """

    no_copy = "session: it cannot be pickled; fork() continues it, save() writes it to a file"
    on_stage: Callable[[str], None] | None = None
    """Called in every step with "generator" before the frames are computed, and with "decode" after; for timings."""

    def __init__(
        self,
        model: StreamModel,
        image: ImageLike | FirstFrame | None = None,
        *,
        prompt: str | Tensor | None = None,
        seed: int = 0,
        sampler: Sampler | None = None,
        cuda_graph: bool = False,
        image_control: object = None,
        pool: PagePool | None = None,
        history: int = 0,
        replayable: bool = False,
    ) -> None:
        begun = time.perf_counter()
        require_type("replayable", replayable, bool)
        self._set_up(model, sampler, cuda_graph, pool, history)
        self._replayable = replayable
        with computing(model):
            image, image_control = separate(model, image, image_control)
            check_start(model, image, prompt)
            start = Start(
                model.encode_image(image) if image is not None else None,
                image_entries(image_control, model),
                model.embed(prompt) if prompt is not None else None,
                checked_seed(seed),
            )
            self._odd.look_at_image(image_control)
            self._begin(start, begun)

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: StreamModel,
        *,
        sampler: Sampler | None = None,
        cuda_graph: bool = False,
        pool: PagePool | None = None,
        history: int = 0,
    ) -> StreamSession:
        """A session that goes on from the file of `save`, bit for bit on the same device and build.

        Args:
            path: of the file.
            model: the model of the session that wrote it, in the same dtype; on any device.
            sampler: an equal one to that of the session; None for the generator's own choice.
            cuda_graph, pool, history: as in the constructor. `rewind` cannot go back behind the file.

        Raises:
            CheckpointError: a damaged file, something else, or a session of another model or sampler.
            TypeError, ValueError, PoolExhausted, RuntimeError: as the constructor.
        """
        begun = time.perf_counter()
        session = object.__new__(cls)
        session._set_up(model, sampler, cuda_graph, pool, history)
        saved = read_state(path, model, session.sampler)
        with computing(model):
            session._begin(saved.start, begun, saved)
        return session

    @classmethod
    def from_replay(
        cls,
        path: str | Path,
        model: StreamModel,
        *,
        sampler: Sampler | None = None,
        cuda_graph: bool = False,
        pool: PagePool | None = None,
        history: int = 0,
    ) -> tuple[StreamSession, Sequence[Tensor | None]]:
        """A session at the start of the one that wrote the file with `export_replay`, and the controls of its steps.

        Under these controls, float32 [entries, J, 3] or [entries, C, h, w] each (None for a model without control), the
        same video follows, bit for bit on the same device and build and with as many of torch's threads. Afterwards the
        session can go on under others. Arguments and errors are those of `load`. A UserWarning says where some steps
        were taken in batches, whose results differ in rounding.

            session, controls = StreamSession.from_replay("walk.safetensors", model)
            for frames in session.frames(controls):
                show(frames)
        """
        begun = time.perf_counter()
        session = object.__new__(cls)
        session._set_up(model, sampler, cuda_graph, pool, history)
        return session, session._begin_replay(read_replay(path, model, session.sampler), begun)

    def _begin_replay(self, replay: Replay, begun: float) -> Sequence[Tensor | None]:
        """Begin as the session of a replay did; returns the controls of its steps."""
        self._replayable = True
        with computing(self.model):
            self._begin(replay.start, begun)
        return [None] * replay.steps if replay.controls is None else list(replay.controls)

    def __repr__(self) -> str:
        state = "open" if self._closed is None else f"closed {self._closed}"
        speed = self.latency.in_words()
        taken = f"{self.steps}, {speed}" if speed else self.steps
        return f"StreamSession({self.model.name or 'a model without a name'}, steps taken: {taken}, {state})"

    def step(self, control: object = None) -> Tensor:
        """The next four video frames, uint8 [4, H, W, 3] on the device of the model, complete when this returns.

        A block of n frames gives 4 n video frames; the first of a run without an image 4 n - 3.

        Args:
            control: of this step, one entry per video frame or one for all of them: [entries, J, 3] or [J, 3] for
                poses, [entries, C, h, w] or [C, h, w] for maps; a tensor, an array or lists of numbers. None for a
                model without control. Of a joint, x and y are fractions of width and height, from the upper left, and
                the third number is the depth in metres. A control that nothing in the model's world can have, such as
                the pose of a giant, is used all the same, with one UserWarning per session for each kind.

        Raises:
            TypeError, ValueError: a bad control. Nothing has changed; the session can take another step.
            PoolExhausted: pages of the pool were taken without a reservation. Nothing has changed.
            RuntimeError: another thread takes a step of this session now, or it was opened in another process. Nothing
                has changed.
            SessionClosed: the session is closed. Any other error in the middle of a step, Ctrl-C included, closes it.
        """
        self._own_process.require()
        with self._in_one_thread(), computing(self.model):
            one, begun = self._require_open(), time.perf_counter()
            entries = self._check(one, control)
            with self._closed_on_failure(f"step {self.steps + 1}"):
                [video] = one.take(entries, self.on_stage)
            self._count(entries, begun, video)
            return video

    def frames(
        self,
        source: ControlSource | Iterable[object] | None = None,
        steps: int | None = None,
        *,
        ahead: bool = False,
    ) -> FrameIterator:
        """Take one step after the other: yields the video of each, uint8 [4, H, W, 3], as `step` returns it.

        Each control is taken from the source just before its step, so a change of the source shows in the next one. The
        session stays open when the loop ends by `break` or by an exception in its body: another call of `frames` or
        `step` continues from the last step taken. Only an error in the middle of a step, Ctrl-C included, closes it. A
        program that wants to go on after Ctrl-C notes it in a signal handler of its own and breaks out of the loop.

        `async for` takes each step in another thread, so that an event loop serves others meanwhile.

            for frames in session.frames(player):
                show(frames)
                if key_pressed():
                    player.play("wave")

        Args:
            source: a player, whose `next(4)` gives the control of a step (`model.world.player(first, "walk")`), and
                ends the video if it raises StopIteration; or an iterable of controls, one per step, with which the
                video ends; None for a model without control. A tensor or an array holds the controls of n steps,
                [n, 4, J, 3] or [n, 4, C, h, w]; `track.split(4)` cuts a track [T, J, 3] of T video frames into steps,
                where T is a multiple of 4.
            steps: end after so many; None for no limit. An iterable that has fewer controls ends the video earlier.
            ahead: compute the frames of the next step while the video of this one is decoded, in two threads that use
                one of torch's threads each. For models on a CPU: more video per second, above all beside other busy
                programs. Each control is taken earlier by the time of a decode, before its predecessor's video is
                there, so a change of the source shows one step later. A control that a loop has taken and not used when
                it ends is used first by the next loop over the same player or iterator.

        Raises:
            TypeError, ValueError: a source or a number of another kind or shape, or `ahead` on a GPU; at once, before
                the first step.
            SessionClosed: the session is closed; at once, too. The errors of `step` come in that step.
        """
        self._require_open()
        if steps is not None:
            require_integer("steps", steps)
            require(steps >= 0, "steps", "0 or more", steps)
        require_type("ahead", ahead, bool)
        kind = self.model.device.type
        require(not ahead or kind == "cpu", "ahead", f"False: a {kind} computes one after the other", True)
        controls = itertools.islice(self._with_unused(source, controls_of(source, self.model)), steps)
        if not ahead:
            return FrameIterator(lambda: self.step(next(controls)))
        frames_ahead = Ahead(self.model, controls, self._check)

        def end() -> None:
            if not self._own_process.is_here:  # where its threads are not
                return
            frames_ahead.close()
            self._unused = (source, frames_ahead.unused)

        return FrameIterator(lambda: self._step_ahead(frames_ahead), end)

    def fork(self) -> StreamSession:
        """An independent session that continues from here, bit for bit like this one under the same controls.

        In a given pool the fork reserves pages like any session, and shares those of the past until one side writes
        to them. A session with a pool of its own gives the fork another such pool, with a copy of the past.
        Raises PoolExhausted if the given pool has too few pages, or the device too little memory for another pool;
        SessionClosed after `close`.
        """
        self._require_open()
        begun = time.perf_counter()
        assert self._pool is not None
        pool = PagePool.for_model(self.model, self._pool.pages) if self._owns_pool else self._pool
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        other._stepping = threading.Lock()
        other._ahead, other._unused = None, (None, [])
        other._log = None if self._log is None else self._log.fork()
        with computing(self.model):
            other._take(self._run.fork(pool))
        other._pool = pool
        other.latency = LatencyCounter()
        other.latency.first_frame_s = time.perf_counter() - begun
        return other

    def rewind(self, to_step: int) -> None:
        """Go back to the state after step `to_step`, 0 for the start. The next step is `to_step` + 1.

        Under the same controls the same video follows, bit for bit, and under others another one. `fork` before it, and
        both can be followed.

        Args:
            to_step: at most `history` steps before the latest one so far.

        Raises:
            TypeError, ValueError: another number. Nothing has changed.
            RuntimeError: another thread takes a step of this session now.
            SessionClosed: the session is closed. Any other error closes it.
        """
        require_integer("to_step", to_step)
        with self._in_one_thread(), computing(self.model):
            step = self._require_open()
            self._run.history.check(int(to_step))
            with self._closed_on_failure("rewind"):
                step.drop()
                self._run.rewind(int(to_step), self.model, self.sampler.rule(self.model.generator).frames)

    def set_prompt(self, prompt: str | Tensor, policy: str = "keep") -> None:
        """Go on under another prompt, a str or embeddings [L, text_width], from the next step on.

        `reset` starts over instead. `rewind` cannot go back behind the change, and a replay cannot tell it. With
        `cuda_graph=True` the step is recorded anew.

        Args:
            prompt: as in the constructor.
            policy: "keep": the past stays as it was computed under the former prompt, so the picture changes gradually,
                as old frames leave the window. "recompute": keys and values of all frames that the next step sees are
                computed again under the new prompt, with the frames as they were shown, so the picture follows at once.
                That takes about as long as so many steps of one evaluation.

        Raises:
            TypeError, ValueError: as the constructor; another policy, or "recompute" with a sampler that does not
                override `Sampler.recompute`. Nothing has changed.
            PoolExhausted: frames attend to the prompt through pages, and it does not fit those of the former one (or a
                fork shares these) and the pool has no others left. Nothing has changed.
            RuntimeError: another thread takes a step of this session now. If recomputing or recording fails, the
                session is closed.
            SessionClosed: the session is closed.
        """
        require(policy in ("keep", "recompute"), "policy", "'keep' or 'recompute'", repr(policy))
        with self._in_one_thread(), computing(self.model):
            self._require_open()
            kept = policy == "keep" or can_recompute(self.sampler)
            sampler = type(self.sampler).__name__
            require(kept, "policy", f"'keep': {sampler} does not override Sampler.recompute", "'recompute'")
            embedded, run = self.model.embed(prompt), copy.copy(self._run)  # another one, so that batches notice
            with self.model.autocast():
                prepared = self.sampler.prepare(self.model.generator, embedded)
            run.change_prompt(embedded, prepared)
            self._log = None
            with self._closed_on_failure("set_prompt"):
                run.free_steps()
                if policy == "recompute":
                    recompute_past(self.model, self.sampler, run)
                self._take(run)

    def __copy__(self) -> StreamSession:
        """A `fork`."""
        return self.fork()

    def __deepcopy__(self, memo: dict[int, object]) -> StreamSession:
        """A `fork`."""
        return self.fork()

    def reset(
        self,
        image: ImageLike | FirstFrame | None = None,
        *,
        prompt: str | Tensor | None = None,
        seed: int | None = None,
        image_control: object = None,
    ) -> None:
        """Start over, with the arguments of the constructor; those that are not given stay as they were.

        image is a `FirstFrame`, a PIL image, uint8 [H, W, 3] or float [3, H, W], and prompt a str or embeddings
        [L, text_width].
        The control of the image goes with it: a new image without one has none.
        Raises TypeError and ValueError, having changed nothing, as the constructor does. PoolExhausted if a longer
        prompt does not fit the given pool or the memory, RuntimeError if recording the new run fails; the session is
        closed then.
        """
        self._require_open()
        begun, old = time.perf_counter(), self._run.start
        keeps_control = image is None and image_control is None
        image, image_control = separate(self.model, image, image_control)
        with computing(self.model):
            start = Start(
                self.model.encode_image(image) if image is not None else old.image,
                old.control if keeps_control else image_entries(image_control, self.model),
                self.model.embed(prompt) if prompt is not None else old.prompt,
                checked_seed(seed) if seed is not None else old.seed,
            )
            self._odd.look_at_image(image_control)
            self._drop()
            with self._closed_on_failure("reset"):
                self._begin(start, begun)

    def save(self, path: str | Path) -> None:
        """Write the whole state to a .safetensors file, from which `load` goes on.

        It is as large as the session's memory (a few megabytes of `mini-person`, up to 18 GiB of `aapt-8b`), and fits
        this model in this dtype only. A failed write leaves no file behind.

        Raises:
            ValueError: a path that does not end in .safetensors, a folder or a device.
            OSError: no file can be made there.
            RuntimeError: another thread takes a step of this session now.
            SessionClosed: the session is closed.
        """
        with self._in_one_thread(), computing(self.model):
            self._require_open()
            write_state(path, self.model, self.sampler, self._run)

    def export_replay(self, path: str | Path) -> None:
        """Write the first latent frame, prompt, seed and the control of every step to a .safetensors file.

        `from_replay` shows the same video again. Raises as `save`, and ValueError for a session that was opened without
        `replayable=True`, or by `load`, and after `set_prompt` or `forget_controls`, until a `reset`.
        """
        require(self._log is not None, "session", "one opened with replayable=True", "one that keeps no controls")
        assert self._log is not None
        with self._in_one_thread():
            self._require_open()
            controls, exact = self._log.taken(self.steps)
            write_replay(path, self.model, self.sampler, Replay(self._run.start, controls, self.steps, exact))

    def forget_controls(self) -> None:
        """Keep no more controls until a `reset`: those of an endless stream would take all memory in the end."""
        self._log = None

    def _step_ahead(self, ahead: Ahead) -> Tensor:
        """The next video, as `step` returns it."""
        self._own_process.require()
        with self._in_one_thread():
            begun, step = time.perf_counter(), self._require_open(but=ahead)
            self._ahead = ahead
            ahead.prepare(step, self.on_stage)
            with self._closed_on_failure(f"step {self.steps + 1}"):
                values, video = ahead.take(self.on_stage)
            self._count(values, begun, video)
            return video

    def _with_unused(self, source: object, controls: Iterator[object]) -> Iterator[object]:
        """`controls` of `source`, after the one, if any, that an earlier loop has taken from it and not used."""
        before, unused = self._unused
        keeps_its_place = source is controls or callable(getattr(source, "next", None))  # a list begins anew
        if before is not source or not keeps_its_place:
            return controls
        self._unused = (None, [])
        return itertools.chain(unused, controls)
