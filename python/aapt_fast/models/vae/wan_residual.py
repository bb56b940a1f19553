# SPDX-License-Identifier: Apache-2.0
"""Additions of Wan 2.2 to the video VAE: levels with a shortcut around them, and pixel blocks as channels.

A shortcut has no parameters. On the way down it averages neighbours in time, space and channels, on the way up it
copies. Both need no memory of a stream: the first frame of a stream, which has no partner in time, is recognised by
the number of frames.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from aapt_fast.models.vae.layers import Chain
from aapt_fast.models.vae.memory import DecoderMemory, EncoderMemory, Frames
from aapt_fast.models.vae.wan_layers import Downsample, ResidualBlock, Upsample


class DownLevel(nn.Module):
    """The residual blocks of one level of the encoder and the step to the next, with a shortcut around all of them.

    `down`: half the height and width; with `temporal` also half the frames.
    """

    def __init__(self, in_channels: int, out_channels: int, num_res_blocks: int, temporal: bool, down: bool) -> None:
        super().__init__()
        inputs = [in_channels] + [out_channels] * (num_res_blocks - 1)
        self.downsamples = Chain(ResidualBlock(channels, out_channels) for channels in inputs)
        if down:
            self.downsamples.append(Downsample(out_channels, temporal))
        self.time, self.space = 2 if temporal else 1, 2 if down else 1

    def forward(self, x: Tensor, memory: EncoderMemory) -> Tensor:
        """[B, C, T, H, W] -> [B, O, T or T / 2, H / 2, W / 2], or the same T, H, W at the last level."""
        y = self.downsamples(x, memory)
        return memory.apply(partial(add_averages, time=self.time, space=self.space), y, x)


class UpLevel(nn.Module):
    """The residual blocks of one level of the decoder and, with `up`, the step to the next with a shortcut around all.

    `up`: twice the height and width; with `temporal` also two frames from every one but the first.
    """

    def __init__(self, in_channels: int, out_channels: int, num_res_blocks: int, temporal: bool, up: bool) -> None:
        super().__init__()
        inputs = [in_channels] + [out_channels] * num_res_blocks
        self.upsamples = Chain(ResidualBlock(channels, out_channels) for channels in inputs)
        if up:
            self.upsamples.append(Upsample(out_channels, temporal, out_channels))
        self.up, self.time_factor = up, 2 if temporal else 1

    def forward(self, x: Frames, memory: DecoderMemory) -> Frames:
        """[B, C, T, H, W] -> [B, O, T or 2 T, 2 H, 2 W], or the same T, H, W at the last level."""
        y = self.upsamples(x, memory)
        return memory.apply(partial(add_copies_, time=self.time_factor), y, x) if self.up else y


def add_averages(y: Tensor, x: Tensor, time: int, space: int) -> Tensor:
    """y [B, O, T / time, H / space, W / space] plus the `average_neighbours` of x [B, C, T, H, W]."""
    return y + average_neighbours(x, y.shape[1], time, space)


def average_neighbours(x: Tensor, outputs: int, time: int, space: int) -> Tensor:
    """[B, C, T, H, W] -> [B, outputs, T / time, H / space, W / space], each value the mean of a group of neighbours.

    The values of a block [time, space, space] become channels after the channel they came from, and `outputs` groups
    of equal size are averaged. A first frame that comes alone has zeros before it.
    """
    missing = -x.shape[2] % time
    if missing:
        x = F.pad(x, (0, 0, 0, 0, missing, 0))
    blocks = x.permute(0, 2, 3, 4, 1).unflatten(3, (-1, space)).unflatten(2, (-1, space)).unflatten(1, (-1, time))
    values = blocks.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(4)  # [B, T, H, W, C * time * space * space]
    return values.unflatten(4, (outputs, -1)).mean(-1).permute(0, 4, 1, 2, 3)


def add_copies_(y: Tensor, x: Tensor, time: int) -> Tensor:
    """Add to y [B, O, T or time * T, 2 H, 2 W], in place, the values of x [B, C, T, H, W].

    Each is copied 4 * time * O / C times. Copies of a channel fill the positions of a block [time, 2, 2] of an output
    channel, then those of the next output channel. The first frame of a stream stays one frame: it takes the copies of
    the last position in time.
    """
    outputs, inputs = y.shape[1], x.shape[1]
    length = y.shape[2] // x.shape[2]
    positions = 4 * time
    blocks = y.permute(0, 2, 3, 4, 1).unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).unflatten(1, (-1, length))
    source = x.permute(0, 2, 3, 4, 1)
    for t in range(length):
        for row in range(2):
            for column in range(2):
                position = 4 * (time - length + t) + 2 * row + column
                blocks[:, :, t, :, row, :, column] += source[..., _copied(position, positions, inputs, outputs)]
    return y


def _copied(position: int, positions: int, inputs: int, outputs: int) -> slice | list[int]:
    """The input channel that each output channel copies at one position of its block."""
    copies = positions * outputs // inputs
    if positions % copies == 0:
        return slice(position // copies, None, positions // copies)
    return [(output * positions + position) // copies for output in range(outputs)]


def pixels_to_channels(video: Tensor, size: int) -> Tensor:
    """[B, C, T, H, W] -> [B, C size^2, T, H / size, W / size]: blocks of pixels, column by column, become channels."""
    if size == 1:
        return video
    blocks = video.unflatten(4, (-1, size)).unflatten(3, (-1, size))  # [B, C, T, h, rows, w, columns]
    return blocks.permute(0, 2, 3, 5, 1, 6, 4).flatten(4).permute(0, 4, 1, 2, 3)


def channels_to_pixels(x: Tensor, size: int) -> Tensor:
    """[B, C size^2, T, h, w] -> [B, C, T, h size, w size] with the colours last in memory; undoes the above."""
    if size == 1:
        return x
    blocks = x.permute(0, 2, 3, 4, 1).unflatten(4, (-1, size, size))  # [B, T, h, w, C, columns, rows]
    return blocks.permute(0, 1, 2, 6, 3, 5, 4).flatten(4, 5).flatten(2, 3).permute(0, 4, 1, 2, 3)
