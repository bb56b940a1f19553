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
    fit_picture         a picture of any size, cropped and scaled to that of a model
    list_models         names of the bundled models, with one sentence about each
    list_motions        motions that a player of the bundled models knows
    load_generator      an AAPT generator or a Wan transformer, from files in any known layout
    load_vae            a video VAE, from files in any known layout
    TextEncoder         prompts in words for Wan transformers

Streaming
    AAPTPipeline        whole videos, by calls as diffusers' pipelines take them
    StreamSession       one user's stream: step, fork, reset, close
    SessionBatch        several sessions that take each step in one network evaluation
    StreamEngine        many streams in real time, in a thread of their own
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
    verify              tries the kernels on this GPU and records which ones are right and fast

Errors
    CheckpointError     a file of weights that is damaged or does not fit
    EngineFull          no free place in a StreamEngine; a PoolExhausted
    PoolExhausted       too few free pages in a PagePool
    SessionClosed       a call of a session after its end

`__version__` is the version of the package. Guides and results: docs/README.md in the repository.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as that of typing; this file imports nothing, so that Ctrl-C meets no import before __main__

if TYPE_CHECKING:
    from aapt_fast.errors import CheckpointError as CheckpointError
    from aapt_fast.errors import EngineFull as EngineFull
    from aapt_fast.errors import PoolExhausted as PoolExhausted
    from aapt_fast.errors import SessionClosed as SessionClosed
    from aapt_fast.integrations.explain import explain as explain
    from aapt_fast.integrations.patch import patch as patch
    from aapt_fast.integrations.patch import patched as patched
    from aapt_fast.integrations.patch import unpatch as unpatch
    from aapt_fast.integrations.pipeline import AAPTPipeline as AAPTPipeline
    from aapt_fast.integrations.report import PatchReport as PatchReport
    from aapt_fast.integrations.text import TextEncoder as TextEncoder
    from aapt_fast.media.first_picture import fit_picture as fit_picture
    from aapt_fast.media.video_writer import save_video as save_video
    from aapt_fast.models.aapt.sampling import EulerSampler as EulerSampler
    from aapt_fast.models.files.bundled import list_models as list_models
    from aapt_fast.models.files.load_generator import load_generator as load_generator
    from aapt_fast.models.files.load_vae import load_vae as load_vae
    from aapt_fast.models.files.model_file import load_gallery as load_gallery
    from aapt_fast.models.sampling import Sampler as Sampler
    from aapt_fast.models.stream_model import StreamModel as StreamModel
    from aapt_fast.models.wan.sampling import FewStepSampler as FewStepSampler
    from aapt_fast.ops.kernels import use_kernels as use_kernels
    from aapt_fast.ops.window import WindowRule as WindowRule
    from aapt_fast.streaming.batch import SessionBatch as SessionBatch
    from aapt_fast.streaming.downloads import FrameDownloader as FrameDownloader
    from aapt_fast.streaming.engine import StreamEngine as StreamEngine
    from aapt_fast.streaming.pages import PagePool as PagePool
    from aapt_fast.streaming.session import StreamSession as StreamSession
    from aapt_fast.verification.runner import verify as verify
    from aapt_fast.worlds import list_motions as list_motions
    from aapt_fast.worlds.world import FirstFrame as FirstFrame

# Modules of the public names. Each is imported when its name is first used: `import aapt_fast` does not import torch.
_MODULES = {
    "AAPTPipeline": "aapt_fast.integrations.pipeline",
    "CheckpointError": "aapt_fast.errors",
    "EngineFull": "aapt_fast.errors",
    "EulerSampler": "aapt_fast.models.aapt.sampling",
    "FewStepSampler": "aapt_fast.models.wan.sampling",
    "FirstFrame": "aapt_fast.worlds.world",
    "FrameDownloader": "aapt_fast.streaming.downloads",
    "PagePool": "aapt_fast.streaming.pages",
    "PatchReport": "aapt_fast.integrations.report",
    "PoolExhausted": "aapt_fast.errors",
    "Sampler": "aapt_fast.models.sampling",
    "SessionBatch": "aapt_fast.streaming.batch",
    "SessionClosed": "aapt_fast.errors",
    "StreamEngine": "aapt_fast.streaming.engine",
    "StreamModel": "aapt_fast.models.stream_model",
    "StreamSession": "aapt_fast.streaming.session",
    "TextEncoder": "aapt_fast.integrations.text",
    "WindowRule": "aapt_fast.ops.window",
    "explain": "aapt_fast.integrations.explain",
    "fit_picture": "aapt_fast.media.first_picture",
    "list_models": "aapt_fast.models.files.bundled",
    "list_motions": "aapt_fast.worlds",
    "load_gallery": "aapt_fast.models.files.model_file",
    "load_generator": "aapt_fast.models.files.load_generator",
    "load_vae": "aapt_fast.models.files.load_vae",
    "patch": "aapt_fast.integrations.patch",
    "patched": "aapt_fast.integrations.patch",
    "save_video": "aapt_fast.media.video_writer",
    "unpatch": "aapt_fast.integrations.patch",
    "use_kernels": "aapt_fast.ops.kernels",
    "verify": "aapt_fast.verification.runner",
}
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> object:
    if name == "__version__":
        value: object = _version()
    elif name in _MODULES:
        from aapt_fast.errors import import_with_torch

        value = getattr(import_with_torch(_MODULES[name]), name)
    else:
        raise AttributeError(f"module 'aapt_fast' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("aapt_fast")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0+source"
