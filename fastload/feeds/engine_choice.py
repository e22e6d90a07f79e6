"""Two engines make pixels from the same parameters: fused (one Numba kernel a batch) and dali (a DALI pipeline)."""

from __future__ import annotations

import numpy as np

from fastload.augment import Augment, checked
from fastload.errors import UsageError
from fastload.kernels import turbojpeg
from fastload.kernels.recipe_plan import MAX_CHANNELS
from fastload.packed.set import Packed

ENGINES = ("auto", "fused", "dali")

_MOST_WHOLE = 0.1


def choose_engine(engine: str, file: Packed, augment: Augment, *, on_cuda: bool = False) -> str:
    """Return "fused" or "dali" for a file; "auto" takes DALI only for what the fused engine does not do.

    Arguments:
        engine: one of `ENGINES`.
        file: the packed set.
        augment: what happens to each image.
        on_cuda: where batches are made; a kernel there takes fewer channels.

    Raises UsageError where the fused engine is asked for what it does not do, or the images cannot be augmented so.
    """
    if engine not in ENGINES:
        raise UsageError(f"engine={engine!r}; it is one of {', '.join(ENGINES)}")
    checked(augment)
    if file.shape is not None:
        augment.check(file.shape, str(file.path))
    else:
        augment.check_channels(file.channels, str(file.path))
    reason, spare = None, False
    if file.storage == "encoded":
        reason, spare = _why_not_decoded(file, on_cuda), _mostly_whole(file)
    elif on_cuda and file.channels > MAX_CHANNELS:
        reason = (
            f"{file.path} holds images of {file.channels} channels; on CUDA the fused engine takes up to {MAX_CHANNELS}"
        )
    if engine == "fused" and reason:
        raise UsageError(f'{reason}, so use engine="dali"')
    if engine == "auto":
        return "dali" if reason or spare else "fused"
    return engine


def _why_not_decoded(file: Packed, on_cuda: bool) -> str | None:
    """Return why the fused engine cannot decode a file's images; None where it can."""
    if on_cuda:
        return f"{file.path} holds encoded images, which the fused engine decodes on the CPU only"
    if file.jpeg is None:
        return (
            f"{file.path} holds encoded images without an index by which they could be cut (pack it again without "
            "as_is=True), and the fused engine decodes no others"
        )
    if not turbojpeg.load():
        return (
            f"{file.path} holds encoded images, which the fused engine decodes by libturbojpeg, and that is not "
            "installed (Debian: apt install libturbojpeg0)"
        )
    return None


def _mostly_whole(file: Packed) -> bool:
    """Whether more than a tenth of the files cannot be cut: Pillow, which decodes those, is slower than DALI."""
    return file.jpeg is not None and float(np.mean(file.jpeg.cuts[:, 0] == 0)) > _MOST_WHOLE


def check_scaled_decoding(asked: bool, file: Packed, engine: str) -> None:
    """Raise UsageError where scaled decoding is asked for and nothing decodes so."""
    if asked and (file.storage != "encoded" or engine != "fused"):
        what = "decodes by DALI" if file.storage == "encoded" else f"holds {file.storage} images"
        raise UsageError(
            f"scaled_decoding=True is for encoded files that the fused engine decodes; {file.path} {what}; leave it out"
        )
