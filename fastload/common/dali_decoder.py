"""DALI, and the one operator that decodes images from files: in a training's stream, and where `pack` checks them."""

from __future__ import annotations

from typing import Any

from fastload.common.install import cuda_install_command
from fastload.errors import UsageError


def dali(what: str = 'engine="dali"') -> Any:
    """Import DALI, which takes seconds and is an extra. Raises UsageError, saying that `what` needs it, without it."""
    try:
        import nvidia.dali
        import nvidia.dali.fn
        import nvidia.dali.math
        import nvidia.dali.types
    except ImportError as error:
        raise UsageError(
            f"{what} needs DALI, which cannot be imported; {cuda_install_command()}; it runs without a GPU too"
        ) from error
    return nvidia.dali


def graph_input(name: str, dtype: Any, ndim: int, **settings: Any) -> Any:
    """Return an input of the graph; not copied unless asked, as runs are over before the caller goes on."""
    return dali().fn.external_source(name=name, dtype=dtype, ndim=ndim, **{"no_copy": True, **settings})


def decoded_files(device_id: int | None) -> Any:
    """Return the graph's input "samples", encoded files, decoded: upright RGB, uint8 HWC."""
    library = dali()
    files = graph_input("samples", library.types.UINT8, 1)
    device = "cpu" if device_id is None else "mixed"
    return library.fn.decoders.image(files, device=device, output_type=library.types.RGB, adjust_orientation=True)
