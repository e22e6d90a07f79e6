"""The graph of the DALI engine: what its pipeline makes of images under fixed settings, and what is fed to it.

Its steps are those of `fastload.augment.Augment`; what the settings make constant is left out of the graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastload.augment import Augment, Jitter, PaperColor, PerImage
from fastload.augment.parameters import Parameters, kernel_norm
from fastload.common.dali_decoder import dali as _dali
from fastload.common.dali_decoder import graph_input as _input
from fastload.feeds.dali_crops import DaliCrops
from fastload.feeds.dali_pipeline import new_pipeline
from fastload.kernels.color_matrix import BLUE, GREEN, RED
from fastload.kernels.draw_parameters import color_matrices

GREY = (RED, GREEN, BLUE)


@dataclass(frozen=True)
class DaliGraph:
    """The settings of a pipeline that augments raw or decoded images.

    Arguments:
        augment: what happens to each image.
        sides: (H, W) that all images have; None where they differ.
        channels: of the images.
        batch_size: the largest batch.
        device_id: the CUDA device that augments; None for the CPU.
        levels: whether whole values of 0…255 come out, as uint8, and not float32.
        channels_last: whether images come out as HWC, rather than CHW.
        threads: DALI's CPU threads.
    """

    augment: Augment
    sides: tuple[int, int] | None
    channels: int
    batch_size: int
    device_id: int | None
    levels: bool
    channels_last: bool
    threads: int

    @property
    def _crops(self) -> DaliCrops:
        return DaliCrops(self.augment, self.sides, self.device_id is not None)

    def build(self) -> Any:
        """Return the pipeline, which takes the values of `inputs` and gives the images of a batch."""
        types = _dali().types
        pipeline = new_pipeline(self.batch_size, self.threads, self.device_id)
        with pipeline:
            if self.device_id is None:
                images = _input("images", types.UINT8, 3, layout="HWC")
            else:
                # Copied, on torch's current stream: only for a copy does DALI promise to wait for that stream.
                images = _input("images", types.UINT8, 3, layout="HWC", device="gpu", no_copy=False)
            crops = self._crops.graph(images)
            pipeline.set_outputs(self._erased(self._normalized(crops, self._coloured(crops))))
        pipeline.build()
        return pipeline

    # -- colours ---------------------------------------------------------------------------------------------------

    @property
    def _paper(self) -> PaperColor | None:
        color = self.augment.color
        constant = isinstance(color, PaperColor) and color.brightness == 0 and color.contrast == (1.0, 1.0)
        return color if isinstance(color, PaperColor) and not constant else None

    @property
    def _jitter(self) -> Jitter | None:
        color = self.augment.color
        if not isinstance(color, Jitter) or not color.probability:
            return None
        return color if color.brightness or color.contrast or color.needs_three_channels else None

    def _coloured(self, crops: Any) -> Any:
        """uint8 HWC → brightness, contrast, saturation, hue, grey: float32 HWC, or as it was without any of them.

        Each operator is a pass over a batch that no cache holds.
        """
        fn, types = _dali().fn, _dali().types
        values = crops
        if self._paper is not None:
            brightness, contrast = _input("brightness", types.FLOAT, 0), _input("contrast", types.FLOAT, 0)
            means = fn.reductions.mean(crops, axes=(0, 1), keep_dims=True)
            # (v - m)·k + m + b with one pass less over whole images.
            values = values * contrast + (means * (1.0 - contrast) + brightness)
            values = self._between(values) if self._paper.clamp else values
        elif self._jitter is not None:
            values = self._between(self._jittered(crops, self._jitter))
        if self.augment.grayscale > 0:
            values = fn.coord_transform(values, M=_input("greying", types.FLOAT, 2), dtype=types.FLOAT)
        return values

    def _jittered(self, crops: Any, jitter: Jitter) -> Any:
        fn, types = _dali().fn, _dali().types
        if jitter.needs_three_channels:
            values = fn.coord_transform(crops, M=_input("matrix", types.FLOAT, 2), dtype=types.FLOAT)
        else:
            values = crops * _input("gain", types.FLOAT, 0)
        if not jitter.contrast:
            return values
        grey = fn.reductions.mean(crops, axes=(0, 1), keep_dims=True)
        if self.channels == 3:
            grey = fn.coord_transform(grey, M=GREY, dtype=types.FLOAT)
        return values + grey * _input("lift", types.FLOAT, 0)

    @staticmethod
    def _between(values: Any) -> Any:
        """Bring values back to 0…255; a third faster than math.clamp on the CPU."""
        math_of = _dali().math
        return math_of.min(math_of.max(values, 0.0), 255.0)

    # -- normalizing -----------------------------------------------------------------------------------------------

    def _normalized(self, crops: Any, values: Any) -> Any:
        """Coloured crops → normalized and flipped; CHW, or HWC for channels_last.

        The operator subtracts, divides, flips (the same as flipping first) and transposes at once. It wants what is by
        sample on the CPU, where DALI copies it.
        """
        dali, fn, augment = _dali(), _dali().fn, self.augment
        means, scales = kernel_norm(augment, self.channels, torch.uint8 if self.levels else torch.float32)
        mean: Any = means.tolist()
        divisor: Any = (1 / scales.astype(np.float64)).tolist()
        if isinstance(augment.normalize, PerImage):
            count = math.prod(augment.sides) * self.channels
            mean = fn.reductions.mean(values)
            if augment.normalize.divisor == "stddev":
                divisor = dali.math.max(fn.reductions.std_dev(values, mean), 1 / math.sqrt(count)).cpu()
            else:
                divisor = dali.math.max(fn.reductions.variance(values, mean), 1 / count).cpu()
            mean = mean.cpu()
        if self.levels and values is not crops:
            values = dali.math.floor(self._between(values) + 0.5)
        return fn.crop_mirror_normalize(
            values,
            mirror=_input("flip", dali.types.INT32, 0) if augment.flip else 0,
            mean=mean,
            std=divisor,
            dtype=dali.types.UINT8 if self.levels else dali.types.FLOAT,
            output_layout="HWC" if self.channels_last else "CHW",
        )

    @property
    def _erases(self) -> bool:
        return self.augment.erase is not None and self.augment.erase.probability > 0

    def _erased(self, pixels: Any) -> Any:
        fn, types, erase = _dali().fn, _dali().types, self.augment.erase
        if erase is None or not self._erases:
            return pixels
        value = math.floor(min(max(erase.value, 0.0), 255.0) + 0.5) if self.levels else erase.value
        return fn.erase(
            pixels,
            anchor=_input("box", types.FLOAT, 1),
            shape=_input("box sides", types.FLOAT, 1),
            axis_names="HW",
            fill_value=value,
        )

    # -- what is fed -----------------------------------------------------------------------------------------------

    def inputs(self, images: Any, parameters: Parameters, sides: np.ndarray) -> dict[str, Any]:
        """Return what is fed for a batch, by the inputs' names: only what varies, since each costs a microsecond.

        Arguments:
            images: raw ones, uint8 [b, H, W, C], NumPy or torch, on any device; or a DALI list of decoded ones.
            parameters: of the samples.
            sides: int64 [b, 2], of the images.
        """
        if self.sides is not None:
            if self.device_id is None:
                images = np.ascontiguousarray(images)  # for a torch tensor DALI would start CUDA
            else:
                images = torch.as_tensor(images, device=f"cuda:{self.device_id}").contiguous()
        inputs = {"images": images, **self._crops.inputs(parameters, sides)}
        if self.augment.flip:
            inputs["flip"] = parameters.flip.astype(np.int32)
        if self._paper is not None:
            inputs["brightness"], inputs["contrast"] = parameters.brightness, parameters.contrast
        if self._jitter is not None:
            inputs |= self._jitter_inputs(self._jitter, parameters)
        if self.augment.grayscale > 0:
            rows = np.where(parameters.grey[:, None, None], np.array(GREY), np.eye(3))
            inputs["greying"] = rows.astype(np.float32)
        if self._erases:
            inputs["box"] = parameters.erased[:, :2].astype(np.float32, order="C")
            inputs["box sides"] = parameters.erased[:, 2:].astype(np.float32, order="C")
        return inputs

    @staticmethod
    def _jitter_inputs(jitter: Jitter, parameters: Parameters) -> dict[str, np.ndarray]:
        brightness, contrast = parameters.brightness.astype(np.float64), parameters.contrast.astype(np.float64)
        inputs: dict[str, np.ndarray] = {}
        if jitter.needs_three_channels:
            matrices = np.empty((len(brightness), 9), np.float32)
            singles = parameters.brightness, parameters.contrast, parameters.saturation, parameters.hue
            color_matrices(*singles, matrices)
            inputs["matrix"] = matrices.reshape(-1, 3, 3)
        else:
            inputs["gain"] = (brightness * contrast).astype(np.float32)
        if jitter.contrast:
            inputs["lift"] = (brightness * (1.0 - contrast)).astype(np.float32)
        return inputs
