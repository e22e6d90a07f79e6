"""Two engines make pixels from the same parameters: fused (one Numba kernel a batch) and dali (a DALI pipeline)."""

from __future__ import annotations

from fastload.augment import Augment, checked
from fastload.errors import UsageError
from fastload.kernels.recipe_plan import MAX_CHANNELS
from fastload.packed.set import Packed

ENGINES = ("auto", "fused", "dali")


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
        augment.check_channels(3, str(file.path))
    reason = None
    if file.shape is None:
        reason = f"{file.path} holds encoded images, which must be decoded; the fused engine does not"
    elif on_cuda and file.shape[2] > MAX_CHANNELS:
        reason = (
            f"{file.path} holds images of {file.shape[2]} channels; on CUDA the fused engine takes up to {MAX_CHANNELS}"
        )
    if engine == "fused" and reason:
        raise UsageError(f'{reason}, so use engine="dali"')
    if engine == "auto":
        return "dali" if reason else "fused"
    return engine
