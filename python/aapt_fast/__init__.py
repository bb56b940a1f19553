# SPDX-License-Identifier: Apache-2.0
"""Real-time, interactive, streaming video generation (AAPT, arXiv 2506.09350).

model = aapt_fast.StreamModel.from_pretrained("mini-person")
with aapt_fast.StreamSession(model, image, seed=0) as session:
    frames = session.step(control)      # uint8 [4, H, W, 3]
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from aapt_fast.errors import CheckpointError, PoolExhausted, SessionClosed
from aapt_fast.integrations.explain import explain
from aapt_fast.integrations.patch import patch, patched, unpatch
from aapt_fast.integrations.report import PatchReport
from aapt_fast.integrations.text import TextEncoder
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

try:
    __version__ = version("aapt_fast")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+source"

__all__ = [
    "CheckpointError",
    "EulerSampler",
    "FewStepSampler",
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
    "load_gallery",
    "load_generator",
    "load_vae",
    "patch",
    "patched",
    "unpatch",
    "use_kernels",
]
