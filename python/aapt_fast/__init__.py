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
from aapt_fast.models.files.load_generator import load_generator
from aapt_fast.models.files.load_vae import load_vae
from aapt_fast.models.files.model_file import load_gallery
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.wan.sampling import FewStep
from aapt_fast.ops.block_cache import Blocks
from aapt_fast.ops.kernels import use_kernels
from aapt_fast.streaming.host_copies import HostFrames
from aapt_fast.streaming.recorded_batch import RecordedBatch
from aapt_fast.streaming.session import StreamSession, page_pool, session_pages
from aapt_fast.streaming.together import step_together

try:
    __version__ = version("aapt_fast")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+source"

__all__ = [
    "Blocks",
    "CheckpointError",
    "FewStep",
    "HostFrames",
    "PatchReport",
    "PoolExhausted",
    "RecordedBatch",
    "SessionClosed",
    "StreamModel",
    "StreamSession",
    "TextEncoder",
    "__version__",
    "explain",
    "load_gallery",
    "load_generator",
    "load_vae",
    "page_pool",
    "patch",
    "patched",
    "session_pages",
    "step_together",
    "unpatch",
    "use_kernels",
]
