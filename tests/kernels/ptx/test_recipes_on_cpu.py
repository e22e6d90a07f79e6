"""The PTX of recipes' CUDA kernels, run on the CPU by a machine that checks every access, against the CPU engine.

What numba-cuda compiles is what runs, thread by thread in random order. Not shown: ptxas's work, weak memory order.
"""

from __future__ import annotations

import platform
import shutil
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from machine import Machine, compile_kernels

from fastload.augment import (
    Augment,
    CenterCrop,
    Erase,
    Jitter,
    MeanStd,
    PaperColor,
    PerImage,
    RandomCrop,
    RandomResizedCrop,
)
from fastload.augment.parameters import kernel_norm, kernel_numbers, kernel_recipe
from fastload.kernels import recipe_plan
from fastload.kernels.augment_cpu import batch_kernel, images_in_memory
from fastload.kernels.image_layout import ragged_layout, uniform_layout
from fastload.order import FAST, Order

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ to build the translated kernels with"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the machine switches threads in x86-64's way"),
]

SEED = 2**63 + 12_345
ROUNDING = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.uint8: 0.0}
STATISTICS = MeanStd((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Case(NamedTuple):
    """A recipe on images of some shape; `exact` where whole numbers alone decide about pixels."""

    augment: Augment
    shape: tuple[int, int, int]
    dtype: torch.dtype = torch.float32
    last: bool = False
    planar: bool = False
    kernel: str = "gathered"
    tabled: bool = True
    exact: bool = False
    ragged: bool = False

    @property
    def recipe(self):
        resample = self.augment.resizes(self.shape[:2]) or (self.ragged and self.augment.may_resize)
        return kernel_recipe(
            self.augment, channels=self.shape[2], dtype=self.dtype, channels_last=self.last, resample=resample
        )


LEVELS = {"dtype": torch.uint8, "exact": True}
RESIZED = Augment((9, 12), crop=RandomResizedCrop(), flip=0.5)
COLORS = Jitter(0.4, 0.4, 0.4, 0.1, probability=0.8)
CASES = {
    "part_resized": Case(RESIZED, (23, 31, 3), kernel="resident", **LEVELS),
    "part_enlarged": Case(Augment((12, 9), crop=RandomResizedCrop(), flip=0.5), (6, 5, 3), **LEVELS),
    "part_much_reduced": Case(Augment((3, 5), crop=RandomResizedCrop((0.5, 1.0)), flip=0.5), (90, 70, 3), **LEVELS),
    "part_resized_down_first": Case(
        Augment((4, 9), crop=RandomResizedCrop((0.5, 1.0)), flip=0.5), (70, 12, 3), **LEVELS
    ),
    "part_reduced_as_far_as_may_be": Case(
        Augment((2, 3), crop=RandomResizedCrop((0.9, 1.0), (1.4, 1.6)), flip=0.5), (128, 192, 3), **LEVELS
    ),
    "part_of_one_pixel": Case(Augment((3, 2), crop=RandomResizedCrop(), flip=0.5), (1, 1, 3), **LEVELS),
    "part_resized_without_tables": Case(RESIZED, (23, 31, 3), tabled=False, planar=True, **LEVELS),
    "part_resized_down_first_without_tables": Case(
        Augment((4, 9), crop=RandomResizedCrop((0.5, 1.0)), flip=0.5), (70, 12, 3), tabled=False, **LEVELS
    ),
    "imagenet": Case(Augment((9, 12), crop=RandomResizedCrop(), flip=0.5, normalize=STATISTICS), (23, 31, 3)),
    "all_steps": Case(
        Augment(
            (9, 12), crop=RandomResizedCrop(), flip=0.5, color=COLORS, grayscale=0.4, erase=Erase(0.5, value=0.25),
            normalize=STATISTICS,
        ),
        (23, 31, 3), dtype=torch.float16, last=True, planar=True, kernel="resident",
    ),
    "resized_then_cut": Case(
        Augment(
            (10, 8), crop=RandomCrop(resize=14), color=PaperColor(), grayscale=0.5, erase=Erase(0.5),
            normalize=PerImage(),
        ),
        (23, 31, 3), dtype=torch.bfloat16, kernel="resident",
    ),
    "evaluation": Case(Augment(10, crop=CenterCrop(12)), (23, 31, 4), last=True),
    "padded_by_reflection": Case(
        Augment((20, 17), crop=RandomCrop(pad=4), flip="alternating", normalize=STATISTICS), (20, 17, 3),
        kernel="resident",
    ),
    "padded_by_zeros": Case(
        Augment((20, 17), crop=RandomCrop(pad=30, mode="constant"), flip=0.5, erase=Erase(0.5, value=77.0)),
        (20, 17, 5), **LEVELS,
    ),
    "eight_channels": Case(
        Augment((11, 8), crop=RandomCrop(), flip=0.5, color=PaperColor(clamp=False), normalize=PerImage("variance")),
        (20, 17, 8), dtype=torch.float16,
    ),
    "one_channel": Case(
        Augment((11, 8), crop=RandomCrop(), color=Jitter(0.5, 0.9), normalize=PerImage()), (20, 17, 1),
        kernel="resident",
    ),
    "ragged_parts_resized": Case(RESIZED, (30, 24, 3), kernel="resident", ragged=True, **LEVELS),
    "ragged_parts_gathered": Case(RESIZED, (30, 24, 3), ragged=True, **LEVELS),
    "ragged_parts_without_tables": Case(RESIZED, (30, 24, 3), ragged=True, tabled=False, **LEVELS),
    "ragged_paper": Case(Augment.paper((12, 9)), (30, 24, 3), kernel="resident", ragged=True),
    "ragged_padded": Case(
        Augment((15, 14), crop=RandomCrop(pad=3), flip=0.5, normalize=STATISTICS), (30, 24, 3), ragged=True, last=True
    ),
    "ragged_evaluation": Case(
        Augment(10, crop=CenterCrop(12), normalize=PerImage()), (30, 24, 5), dtype=torch.float16, kernel="resident",
        ragged=True,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """The kernels of all cases as they are compiled for an H100; one that cannot be translated fails here."""
    wanted = {
        _name(case): [_name(case), case.kernel, list(case.recipe), case.tabled, case.ragged] for case in CASES.values()
    }
    folder = tmp_path_factory.mktemp("ptx")
    return Machine(folder, compile_kernels(folder, list(wanted.values())))


def _name(case: Case) -> str:
    return f"{case.kernel}_{int(case.tabled)}_{int(case.ragged)}_" + "_".join(map(str, case.recipe))


def aligned(size: int) -> np.ndarray:
    """Memory as torch gives it on a GPU, from a multiple of 512 bytes, and not a byte longer."""
    room = np.empty(size + 512, np.uint8)
    return room[-room.ctypes.data % 512 :][:size]


class Batch(NamedTuple):
    """What a kernel and the CPU engine made of a batch, as float64 [b, values], and what is wrong with the former."""

    got: np.ndarray
    want: np.ndarray
    wrong: list[str]


def augmented(
    machine, case: Case, *, rows=5, count=7, start=3, label_bytes=12, order_seed=1, yields=0.0, images=None
) -> Batch:
    """Run a batch through a kernel's PTX and through the CPU engine; ragged images have at most the case's sides."""
    rng = np.random.default_rng(order_seed)
    height, width, channels = case.shape
    if images is None:
        images = rng.integers(0, 256, (rows, *case.shape)).astype(np.uint8)
    shapes = np.array([case.shape[:2]] * rows, np.int32)
    if case.ragged:
        shapes = rng.integers(np.array(case.shape[:2]) // 2, np.array(case.shape[:2]) + 1, (rows, 2), np.int32)
    offsets = np.cumsum([0, *(shapes.prod(axis=1, dtype=np.int64) * channels)])
    turned = images.transpose(0, 3, 1, 2) if case.planar else images
    parts = [
        (one[:h, :w] if case.ragged else one).reshape(-1) for one, (h, w) in zip(turned, shapes.tolist(), strict=True)
    ]
    size = height * width * channels
    strides = (size, width, 1, height * width) if case.planar else (size, width * channels, channels, 1)
    layout = ragged_layout(channels, offsets, shapes) if case.ragged else uniform_layout(case.shape, strides)
    sides = np.unique(shapes, axis=0).tolist()
    ids = rng.permutation(2**40 - 7 * np.arange(rows))
    chosen, epochs = Order(rows, SEED, FAST, True).rows(start, count)
    recipe, numbers = case.recipe, kernel_numbers(case.augment)
    norm = kernel_norm(case.augment, channels, case.dtype)
    elements = int(numbers.height * numbers.width) * channels
    output = {torch.float32: np.float32, torch.uint8: np.uint8}.get(case.dtype, np.int16)
    plan_of: Any = (recipe, numbers, norm, layout, sides, SEED, FAST)

    machine.clear()
    out = machine.array("out", aligned(count * elements * np.dtype(output).itemsize), initialised=False)

    def upload(given):
        memory = aligned(given.size)
        memory[:] = given.reshape(-1)
        return machine.array("images", memory, read_only=True)

    if case.kernel == "resident":
        labels = machine.array("labels", rng.integers(0, 256, (rows, label_bytes)).astype(np.uint8), read_only=True)
        machine.array("ids", ids, read_only=True)
        memory = upload(np.concatenate(parts))
        for name, array in (("offsets", offsets), ("shapes", shapes)) if case.ragged else ():
            machine.array(name, array, read_only=True)
        plan = recipe_plan.plan(
            *plan_of, offsets=offsets.ctypes.data, shapes=shapes.ctypes.data, images=memory.ctypes.data,
            ids=ids.ctypes.data, labels=labels.ctypes.data, label_bytes=label_bytes, n=rows, shuffled=True,
        )  # fmt: skip
        out_labels = machine.array("out_labels", np.zeros((count, label_bytes), np.uint8), initialised=False)
        out_ids = machine.array("out_ids", np.zeros(count, np.int64), initialised=False)
        given = [start, out.ctypes.data, out_labels.ctypes.data, out_ids.ctypes.data]
    else:
        memory, plan = upload(np.concatenate([parts[row] for row in chosen])), recipe_plan.plan(*plan_of)
        address = memory.ctypes.data
        if case.ragged:
            sizes = np.diff(offsets)[chosen]
            begins = address + np.cumsum(sizes) - sizes
            places = machine.array("places", np.column_stack([begins, shapes[chosen]]), read_only=True)
            address = places.ctypes.data
        batch_ids, batch_epochs = (np.ascontiguousarray(one) for one in (ids[chosen], epochs))
        for name, array in (("ids", batch_ids), ("epochs", batch_epochs)):
            machine.array(name, array, read_only=True)
        given = [address, batch_ids.ctypes.data, batch_epochs.ctypes.data, out.ctypes.data]
    machine.array("plan", plan, read_only=True)
    blocks, threads, shared = recipe_plan.launch_shape(recipe, numbers, plan, count)
    assert case.tabled or not recipe.resample or recipe_plan.has_tables(recipe, numbers, plan)
    machine.launch(
        _name(case), blocks, (threads,), shared, [plan.ctypes.data, count, *given], seed=order_seed, yields=yields
    )

    twin = np.empty((count, elements), output)
    kernel = batch_kernel(recipe)
    memory_images = images_in_memory(np.concatenate(parts), layout)
    kernel(memory_images, chosen, ids[chosen], epochs, np.uint64(SEED), np.uint64(FAST), numbers, norm, twin)
    wrong = machine.complaints
    if machine.unwritten("out"):
        wrong.append("output that nobody wrote")
    if case.kernel == "resident" and not (
        np.array_equal(out_ids, ids[chosen]) and np.array_equal(out_labels, labels[chosen])
    ):
        wrong.append("other labels or ids")
    got, want = (_values(one, case.dtype) for one in (out.view(output).reshape(count, -1), twin))
    return Batch(got, want, wrong)


def _values(array: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    tensor = torch.from_numpy(array.copy())
    return (tensor if tensor.dtype == dtype else tensor.view(dtype)).double().numpy()


def assert_same(case: Case, batch: Batch) -> None:
    assert not batch.wrong, batch.wrong
    if case.exact:
        np.testing.assert_array_equal(batch.got, batch.want)
        return
    magnitude = np.maximum(1.0, np.abs(batch.want))
    allowed = (1e-4 + 2 * ROUNDING[case.dtype]) * magnitude
    assert np.all(np.abs(batch.got - batch.want) <= allowed), np.abs(batch.got - batch.want).max()


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_gives_what_the_cpu_engine_gives(machine, name):
    case = CASES[name]
    for seed, yields in ((1, 0.0), (2, 0.1)):
        assert_same(case, augmented(machine, case, order_seed=seed, yields=yields, start=3 + 10 * seed))


def test_parts_of_images_of_any_sides_are_resized_to_any_as_the_cpu_engine_resizes_them(machine):
    rng = np.random.default_rng(17)
    for number in range(60):
        shape = (*(int(side) for side in rng.integers(1, 200 if number % 6 == 0 else 48, 2)), 3)
        size = tuple(int(max(side, -(-of // 64))) for side, of in zip(rng.integers(1, 24, 2), shape, strict=False))
        crop = RandomResizedCrop((float(rng.uniform(0.01, 1.0)), 1.0), (0.2, 5.0))
        case = Case(Augment(size, crop=crop, flip=0.5), shape, **LEVELS, planar=bool(number % 2), tabled=number % 4 < 2)
        if case.tabled:
            case = case._replace(kernel="resident", planar=number % 2 == 1)
        batch = augmented(machine, case, count=3, order_seed=number + 1)
        assert not batch.wrong and np.array_equal(batch.got, batch.want), (number, case)


@pytest.mark.parametrize("name", ["part_resized", "all_steps", "resized_then_cut"])
def test_the_order_of_threads_changes_no_bit(machine, name):
    case = CASES[name]
    images = np.random.default_rng(5).integers(0, 256, (5, *case.shape)).astype(np.uint8)
    first = augmented(machine, case, images=images)
    for yields in (0.0, 0.2):
        again = augmented(machine, case, images=images, yields=yields)
        np.testing.assert_array_equal(first.got, again.got)


@pytest.mark.parametrize("name", ["part_resized", "all_steps", "eight_channels"])
def test_the_kernel_needs_every_barrier(machine, name):
    case = CASES[name]
    assert machine.barriers[_name(case)]
    try:
        for line in machine.barriers[_name(case)]:
            machine.leave_out_barrier(line)
            batch = augmented(machine, case, count=2, yields=0.02)
            assert batch.wrong, f"line {line}"
    finally:
        machine.leave_out_barrier(None)
