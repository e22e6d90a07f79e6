"""What makes embeddings of images: the autoencoder's encoder, or a module of the user's own."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from fastload.augment import Augment
from fastload.augment.normalizing import LEVELS
from fastload.embedding.autoencoder import VIEW, Autoencoder
from fastload.errors import UsageError

CHUNK = 1024
"""Rows that an encoder sees at once, counted from row 0 whoever computes them, so that its rounding never differs."""


_CHUNK_PIXELS = CHUNK * 64 * 64


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of each channel, of pixel values 0…1, that models trained on ImageNet expect."""


def chunk_rows(view: Augment) -> int:
    """Return how many rows an encoder with this view sees at once: 1,024 up to 64×64 pixels, fewer of larger images.

    A function of the view alone. 1,024 images of 224×224 would take 10 GB in a ResNet's first layer.
    """
    height, width = view.sides
    return max(32, min(CHUNK, _CHUNK_PIXELS // (height * width)))


@dataclass(frozen=True)
class Encoder:
    """A model that embeds, what it sees, and what identifies it.

    Arguments:
        model: takes standardized float32 [B, C, h, w], returns [B, D] (or [B, …], which is flattened).
        view: sizes and standardization of what it sees; nothing random.
        name: for people.
        identity: changes with the weights and the code, for reuse.
    """

    model: Callable[[Tensor], Tensor]
    view: Augment
    name: str
    identity: str


def autoencoder_encoder(model: Autoencoder) -> Encoder:
    """Return the encoder half of a trained autoencoder: its last block's non-negative outputs."""
    return Encoder(_EncoderHalf(model), VIEW.evaluation(), "autoencoder", _weights_hash(model))


def trained_model(encoder: Encoder) -> Autoencoder | None:
    """Return the autoencoder whose half an encoder is; None for one of the user's own."""
    return encoder.model.autoencoder if isinstance(encoder.model, _EncoderHalf) else None


class _EncoderHalf(nn.Module):
    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, images: Tensor) -> Tensor:
        return self.autoencoder.embed(images.contiguous(memory_format=torch.channels_last))


def parse_normalize(given: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return (mean, std), a value a channel, of pixel values 0…1; None leaves images standardized one by one.

    Arguments:
        given: "imagenet", "mean,mean,mean/std,std,std", a pair of lists, or None.

    Raises UsageError for anything else.
    """
    if given is None:
        return None
    if given == "imagenet":
        return IMAGENET
    try:
        parts = [part.split(",") for part in given.split("/")] if isinstance(given, str) else list(given)
        mean, std = (tuple(float(value) for value in part) for part in parts)
    except (TypeError, ValueError):
        mean, std = (), ()
    good = mean and len(mean) == len(std) and np.isfinite([*mean, *std]).all() and min(std) > 0
    if not good:
        raise UsageError(
            f'encoder_normalize={given!r}: it is "imagenet", or means and standard deviations of pixel values 0…1, one '
            "a channel, such as 0.5,0.5,0.5/0.25,0.25,0.25"
        )
    return mean, std


class _Normalized(nn.Module):
    """A model that sees pixel values 0…255 with a mean and a standard deviation for each channel taken off."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Any:
        if self.mean.shape[1] not in (1, images.shape[1]):
            raise ValueError(f"encoder_normalize= has {self.mean.shape[1]} values for {images.shape[1]} channels")
        return self.model((images / 255 - self.mean) / self.std)


def load_encoder(spec: str, *, input_size: int | None = None, seed: int = 0, normalize: Any = None) -> Encoder:
    """Return the encoder that "module:callable" names: a torch module, or a callable without arguments making one.

    Arguments:
        spec: for example "my_models:resnet_trunk"; the module is imported, the current folder included.
        input_size: the side in pixels of the centre square that it sees, the images' shorter side brought to that
            size first; None is what the autoencoder sees, 24×24 of 32.
        seed: of the generator while the callable runs, for those that draw their weights.
        normalize: see `parse_normalize`.

    Raises UsageError where it cannot be imported, is not there, or makes no torch module.
    """
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"encoder={spec!r}: it is module:callable, for example my_models:encoder")
    with _importing_from(Path.cwd()):
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            raise UsageError(f"encoder={spec!r}: {module_name!r} cannot be imported ({error!r})") from error
    found = getattr(module, attribute, None)
    if found is None:
        raise UsageError(f"encoder={spec!r}: {module_name!r} has no {attribute!r}")
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise UsageError(f"encoder={spec!r}: is a {type(found).__name__}, neither a torch module nor a callable")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            try:
                found = found()
            except Exception as error:
                raise UsageError(f"encoder={spec!r}: calling it without arguments failed ({error!r})") from error
    if not isinstance(found, nn.Module):
        raise UsageError(f"encoder={spec!r}: gave a {type(found).__name__}, not a torch.nn.Module")
    view = VIEW if input_size is None else Augment.paper(input_size, resize=input_size)
    identity = _weights_hash(found) + _source_hash(module)
    values = parse_normalize(normalize)
    if values is not None:
        found, view = _Normalized(found, *values), dataclasses.replace(view, normalize=LEVELS)
        identity += repr(values)
    return Encoder(found.eval(), view.evaluation(), spec, identity)


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def _weights_hash(model: nn.Module) -> str:
    hasher = xxhash.xxh3_128(repr(model).encode())
    for name, tensor in sorted(model.state_dict().items()):
        hasher.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        hasher.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def _source_hash(module: Any) -> str:
    """Return a hash of the module's own file: a changed `forward` is another encoder."""
    path = getattr(module, "__file__", None)
    try:
        return xxhash.xxh3_64_hexdigest(Path(path).read_bytes()) if path else ""
    except OSError:
        return ""
