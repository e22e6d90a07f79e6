"""libturbojpeg, called by compiled code: decode a JPEG file without the GIL. No package on PyPI brings the library.

TurboJPEG's interface has been the same since libjpeg-turbo 1.2, and 3.0 kept it (`tjDecompress2` and its like).
"""

import ctypes
import sys
from functools import cache
from pathlib import Path

import llvmlite.binding
import numpy as np
from numba import types

from .cpu_memory import get_byte
from .inlining import exact

RGB = np.int32(0)
STRICT = np.int32(8192)
"""A damaged file is an error (TJFLAG_STOPONWARNING); colours are smoothed and sums exact, as they are by default."""

_NAMES = ("libturbojpeg.so.0", "libturbojpeg.so")

_init = types.ExternalFunction("tjInitDecompress", types.uintp())
_destroy = types.ExternalFunction("tjDestroy", types.int32(types.uintp))
_decompress = types.ExternalFunction(
    "tjDecompress2",
    types.int32(
        types.uintp,
        types.uintp,
        types.uint64,
        types.uintp,
        types.int32,
        types.int32,
        types.int32,
        types.int32,
        types.int32,
    ),
)
_reason = types.ExternalFunction("tjGetErrorStr2", types.uintp(types.uintp))


@cache
def load() -> bool:
    """Find the library where the system's linker does, or in the environment's own folder (conda); return whether it is
    there. Compiled code that calls it can be loaded only after that.
    """
    for name in (*_NAMES, *(str(Path(sys.prefix, "lib", name)) for name in _NAMES)):
        try:
            library = ctypes.CDLL(name)
            for function in ("tjInitDecompress", "tjDestroy", "tjDecompress2", "tjGetErrorStr2"):
                getattr(library, function)
            llvmlite.binding.load_library_permanently(name)
        except (OSError, AttributeError, RuntimeError):
            continue
        return True
    return False


@exact
def open_decoder():
    """Return a decoder, which decodes one file at a time; 0 where there is no memory for it."""
    return _init()


@exact
def close_decoder(decoder):
    """Free a decoder."""
    _destroy(decoder)


@exact
def decode_jpeg(decoder, data, size, height, width, out):
    """Decode a file of height × width pixels, or of some larger by 2, 4 or 8; return whether that was possible.

    Arguments:
        decoder: a decoder.
        data: address of the file.
        size: its bytes, and what may follow them.
        height: of the output.
        width: of the output.
        out: address of uint8 [height, width, 3], filled.
    """
    return (
        _decompress(
            decoder,
            np.uint64(data),
            np.uint64(size),
            np.uint64(out),
            np.int32(width),
            np.int32(0),
            np.int32(height),
            RGB,
            STRICT,
        )
        == 0
    )


@exact
def copy_reason(decoder, message):
    """Copy why a file could not be decoded to uint8 `message`."""
    text = np.int64(_reason(decoder))
    for k in range(message.size):
        message[k] = get_byte(text, k)
        if message[k] == 0:
            break
