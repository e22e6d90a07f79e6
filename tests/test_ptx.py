"""Every CUDA kernel compiles for every architecture that we name, to machine code without spills; no GPU is needed."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = [(7, 5), (8, 0), (9, 0), (10, 0)]
IN_A_KERNEL_ONLY = {"blockIdx", "threadIdx", "gridDim", "grid", "gridsize"}


@pytest.fixture(scope="module")
def compiled():
    """What `ptx_compile.py` says of each kernel, by architecture."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment.pop("NUMBA_ENABLE_CUDASIM", None)
    running = {
        capability: subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "ptx_compile.py"), *map(str, capability)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for capability in ARCHITECTURES
    }  # fmt: skip
    reports = {}
    for capability, process in running.items():
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, f"{capability}: {errors[-4000:]}"
        reports[capability] = [json.loads(line) for line in output.splitlines()]
    return reports


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_every_kernel_compiles_to_ptx_of_the_architecture(compiled, capability):
    report = compiled[capability]
    assert {found["module"] for found in report} >= {"augment", "topk"}
    for found in report:
        assert found["targets"] == [f"sm_{capability[0]}{capability[1]}"], found
        assert len(found["entries"]) == 1 and found["function"] in found["entries"][0], found


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_no_kernel_spills_registers_or_uses_a_stack(compiled, capability):
    for found in compiled[capability]:
        if found["linker"]:
            pytest.skip(f"ptxas's report cannot be had here: {found['linker']}")
        assert found["spill_stores"] == found["spill_loads"] == found["stack"] == 0, found
        assert found["registers"] <= 255 and found["registers"] * 256 <= 65_536, found


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_the_augmentation_stores_16_bytes_and_reads_words_that_nobody_writes(compiled, capability):
    for found in compiled[capability]:
        if found["module"] == "augment":
            accesses = {re.sub(r"\.b(\d+)$", r".u\1", access) for access in found["accesses"]}
            assert {"st.global.v4.u32", "st.global.v2.u32", "ld.global.nc.u32"} <= accesses, found
            # A load or store that is not told its memory asks for it each time.
            assert all(".global" in access for access in accesses), found


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_two_blocks_of_large_images_share_a_multiprocessor(compiled, capability):
    for found in compiled[capability]:
        if found["module"] == "augment" and not found["linker"]:
            registers = -(-found["registers"] // 8) * 8  # as they are given out
            assert 2 * found["threads"] * registers <= 65_536, found


def kernels_in(source: str) -> set[str]:
    """Names of the functions that are CUDA kernels: they ask for block or thread, and no other kernel calls them."""
    found = set()
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        decorators = {ast.unparse(decorator).partition("(")[0] for decorator in function.decorator_list}
        if any(name.endswith(("register_jitable", "exact", "loose", "overload", "intrinsic")) for name in decorators):
            continue
        inner = [node for part in function.body for node in ast.walk(part) if isinstance(node, ast.FunctionDef)]
        of_inner = {id(node) for one in inner for node in ast.walk(one)}
        for node in ast.walk(function):
            if (
                id(node) not in of_inner
                and isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "cuda"
                and node.attr in IN_A_KERNEL_ONLY
            ):
                found.add(function.name)
    return found


def test_the_search_for_kernels_finds_them():
    assert kernels_in("def k(x):\n  x[cuda.blockIdx.x] = 1\n") == {"k"}
    assert kernels_in("def make():\n  @cuda.jit\n  def k(x):\n    x[cuda.grid(1)] = 1\n  return k\n") == {"k"}
    assert kernels_in("@register_jitable\ndef part(x):\n  return cuda.threadIdx.x\n") == set()


def test_every_kernel_in_the_folder_is_listed(compiled):
    listed = {(found["module"], found["function"]) for found in compiled[ARCHITECTURES[0]]}
    written = {
        (path.stem, name) for path in (ROOT / "kernels").glob("*.py") for name in kernels_in(path.read_text("utf-8"))
    }
    assert written and written == listed, "each module's CUDA_KERNELS must name each of its kernels"
