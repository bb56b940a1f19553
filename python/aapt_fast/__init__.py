# SPDX-License-Identifier: Apache-2.0
"""Real-time, interactive, streaming video generation (AAPT, arXiv 2506.09350).

    model = aapt_fast.StreamModel.from_pretrained("mini-person")
    first = aapt_fast.load_gallery("mini-person")[0]
    player = model.world.player(first, "walk")
    with aapt_fast.StreamSession(model, first, seed=0) as session:
        for frames in session.frames(player):  # uint8 [4, 96, 96, 3]
            ...  # show them; player.play("wave") is obeyed in the next step

Models
    StreamModel         generator, video decoder and text encoder together; from_pretrained loads them
    load_gallery        first frames of a bundled model: pictures, with their poses
    FirstFrame          a first picture of your own, with its control if you know it
    list_motions        motions that a player of the bundled models knows
    load_generator      an AAPT generator or a Wan transformer, from files in any known layout
    load_vae            a video VAE, from files in any known layout
    TextEncoder         prompts in words for Wan transformers

Streaming
    StreamSession       one user's stream: step, fork, reset, close
    SessionBatch        several sessions that take each step in one network evaluation
    PagePool            memory of the past that sessions share
    FrameDownloader     copies of video frames to the host while the next step is computed
    save_video          video frames in an .mp4, a .gif or a folder

Samplers and windows
    Sampler             base class of samplers, for your own
    EulerSampler        frames of AAPT generators, in one or more network evaluations
    FewStepSampler      blocks of frames of Wan transformers, in a few network evaluations
    WindowRule          past frames that a step sees, and their positions

Models of other packages
    patch               replaces slow parts of a diffusers, Wan or Self-Forcing model in place
    unpatch             brings the original parts back
    patched             patch for the length of a with block
    explain             reports what runs in a model, and why
    PatchReport         the report of patch and explain

Kernels
    use_kernels         chooses compiled kernels for a with block, as AAPT_KERNELS does for a process

Errors
    CheckpointError     a file of weights that is damaged or does not fit
    PoolExhausted       too few free pages in a PagePool
    SessionClosed       a call of a session after its end

`__version__` is the version of the package. Guides and results: docs/README.md in the repository.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from aapt_fast.errors import CheckpointError, PoolExhausted, SessionClosed
from aapt_fast.integrations.explain import explain
from aapt_fast.integrations.patch import patch, patched, unpatch
from aapt_fast.integrations.report import PatchReport
from aapt_fast.integrations.text import TextEncoder
from aapt_fast.media.video_writer import save_video
from aapt_fast.models.aapt.sampling import EulerSampler
from aapt_fast.models.files.load_generator import load_generator
from aapt_fast.models.files.load_vae import load_vae
from aapt_fast.models.files.model_file import load_gallery
from aapt_fast.models.sampling import Sampler
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.wan.sampling import FewStepSampler
from aapt_fast.ops.kernels import use_kernels
from aapt_fast.ops.window import WindowRule
from aapt_fast.streaming.batch import SessionBatch
from aapt_fast.streaming.downloads import FrameDownloader
from aapt_fast.streaming.pages import PagePool
from aapt_fast.streaming.session import StreamSession
from aapt_fast.worlds import list_motions
from aapt_fast.worlds.world import FirstFrame

try:
    __version__ = version("aapt_fast")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+source"

__all__ = [
    "CheckpointError",
    "EulerSampler",
    "FewStepSampler",
    "FirstFrame",
    "FrameDownloader",
    "PagePool",
    "PatchReport",
    "PoolExhausted",
    "Sampler",
    "SessionBatch",
    "SessionClosed",
    "StreamModel",
    "StreamSession",
    "TextEncoder",
    "WindowRule",
    "__version__",
    "explain",
    "list_motions",
    "load_gallery",
    "load_generator",
    "load_vae",
    "patch",
    "patched",
    "save_video",
    "unpatch",
    "use_kernels",
]
