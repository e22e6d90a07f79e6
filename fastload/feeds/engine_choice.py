"""Two engines make pixels from the same parameters: fused (one Numba kernel a batch) and dali (a DALI pipeline)."""

from __future__ import annotations

from fastload.augment import Augment, checked
from fastload.errors import UsageError
from fastload.kernels.augment import MAX_CHANNELS
from fastload.packed.set import Packed

ENGINES = ("auto", "fused", "dali")


def choose_engine(engine: str, file: Packed, augment: Augment) -> str:
    """Return "fused" or "dali" for a file; "auto" takes DALI only for what the fused engine does not do.

    Raises UsageError where the fused engine is asked for what it does not do, or the crop does not fit.
    """
    if engine not in ENGINES:
        raise UsageError(f"engine={engine!r}; it is one of {', '.join(ENGINES)}")
    checked(augment)
    if file.shape is not None:
        augment.check(file.shape, str(file.path))
    reason = None
    if file.shape is None:
        reason = f"{file.path} holds encoded images, which must be decoded"
    elif augment.needs_resize(file.shape):
        reason = f"{file.path} holds {file.shape[0]}×{file.shape[1]} images, which must be resized to {augment.resize}"
    mend = 'the fused engine does not, so use engine="dali" (or pack it with resize=)'
    if file.shape is not None and file.shape[2] > MAX_CHANNELS:
        reason = f"{file.path} holds images of {file.shape[2]} channels"
        mend = f'the fused engine takes up to {MAX_CHANNELS}, so use engine="dali"'
    if engine == "fused" and reason:
        raise UsageError(f"{reason}; {mend}")
    if engine == "auto":
        return "dali" if reason else "fused"
    return engine
