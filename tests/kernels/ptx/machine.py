"""The machine of machine.cpp from Python: kernels' PTX built into it, memory that is told, launches, complaints."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import translate

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
FLAGS = ["-O1", "-std=c++17", "-mf16c", "-mfma", "-ffp-contract=off", "-fno-strict-aliasing", "-w", "-fPIC", "-shared"]


def compile_kernels(folder: Path, kernels: list[list[Any]]) -> dict[str, str]:
    """Return the PTX for an H100 of kernels by name.

    `kernels`: of each [name, "place"], or [name, "resident" or "gathered", recipe, tabled, ragged].
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment.pop("NUMBA_ENABLE_CUDASIM", None)
    command = [sys.executable, str(ROOT / "tests" / "ptx_compile.py"), "9", "0", str(folder)]
    given = json.dumps(kernels)
    done = subprocess.run(command, env=environment, input=given, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return {path.stem: path.read_text("utf-8") for path in sorted(folder.glob("*.ptx"))}


class Machine:
    """Runs kernels; what it finds wrong is in `complaints`."""

    def __init__(self, folder: Path, kernels: dict[str, str]) -> None:
        source, library = folder / "kernels.cpp", folder / "machine.so"
        source.write_text(translate.to_cpp(kernels), "utf-8")
        command = ["g++", *FLAGS, f"-I{HERE}", "-o", str(library), str(source), str(HERE / "machine.cpp")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
        self._library = ctypes.CDLL(str(library))
        self._library.machine_complaints.restype = ctypes.c_char_p
        self._library.machine_unwritten.restype = ctypes.c_long
        self._parameters = {name: translate.parameters(ptx) for name, ptx in kernels.items()}
        self.barriers = {name: translate.barriers(ptx) for name, ptx in kernels.items()}

    def clear(self) -> None:
        """Forget all memory and complaints."""
        self._library.machine_clear()

    def leave_out_barrier(self, line: int | None) -> None:
        """Let no thread wait at the barrier of a line of the PTX, until another, or None, is named."""
        self._library.machine_leave_out_barrier(-1 if line is None else line)

    def memory(self, name: str, address: int, size: int, *, read_only: bool = False, initialised: bool = True) -> None:
        """Tell of memory that kernels may use, all the others being out of bounds."""
        self._library.machine_add_region(
            ctypes.c_uint64(address), ctypes.c_uint64(size), int(read_only), int(initialised), name.encode()
        )

    def array(self, name: str, array: np.ndarray, **how: bool) -> np.ndarray:
        """Tell of an array's memory, and return the array."""
        self.memory(name, array.ctypes.data, array.nbytes, **how)
        return array

    def launch(
        self, name: str, grid: int | Sequence[int], block: Sequence[int], dynamic_bytes: int,
        parameters: Sequence[int], *, seed: int = 1, yields: float = 0.0,
    ) -> None:  # fmt: skip
        """Run a kernel: blocks and threads in an order of `seed`, a thread giving way at an access with that chance."""
        assert len(parameters) == self._parameters[name]
        words = np.array([int(one) % 2**64 for one in parameters], np.uint64)
        blocks = (grid,) if isinstance(grid, int) else grid
        sizes = [(ctypes.c_uint32 * 3)(*([*given, 1, 1][:3])) for given in (blocks, block)]
        found = self._library.machine_launch(
            name.encode(), *sizes, dynamic_bytes, ctypes.c_void_p(words.ctypes.data), ctypes.c_uint64(seed),
            ctypes.c_double(yields),
        )  # fmt: skip
        assert found == 0, name

    @property
    def complaints(self) -> list[str]:
        return self._library.machine_complaints().decode("utf-8").splitlines()

    def unwritten(self, name: str) -> int:
        """Return how many bytes of memory that came uninitialised nobody wrote."""
        return self._library.machine_unwritten(name.encode())
