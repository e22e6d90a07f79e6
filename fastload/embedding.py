"""Embeddings: one row of float32 for each sample, streamed through an encoder into a file, or brought by the user."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from fastload.augment import Augment
from fastload.autoencoder import VIEW, Autoencoder
from fastload.errors import UsageError
from fastload.evaluation import EvaluationLoader
from fastload.folder_files import FolderFile
from fastload.packed_set import Packed
from fastload.ranks import Leader, RankFailure
from fastload.reproducible import reproducible
from fastload.stored_embeddings import RowWriter

CHUNK = 1024
"""Rows that an encoder sees at once, counted from row 0 whoever computes them, so that its rounding never differs."""

_CHUNK_PIXELS = CHUNK * 64 * 64


def chunk_rows(view: Augment) -> int:
    """Return how many rows an encoder with this view sees at once: 1,024 up to 64×64 pixels, fewer of larger images.

    A function of the view alone. 1,024 images of 224×224 would take 10 GB in a ResNet's first layer.
    """
    height, width = view.size
    return max(32, min(CHUNK, _CHUNK_PIXELS // (height * width)))


@dataclass(frozen=True)
class Encoder:
    """A model that embeds, what it sees, and what identifies it.

    Arguments:
        model: takes standardized float32 [B, C, h, w], returns [B, D] (or [B, …], which is flattened).
        view: sizes and standardization of what it sees; nothing random.
        name: for people. identity: changes with the weights and the code, for reuse.
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


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of each channel, of pixel values 0…1, that models trained on ImageNet expect."""


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
            f"--encoder-normalize {given}: it is imagenet, or means and standard deviations of pixel values 0…1, one "
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
            raise ValueError(f"--encoder-normalize has {self.mean.shape[1]} values for {images.shape[1]} channels")
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
        raise UsageError(f"--encoder {spec}: it is module:callable, for example my_models:encoder")
    with _importing_from(Path.cwd()):
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            raise UsageError(f"--encoder {spec}: {module_name!r} cannot be imported ({error!r})") from error
    found = getattr(module, attribute, None)
    if found is None:
        raise UsageError(f"--encoder {spec}: {module_name!r} has no {attribute!r}")
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise UsageError(f"--encoder {spec}: is a {type(found).__name__}, neither a torch module nor a callable")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            try:
                found = found()
            except Exception as error:
                raise UsageError(f"--encoder {spec}: calling it without arguments failed ({error!r})") from error
    if not isinstance(found, nn.Module):
        raise UsageError(f"--encoder {spec}: gave a {type(found).__name__}, not a torch.nn.Module")
    view = VIEW if input_size is None else Augment(crop=input_size, resize=input_size)
    identity = _weights_hash(found) + _source_hash(module)
    values = parse_normalize(normalize)
    if values is not None:
        found, view = _Normalized(found, *values), dataclasses.replace(view, standardize=None)
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


@torch.inference_mode()
def embed_chunk(encoder: Encoder, images: Tensor) -> np.ndarray:
    """Return the embeddings, float32 [B, D], of images [B, C, h, w]; raise UsageError where the model cannot."""
    try:
        outputs = encoder.model(images)
        return outputs.float().flatten(1).cpu().contiguous().numpy()
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"--encoder {encoder.name}: {images.device} has not enough memory for {len(images):,} images of "
            f"{tuple(images.shape[1:])}; choose a smaller --input-size, or --device cpu"
        ) from error
    except Exception as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UsageError(
            f"--encoder {encoder.name}: failed on float32 images {list(images.shape)}: {text}; it takes "
            "[B, C, h, w] and returns [B, D] (see --input-size)"
        ) from error


def embed(
    file: Packed,
    encoder: Encoder,
    out: FolderFile | Path | Sink,
    *,
    device: str = "cpu",
    engine: str = "auto",
    first_row: int = 0,
    leader: Leader | None = None,
    seconds_between: float = 10.0,
    on_chunk: Callable[[int], None] | None = None,
    on_saved: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Pass the embeddings of a whole packed file on, or write them as float32 [N, D] in NumPy's format.

    Images are centre-cropped and standardized, and pass in chunks of `chunk_rows` counted from row 0. Row i of the
    embeddings belongs to row i of the file.

    Arguments:
        file: the full set. encoder: see `Encoder`.
        out: the .npy file, or what takes the chunks; it is not closed. device, engine: as for EvaluationLoader.
        first_row: rows that an interrupted call has passed on already, a multiple of the chunk.
        leader: of other ranks, which make their share of the chunks; see `fastload.follow`.
        on_chunk: called after each chunk with the rows that are passed on.
        on_saved: called each `seconds_between` seconds with the rows that are safe on disk.
        should_stop: asked after each chunk; True saves, calls `on_saved` and raises KeyboardInterrupt.

    Raises UsageError where the model fails, DataError where the disk is full, RankFailure (having saved) where
    another rank failed.
    """
    world_size = 1 if leader is None else leader.world_size
    mine = embed_chunks(file, encoder, device=device, engine=engine, first_row=first_row, every=world_size)
    row, saved = first_row, time.monotonic()
    sink: Sink | None = None if isinstance(out, FolderFile | Path) else out
    writer: RowWriter | None = None

    def save() -> None:
        nonlocal saved
        if sink is not None and row > first_row:
            sink.sync()
            if on_saved is not None:
                on_saved(row)
        saved = time.monotonic()

    try:
        for number in range(-(-(len(file) - first_row) // chunk_rows(encoder.view))):
            embeddings = _next_chunk(number % world_size, row, mine, leader)
            if isinstance(out, FolderFile | Path) and sink is None:
                sink = writer = RowWriter(out, len(file), embeddings.shape[1], keep=first_row > 0)
            assert sink is not None
            sink.write(row, embeddings)
            row += len(embeddings)
            if on_chunk is not None:
                on_chunk(row)
            stop = should_stop()
            if stop or time.monotonic() - saved >= seconds_between:
                save()
            if stop and row < len(file):
                raise KeyboardInterrupt
    except RankFailure:
        save()
        raise
    finally:
        mine.close()
        if writer is not None:
            writer.close()


def embed_chunks(
    file: Packed, encoder: Encoder, *, device: str, engine: str, first_row: int, every: int
) -> Generator[np.ndarray]:
    """Yield the embeddings, float32 [b, D], of the chunk at `first_row` and each `every`-th one after it."""
    if isinstance(encoder.model, nn.Module):
        encoder.model.to(device)
    loader = EvaluationLoader(
        file, encoder.view, batch_size=chunk_rows(encoder.view), device=device, engine=engine, first_row=first_row,
        every=every,
    )  # fmt: skip
    batches = iter(loader)
    try:
        with reproducible(device):
            for images, *_ in batches:
                yield embed_chunk(encoder, images)
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()


def _next_chunk(rank: int, row: int, mine: Iterator[np.ndarray], leader: Leader | None) -> np.ndarray:
    """Return the chunk at `row`, which is `rank`'s to make: this process's own, or what another sends."""
    if leader is None:
        return next(mine)
    leader.check()
    return next(mine) if rank == 0 else leader.chunk(rank, row)


class Sink(Protocol):
    """Takes embeddings chunk by chunk."""

    def write(self, row: int, values: np.ndarray) -> None:
        """Take float32 [b, D], of the rows from `row` on."""
        ...

    def sync(self) -> None:
        """Make safe on disk what was taken."""
        ...
