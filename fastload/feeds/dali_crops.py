"""The first steps of the DALI engine's graph: from images to crops, cut, padded or resized, and what is fed to it.

Resizing is the fused engine's: a triangle as wide as the scale, cut off at the edges of the part that is resized.
DALI's resize repeats the pixels of an edge beyond it. So it is given the part with as much black around it as the
triangle reaches, and its result is divided by the share of the triangle that lies inside. It is rounded once, and so at
most 1 level from the fused engine's, which rounds after each axis: a sixth of the values is. With a pass of DALI's for
each axis 0.4 % were, but some by 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastload.augment import Augment, CenterCrop, RandomCrop, RandomResizedCrop
from fastload.augment.parameters import Parameters
from fastload.common.dali_decoder import dali as _dali
from fastload.common.dali_decoder import graph_input as _input


@dataclass(frozen=True)
class DaliCrops:
    """The crops of a batch.

    Arguments:
        augment: what happens to each image.
        sides: (H, W) that all images have; None where they differ.
        on_cuda: whether images lie there.
    """

    augment: Augment
    sides: tuple[int, int] | None
    on_cuda: bool

    @property
    def _resamples(self) -> bool:
        return self.augment.may_resize if self.sides is None else self.augment.resizes(self.sides)

    @property
    def _pad(self) -> int:
        return self.augment.crop.pad if isinstance(self.augment.crop, RandomCrop) else 0

    @property
    def _reflects(self) -> bool:
        return self._pad > 0 and self.augment.crop.mode == "reflect"  # type: ignore[union-attr]  # RandomCrop

    @property
    def _fixed_corner(self) -> list[int] | None:
        """The corner that all crops begin at, where it is one."""
        if self.sides is None or not isinstance(self.augment.crop, CenterCrop):
            return None
        return [(side - size) // 2 for side, size in zip(self.sides, self.augment.sides, strict=True)]

    # -- the graph -------------------------------------------------------------------------------------------------

    def graph(self, images: Any) -> Any:
        """Return the crops of `images`, both uint8 HWC."""
        if self._resamples:
            return self._resized(images)
        fn, types = _dali().fn, _dali().types
        if self._reflects:
            images = self._reflected(self._reflected(images, 0), 1)
        start = self._fixed_corner or _input("corner", types.INT32, 1)
        outside = "pad" if self._pad and not self._reflects else "error"
        return fn.slice(
            images, start=start, shape=self.augment.sides, axes=(0, 1), out_of_bounds_policy=outside, fill_values=0
        )

    def _reflected(self, images: Any, axis: int) -> Any:
        """Return images with `pad` pixels more at either end, the mirror's, without repeating the edge's pixels."""
        fn, types, pad = _dali().fn, _dali().types, self._pad
        flipped = fn.flip(images, horizontal=int(axis == 1), vertical=int(axis == 0))
        begin = _input(f"mirror {axis}", types.INT32, 1) if self.sides is None else [self.sides[axis] - 1 - pad]
        before = fn.slice(flipped, start=begin, shape=[pad], axes=(axis,))
        after = fn.slice(flipped, start=[1], shape=[pad], axes=(axis,))
        return fn.cat(before, images, after, axis=axis)

    def _resized(self, images: Any) -> Any:
        fn, types = _dali().fn, _dali().types
        part = fn.slice(
            images, start=_input("part", types.INT32, 1), shape=_input("part sides", types.INT32, 1), axes=(0, 1)
        )
        framed = fn.slice(
            part,
            start=_input("frame", types.INT32, 1),
            shape=_input("frame sides", types.INT32, 1),
            axes=(0, 1),
            out_of_bounds_policy="pad",
            fill_values=0,
        )
        levels = fn.resize(
            framed,
            size=self.augment.sides,
            roi_start=_input("begin", types.FLOAT, 1),
            roi_end=_input("end", types.FLOAT, 1),
            roi_relative=False,
            subpixel_scale=False,
            antialias=True,
            dtype=types.FLOAT,
        )
        down, across = _input("down", types.FLOAT, 3), _input("across", types.FLOAT, 3)
        if self.on_cuda:
            down, across = down.gpu(), across.gpu()
        return fn.cast(levels * down * across, dtype=types.UINT8)  # rounded

    # -- what is fed -----------------------------------------------------------------------------------------------

    def inputs(self, parameters: Parameters, sides: np.ndarray) -> dict[str, np.ndarray]:
        """Return what is fed for a batch, by the inputs' names: only what varies.

        Arguments:
            parameters: of the samples.
            sides: int64 [b, 2], of the images.
        """
        if self._resamples:
            return self._resized_inputs(parameters, sides)
        inputs: dict[str, np.ndarray] = {}
        if self._fixed_corner is None:
            corners = np.stack([parameters.top, parameters.left], axis=1)
            inputs["corner"] = (corners + (self._pad if self._reflects else 0)).astype(np.int32)
        if self._reflects and self.sides is None:
            for axis in (0, 1):
                inputs[f"mirror {axis}"] = (sides[:, axis : axis + 1] - 1 - self._pad).astype(np.int32, order="C")
        return inputs

    def _resized_inputs(self, parameters: Parameters, sides: np.ndarray) -> dict[str, np.ndarray]:
        places = parameters.places
        if isinstance(self.augment.crop, RandomResizedCrop):
            starts, lengths, firsts = places[:, 0:2], places[:, 2:4], places[:, 6:8]
        else:  # of the whole image; a batch of images that have their size already says only where its crops begin
            starts, lengths = np.zeros_like(sides), sides
            firsts = np.stack([parameters.top, parameters.left], axis=1)
        vertical, horizontal = (
            _reach(starts[:, k], lengths[:, k], places[:, 4 + k], firsts[:, k], self.augment.sides[k]) for k in (0, 1)
        )

        def pairs(name: str, dtype: type) -> np.ndarray:
            return np.stack([getattr(vertical, name), getattr(horizontal, name)], axis=1).astype(dtype)

        return {
            "part": pairs("start", np.int32),
            "part sides": pairs("size", np.int32),
            "frame": pairs("margin", np.int32),
            "frame sides": pairs("framed", np.int32),
            "begin": pairs("begin", np.float32),
            "end": pairs("end", np.float32),
            "down": vertical.gains.astype(np.float32)[:, :, None, None],
            "across": horizontal.gains.astype(np.float32)[:, None, :, None],
        }


class _Reach(NamedTuple):
    """What is read along one axis, each [b].

    Attributes:
        start: the first pixel of the image that counts.
        size: how many do.
        margin: where the frame of black begins, from that pixel on; 0 or less.
        framed: pixels with the frame.
        begin: where what the crop shows begins in the frame, in pixels.
        end: where it ends.
        gains: [b, pixels of the crop], by how much each is too dark.
    """

    start: np.ndarray
    size: np.ndarray
    margin: np.ndarray
    framed: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    gains: np.ndarray


def _reach(start: np.ndarray, length: np.ndarray, size: np.ndarray, first: np.ndarray, count: int) -> _Reach:
    """Return what is read for pixels first … first + count - 1 of parts at `start` of `length`, resized to `size`."""
    scale = length / size
    radius = np.maximum(scale, 1.0)
    low = np.floor((first + 0.5) * scale - radius).astype(np.int64)
    high = np.ceil((first + count - 0.5) * scale + radius).astype(np.int64)
    begin, end = np.maximum(low, 0), np.minimum(high, length)
    centres = (first[:, None] + np.arange(count) + 0.5) * scale[:, None]
    radii = radius[:, None]
    before = np.ceil(centres - 0.5) - (centres - 0.5)  # from a centre to the next pixel's
    whole = _heights(before, radii) + _heights(1.0 - before, radii)
    outside = _heights(centres + 0.5, radii) + _heights(length[:, None] - centres + 0.5, radii)
    return _Reach(
        start + begin,
        end - begin,
        low - begin,
        high - low,
        first * scale - low,
        (first + count) * scale - low,
        whole / (whole - outside),
    )


def _heights(nearest: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Return the sum of a triangle's heights at the distances nearest, nearest + 1, … within its radius."""
    count = np.maximum(np.ceil(radius - nearest), 0.0)
    return count - (count * nearest + count * (count - 1) / 2) / radius
