# SPDX-License-Identifier: Apache-2.0
"""Video frames -> the pictures of a stream: JPEG, or H.264 for decoders that begin at any key frame."""

from __future__ import annotations

import importlib.util
import io
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image

from aapt_fast.serve.protocol import H264_DELTA, H264_KEY, JPEG
from aapt_fast.worlds.world import FPS

QUALITY = 88  # of JPEG, 0..95
RATE_FACTOR = "20"  # of x264: lower is better
BT709, LIMITED = 1, 1  # numbers of H.264 for colours and range

Encoded = tuple[int, bytes]
"""Number of the codec in a header, and a picture."""


def has_h264() -> bool:
    """True if PyAV is there, which the extra `video` installs."""
    return importlib.util.find_spec("av") is not None


class JpegEncoder:
    """Every picture by itself."""

    def encode(self, pixels: np.ndarray, key: bool) -> Encoded:
        """One picture of uint8 [H, W, 3]."""
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
        return JPEG, file.getvalue()


class H264Encoder:
    """H.264 in Annex B without delay: one picture in, one out. Key frames carry all that a decoder needs to begin."""

    def __init__(self, width: int, height: int) -> None:
        import av

        self._av = av
        self._context: Any = av.CodecContext.create("libx264", "w")
        self._context.width, self._context.height = width + width % 2, height + height % 2
        self._context.pix_fmt = "yuv420p"
        self._context.framerate, self._context.time_base = Fraction(int(FPS)), Fraction(1, int(FPS))
        self._context.colorspace = self._context.color_primaries = self._context.color_trc = BT709
        self._context.color_range = LIMITED
        self._context.options = {
            "preset": "veryfast",
            "tune": "zerolatency",
            "profile": "baseline",
            "crf": RATE_FACTOR,
            "g": str(10 * int(FPS)),
            "forced-idr": "1",
            "threads": "1",
        }

    def encode(self, pixels: np.ndarray, key: bool) -> Encoded:
        """One picture of uint8 [H, W, 3], as a key frame if `key` or if the encoder wants one."""
        height, width = pixels.shape[:2]
        if height % 2 or width % 2:  # an odd last row or column is repeated
            pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED)
        if key:
            frame.pict_type = self._av.video.frame.PictureType.I
        packets = self._context.encode(frame)
        is_key = any(packet.is_keyframe for packet in packets)
        return H264_KEY if is_key else H264_DELTA, b"".join(map(bytes, packets))
