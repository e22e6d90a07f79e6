"""Run by test_ptx.py, a process for each architecture: `ptx_compile.py MAJOR MINOR` prints a JSON line a kernel.
With a folder behind it, the kernels that standard input names are written there as PTX, for tests/kernels/ptx.

Nothing here needs a GPU. A process can compile for one architecture only: numba-cuda asks the current device for its
own when it types shared functions, so a stand-in device is put in its place. The target is the one that numba-cuda
takes on such a device: from 9.0 on with all that is that architecture's alone (sm_90a).
"""

import importlib
import json
import pkgutil
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import fastload.kernels
from fastload.kernels.cuda_target import cuda

# isort: split
import numba.cuda.codegen as codegen
import numba.cuda.dispatcher as dispatcher

ACCESS = r"\b((?:ld|st)\.global[\w.]*|ld\.[bu]\d+|st\.[bu]\d+)"


RECIPES_ON = (7, 5), (9, 0)
"""The kernels of recipes take as long to compile as all others together: for the oldest, and for one with its own."""

SHARED = r"\.shared\s+\.align\s+\d+\s+\.b8\s+\w+\[(\d+)\]"
WIDE = {16: r"\bld\.global\.nc\.v4\.[bfu]32\b", 8: r"\bld\.global\.nc\.(?:v2\.[bfu]32|[bu]64)\b"}


def together(ptx: str) -> dict[int, int]:
    """By width in bytes: the most loads with no branch, label or store between them, which can be under way at once."""
    runs = re.split(r"^(?:\$\w+:|\s*(?:@!?%p\d+\s+)?bra\b.*|\s*st\..*)$", ptx, flags=re.M)
    return {width: max(len(re.findall(load, run)) for run in runs) for width, load in WIDE.items()}


def ptxas_report(ptx: str, arch: str, most: int | None) -> dict:
    """What ptxas says of the machine code: bytes of stack and spills, registers (spills do not show in PTX)."""
    try:
        from cuda.core import Linker, LinkerOptions, ObjectCode
    except ImportError:
        return {"linker": "cuda.core has no Linker"}
    options = LinkerOptions(arch=arch, ptxas_options=["-v"], max_register_count=most)
    linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=options)
    linker.link("cubin")
    log = linker.get_info_log()
    stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if stack is None:
        return {"linker": f"no report: {log}"}
    registers = re.search(r"Used (\d+) registers", log)
    return {
        "linker": None,
        "stack": int(stack[1]),
        "spill_stores": int(stack[2]),
        "spill_loads": int(stack[3]),
        "registers": int(registers[1]) if registers else None,
    }


def write_kernels(folder: Path, target: tuple) -> None:
    """Compile each [name, "place"] or [name, kernel, recipe, tabled, ragged] of the JSON on standard input."""
    from fastload.kernels import place_cuda, recipe_cuda
    from fastload.kernels.recipe import Recipe

    makers = {"resident": recipe_cuda.resident_kernel, "gathered": recipe_cuda.gathered_kernel}
    for name, kernel, *given in json.load(sys.stdin):
        function, signature = place_cuda.place_images, place_cuda.SIGNATURE
        if kernel != "place":
            numbers, tabled, ragged = given
            function, signature = makers[kernel](Recipe(*numbers), tabled, ragged), recipe_cuda.SIGNATURE
        ptx, _ = cuda.compile(function, signature, cc=target, device=False, abi="numba")
        (folder / f"{name}.ptx").write_text(ptx, "utf-8")


def main() -> None:
    capability = (int(sys.argv[1]), int(sys.argv[2]))
    device = SimpleNamespace(compute_capability=capability)
    dispatcher.get_current_device = lambda: device
    codegen.devices.get_context = lambda: SimpleNamespace(device=device)
    target = codegen.CUDACodeLibrary._ensure_cc(None, None)
    if len(sys.argv) > 3:
        write_kernels(Path(sys.argv[3]), target)
        return
    for module in pkgutil.iter_modules(fastload.kernels.__path__):
        if module.name == "recipe_cuda" and capability not in RECIPES_ON:
            continue
        imported = importlib.import_module(f"fastload.kernels.{module.name}")
        for name, function, signature in getattr(imported, "CUDA_KERNELS", []):
            ptx, _ = cuda.compile(function, signature, cc=target, device=False, abi="numba")
            found = {
                "module": module.name,
                "name": name,
                "function": function.__name__,
                "signature": str(signature),
                "targets": re.findall(r"^\.target\s+(\S+)", ptx, re.M),
                "accesses": sorted(set(re.findall(ACCESS, ptx))),
                "together": together(ptx),
                "shared": sum(map(int, re.findall(SHARED, ptx))),
                "entries": re.findall(r"\.visible\s+\.entry\s+(\w+)", ptx),
                **ptxas_report(ptx, "sm_" + "".join(map(str, target)), getattr(imported, "MAX_REGISTERS", None)),
            }
            print(json.dumps(found), flush=True)


main()
