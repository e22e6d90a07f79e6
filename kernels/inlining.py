"""Helpers that are compiled into their callers, on a CPU and on a GPU."""

from numba.extending import register_jitable

from .helper_compiler import HelperCompiler

# Helpers say their flags too: otherwise a process keeps several copies of each, compiled for different callers, and the
# linker takes another one from a cold cache than from a warm one: 3 of 640 images had other last bits.
LOOSE = {"reassoc", "contract", "nsz"}
"""What sums and products of pixels may be: taken in another order, and fused."""

_HELPER = {
    "forceinline": True,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "pipeline_class": HelperCompiler,
}

inlined = register_jitable(**_HELPER)
exact = register_jitable(fastmath=False, **_HELPER)
loose = register_jitable(fastmath=LOOSE, **_HELPER)
