"""Every CUDA kernel compiles for every architecture that we name, to machine code without spills; no GPU is needed."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from places import ROOT

from fastload.augment import Augment, CenterCrop, PerImage, RandomCrop, RandomResizedCrop
from fastload.augment.parameters import kernel_norm, kernel_numbers, kernel_recipe
from fastload.kernels import augment, augment_plan, recipe_plan, topk_cuda
from fastload.kernels.image_layout import uniform_layout

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")

ARCHITECTURES = [(7, 5), (8, 0), (9, 0), (10, 0)]
RECIPES_ON = [(7, 5), (9, 0)]
"""`ptx_compile.py` compiles the kernels of recipes for these alone."""
IN_A_KERNEL_ONLY = {"blockIdx", "threadIdx", "gridDim", "grid", "gridsize"}


@pytest.fixture(scope="module")
def compiled():
    """What `ptx_compile.py` says of each kernel, by architecture."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment.pop("NUMBA_ENABLE_CUDASIM", None)
    running = {
        capability: subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "ptx_compile.py"), *map(str, capability)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for capability in ARCHITECTURES
    }
    reports = {}
    for capability, process in running.items():
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, f"{capability}: {errors[-4000:]}"
        reports[capability] = [json.loads(line) for line in output.splitlines()]
    return reports


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_every_kernel_compiles_to_ptx_of_the_architecture(compiled, capability):
    report = compiled[capability]
    assert {found["module"] for found in report} >= {"augment_cuda", "topk_cuda"}
    for found in report:
        architecture = f"sm_{capability[0]}{capability[1]}" + ("a" if capability >= (9, 0) else "")
        assert found["targets"] == [architecture], found
        assert len(found["entries"]) == 1 and found["function"] in found["entries"][0], found


def test_kernels_of_recipes_are_compiled_for_two_architectures(compiled):
    having = [key for key, report in compiled.items() if any(found["module"] == "recipe_cuda" for found in report)]
    assert having == RECIPES_ON


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
        if found["module"] == "augment_cuda":
            accesses = {re.sub(r"\.[bfs](\d+)$", r".u\1", access) for access in found["accesses"]}
            assert {"st.global.v4.u32", "st.global.v2.u32", "ld.global.nc.u32"} <= accesses, found
            # A load or store that is not told its memory asks for it each time.
            assert all(".global" in access for access in accesses), found


def warps_of(threads: int, registers: int) -> int:
    """How many warps of a kernel a multiprocessor holds: its registers are four quarters, given out by 8 a thread."""
    blocks_warps = -(-threads // 32)
    warps = 4 * (16_384 // (32 * (-(-registers // 8) * 8)))
    return warps // blocks_warps * blocks_warps


def shape_of(crop, count, *, channels=3, planar=False, last=False, kind=augment.FLOAT32):
    """What `launch_shape` says of a batch of crops out of larger images."""
    height, width = crop[0] + 8, crop[1] + 8
    strides = (channels * height * width, width, 1, height * width)
    if not planar:
        strides = (channels * height * width, width * channels, channels, 1)
    paper = Augment.paper(crop)
    recipe = kernel_recipe(paper, channels=channels, dtype=torch.float32, channels_last=last, resample=False)
    settings = augment_plan.settings_of(recipe, kernel_numbers(paper))
    plan = augment_plan.plan(settings, strides, (height, width, channels), 0, 0, last, kind)
    return augment_plan.launch_shape(plan, count)


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_two_blocks_of_large_images_share_a_multiprocessor(compiled, capability):
    for found in compiled[capability]:
        if found["module"] == "augment_cuda" and not found["linker"]:
            assert warps_of(augment_plan.THREADS, found["registers"]) >= 2 * augment_plan.THREADS // 32, found


@pytest.mark.parametrize("capability", ARCHITECTURES)
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_every_launch_of_the_augmentation_is_within_the_limits_of_the_device(compiled, capability, planar, last):
    sizes = [1, 2, 3, 4, 7, 8, 16, 21, 24, 28, 32, 33, 48, 64, 96, 224, 500, 4096]
    for crop in [(side, side) for side in sizes] + [(1, 4096), (4096, 1), (24, 21), (3, 8)]:
        for channels in (1, 2, 3, 4):
            for count in (1, 7, 1024, 2**20):
                blocks, (threads, images), dynamic = shape_of(crop, count, channels=channels, planar=planar, last=last)
                assert blocks * images >= count > (blocks - 1) * images and blocks < 2**31
                assert (
                    threads >= 1 and 1 <= images <= augment_plan.MAX_IMAGES and threads * images <= augment_plan.THREADS
                )
                assert dynamic >= threads * images * augment.MAX_CHANNELS * 8
                for found in compiled[capability]:
                    if found["module"] == "augment_cuda":
                        assert found["shared"] > 0 and found["shared"] + dynamic <= 48 * 1024, found
                        if not found["linker"]:
                            assert warps_of(threads * images, found["registers"]) > 0, found
                # The threads of an image set the order of its sums: they must not follow from the batch.
                assert threads == shape_of(crop, 64, channels=channels, planar=planar, last=last)[1][0]


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_recipes_load_and_store_without_asking_where_and_two_of_their_blocks_share_a_multiprocessor(
    compiled, capability
):
    for found in compiled[capability]:
        if found["module"] == "recipe_cuda":
            assert all(".global" in access for access in found["accesses"]), found
            if not found["linker"]:
                blocks = 1 if "without tables" in found["name"] else 2
                assert warps_of(recipe_plan.THREADS, found["registers"]) >= blocks * recipe_plan.THREADS // 32, found


LAUNCHES = [
    (crop, size, shape)
    for crop in (RandomResizedCrop(), CenterCrop(4096), RandomCrop(pad=3))
    for size in (1, 7, 24, 32, 224, (3, 500), 1024)
    for shape in ((1, 1, 3), (32, 32, 3), (256, 341, 3), (500, 375, 8), (9000, 3000, 1), (64 * 224, 64 * 224, 3))
]


@pytest.mark.parametrize("capability", RECIPES_ON)
@pytest.mark.parametrize("normalize", [None, PerImage()])
def test_every_launch_of_a_recipe_is_within_the_limits_of_the_device(compiled, capability, normalize):
    most = max(found["shared"] for found in compiled[capability] if found["module"] == "recipe_cuda")
    seen = set()
    for crop, size, shape in LAUNCHES:
        given = Augment(size, crop=crop, normalize=normalize)
        recipe = kernel_recipe(
            given, channels=shape[2], dtype=torch.float32, channels_last=False, resample=given.resizes(shape[:2])
        )
        numbers, norm = kernel_numbers(given), kernel_norm(given, shape[2], torch.float32)
        strides = (shape[0] * shape[1] * shape[2], shape[1] * shape[2], shape[2], 1)
        plan = recipe_plan.plan(recipe, numbers, norm, uniform_layout(shape, strides), [shape[:2]], 0, 0)
        seen.add((recipe.resample, recipe_plan.has_tables(recipe, numbers, plan)))
        for count in (1, 1024, 2**20):
            blocks, threads, dynamic = recipe_plan.launch_shape(recipe, numbers, plan, count)
            assert blocks == count and 1 <= threads <= recipe_plan.THREADS and threads % 32 == 0
            assert most + dynamic <= 48 * 1024
            # The threads of an image set the order of its sums: they must not follow from the batch.
            assert threads == recipe_plan.launch_shape(recipe, numbers, plan, 64)[1]
    assert seen == {(0, False), (1, False), (1, True)}


def test_small_images_share_blocks_and_a_batch_of_cifar_is_worked_on_at_once(compiled):
    blocks, (threads, images), _ = shape_of((24, 24), 1024)
    assert (blocks, threads, images) == (256, 72, 4)
    assert shape_of((32, 32), 1024)[1] == (86, 4) and shape_of((8, 8), 1024)[1] == (16, 8)
    assert shape_of((64, 64), 1024)[1] == (256, 1) and shape_of((224, 224), 1024)[1] == (384, 1)
    for found in compiled[(9, 0)]:
        if found["module"] == "augment_cuda" and not found["linker"]:
            for crop in (24, 28, 32):
                blocks, (threads, images), _ = shape_of((crop, crop), 1024)
                warps = -(-threads * images // 32)
                assert 132 * (warps_of(threads * images, found["registers"]) // warps) >= blocks, found


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_the_selection_loads_16_bytes_a_row_and_has_a_step_of_rows_under_way(compiled, capability):
    (found,) = [found for found in compiled[capability] if found["name"] == "top_slabs"]
    assert found["together"] == {"16": 4, "8": 8}, found


@pytest.mark.parametrize("capability", ARCHITECTURES)
@pytest.mark.parametrize("dims", [64, 216, 512, 768, 2048])
def test_the_selection_has_more_bytes_under_way_than_memory_of_4_8_tb_s_keeps_waiting(compiled, capability, dims):
    (found,) = [found for found in compiled[capability] if found["name"] == "top_slabs"]
    _, width, height = topk_cuda.slab_shape(dims)
    warps = -(-width * height // 32)
    if not found["linker"]:
        assert warps_of(width * height, found["registers"]) >= topk_cuda.SLAB_WARPS // warps * warps, found
    shared = 65_536 if capability == (7, 5) else 167_936
    blocks = topk_cuda.SLAB_WARPS // warps
    assert blocks * (found["shared"] + 1024) <= shared, found
    assert blocks * width * height * 64 >= 4.8e12 * 700e-9 / 132


def kernels_in(source: str) -> set[str]:
    """Names of the functions that are CUDA kernels: they ask for block or thread, and no other kernel calls them."""
    found = set()
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        decorators = {ast.unparse(decorator).partition("(")[0] for decorator in function.decorator_list}
        if any(
            name.endswith(("register_jitable", "exact", "loose", "inlined", "overload", "intrinsic"))
            for name in decorators
        ):
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
