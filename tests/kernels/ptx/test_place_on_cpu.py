"""The PTX of the kernel that fills a pool on the device, run on the CPU, and batches drawn out of such a pool."""

from __future__ import annotations

import platform
import shutil

import numpy as np
import pytest
import torch
from machine import Machine, compile_kernels

from fastload.augment import Augment, Jitter, RandomResizedCrop
from fastload.augment.parameters import kernel_norm, kernel_numbers, kernel_recipe
from fastload.kernels import place_cuda, recipe_plan
from fastload.kernels.augment_cpu import batch_kernel, images_in_memory
from fastload.kernels.image_layout import ragged_layout
from fastload.order import FAST

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ to build the translated kernels with"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the machine switches threads in x86-64's way"),
]

SEED = 2**63 + 12_345
CANARY = 0xA5
RECIPES = {
    "parts": (Augment((9, 12), crop=RandomResizedCrop(), flip=0.5), torch.uint8),
    "colours": (
        Augment(
            (9, 12), crop=RandomResizedCrop(), flip=0.5, color=Jitter(0.4, 0.4, 0.4, 0.1), grayscale=0.4,
            normalize=Augment.imagenet(9).normalize,
        ),
        torch.float32,
    ),
}  # fmt: skip


def recipe_of(name: str):
    augment, dtype = RECIPES[name]
    return kernel_recipe(augment, channels=3, dtype=dtype, channels_last=False, resample=True)


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ptx")
    recipes = [[name, "gathered", list(recipe_of(name)), True, True] for name in RECIPES]
    return Machine(folder, compile_kernels(folder, [["place", "place"], *recipes]))


def memory_at(remainder: int, size: int) -> np.ndarray:
    """uint8 [size] whose address leaves a remainder by 16."""
    room = np.empty(size + 32, np.uint8)
    return room[(remainder - room.ctypes.data) % 16 :][:size]


def place(machine, source, offsets, pool, places, sizes, *, parts=None, threads=None, seed=1, yields=0.0):
    """Run the kernel; it may touch the source, the table, and of the pool what it is to write."""
    table = np.column_stack([offsets, pool.ctypes.data + places, sizes]).astype(np.int64)
    machine.clear()
    machine.array("source", source, read_only=True)
    machine.array("table", table, read_only=True)
    for k, (begin, size) in enumerate(zip(places.tolist(), sizes.tolist(), strict=True)):
        machine.memory(f"slot {k}", pool.ctypes.data + begin, size, initialised=False)
    blocks, own_threads = place_cuda.launch_shape(sizes)
    if parts is not None:
        blocks, own_threads = (len(sizes), parts), threads
    given = [source.ctypes.data, table.ctypes.data]
    machine.launch("place", blocks, (own_threads,), 0, given, seed=seed, yields=yields)
    assert not machine.complaints, machine.complaints
    assert not any(machine.unwritten(f"slot {k}") for k in range(len(sizes)))


def scattered(rng: np.random.Generator, sizes: np.ndarray, gap: int) -> tuple[np.ndarray, int]:
    """Where images of these sizes may lie, in any order with up to `gap` bytes around each, and where all end."""
    order = rng.permutation(len(sizes))
    ends = np.cumsum(sizes[order] + rng.integers(0, gap + 1, len(sizes)))
    places = np.empty(len(sizes), np.int64)
    places[order] = ends - sizes[order]
    return places, int(ends[-1]) + int(rng.integers(0, gap + 1))


def wanted_of(source, offsets, pool, places, sizes) -> np.ndarray:
    wanted = pool.copy()
    for offset, begin, size in zip(offsets, places, sizes, strict=True):
        wanted[begin : begin + size] = source[offset : offset + size]
    return wanted


def test_images_of_any_sizes_and_places_are_copied_and_nothing_else_is_touched(machine):
    rng = np.random.default_rng(11)
    for number in range(150):
        sizes = rng.integers(1, int(rng.choice([2, 17, 40, 400])) + 1, int(rng.integers(1, 9)))
        (offsets, source_end), (places, end) = scattered(rng, sizes, 20), scattered(rng, sizes, 20)
        if number % 3 == 0:  # places that leave the remainders of the source's
            places, end = offsets.copy(), source_end
        source = memory_at(int(rng.integers(16)), source_end)
        source[:] = rng.integers(0, 256, source_end)
        pool = memory_at(source.ctypes.data % 16 if number % 3 == 0 else int(rng.integers(16)), end)
        pool[:] = CANARY
        wanted = wanted_of(source, offsets, pool, places, sizes)
        parts, threads = int(rng.integers(1, 4)), int(rng.choice([1, 7, 32]))
        place(machine, source, offsets, pool, places, sizes, parts=parts, threads=threads, seed=number + 1)
        assert np.array_equal(pool, wanted), number


def test_every_remainder_of_both_addresses_and_every_small_size(machine):
    rng = np.random.default_rng(12)
    sizes = np.arange(1, 52)
    ends = np.cumsum(sizes + 16) + 16
    source = rng.integers(0, 256, int(ends[-1]) + 16).astype(np.uint8)
    for shift in range(16):
        offsets = ends - sizes - sizes % 16
        places = offsets + shift  # so that sizes meet every remainder
        pool = np.full(len(source), CANARY, np.uint8)
        wanted = wanted_of(source, offsets, pool, places, sizes)
        place(machine, source, offsets, pool, places, sizes, parts=1, threads=8, yields=0.05)
        assert np.array_equal(pool, wanted), shift


@pytest.mark.parametrize("sizes", [[100_003], [3072] * 5, [40_000, 1, 16_384, 16_385]], ids=str)
def test_launches_for_few_large_and_for_many_small_images(machine, sizes):
    rng, sizes = np.random.default_rng(13), np.array(sizes)
    places, end = scattered(rng, sizes, 9)
    source = rng.integers(0, 256, int(sizes.sum())).astype(np.uint8)
    offsets = np.cumsum(sizes) - sizes
    pool = np.full(end, CANARY, np.uint8)
    wanted = wanted_of(source, offsets, pool, places, sizes)
    place(machine, source, offsets, pool, places, sizes)
    assert np.array_equal(pool, wanted)


def test_a_launch_has_blocks_for_all_bytes_and_not_more_than_the_images_need():
    for sizes in ([1], [3072] * 1024, [562_500] * 32, [150_528] * 256, [10, 200_000_000]):
        (blocks, parts), threads = place_cuda.launch_shape(np.array(sizes))
        assert blocks == len(sizes) and threads % 32 == 0 and 1 <= parts <= 64
        assert parts == 1 or (parts - 1) * 16_384 < max(sizes)


@pytest.mark.parametrize("name", RECIPES)
def test_batches_drawn_out_of_a_pool_whose_slots_were_renewed_are_those_of_the_images(machine, name):
    """Arrivals in rounds, of which the later ones take the places of the first: as in a ring of bytes."""
    augment, dtype = RECIPES[name]
    recipe, numbers, norm = recipe_of(name), kernel_numbers(augment), kernel_norm(augment, 3, dtype)
    rng = np.random.default_rng(14)
    shapes = rng.integers(6, 30, (12, 2)).astype(np.int32)
    images = [rng.integers(0, 256, (*sides, 3)).astype(np.uint8) for sides in shapes.tolist()]
    sizes = shapes.prod(axis=1, dtype=np.int64) * 3
    room = int(sizes.max()) + 5  # slots of one size, at addresses of every remainder
    pool, slots, held = np.full(8 * room, CANARY, np.uint8), np.arange(8) * room, np.full(8, -1)
    for first in range(0, 12, 4):
        arrivals, into = np.arange(first, first + 4), np.arange(first, first + 4) % 8
        offsets = np.cumsum(sizes[arrivals] + 3) - sizes[arrivals]
        source = np.zeros(int(offsets[-1] + sizes[arrivals[-1]]), np.uint8)
        for offset, row in zip(offsets, arrivals, strict=True):
            source[offset : offset + sizes[row]] = images[row].reshape(-1)
        place(machine, source, offsets, pool, slots[into], sizes[arrivals])
        held[into] = arrivals

    drawn = np.array([7, 0, 3, 3, 5, 1, 6])
    rows, ids, epochs = held[drawn], 2**33 + 7 * held[drawn], np.array([0, 2, 2, 3, 1, 0, 4])
    layout = ragged_layout(3, np.cumsum([0, *sizes]), shapes)
    plan = recipe_plan.plan(recipe, numbers, norm, layout, np.unique(shapes, axis=0).tolist(), SEED, FAST)
    table = np.column_stack([pool.ctypes.data + slots[drawn], shapes[rows]]).astype(np.int64)
    elements = int(numbers.height * numbers.width) * 3
    output = np.uint8 if dtype == torch.uint8 else np.float32
    got, want = np.zeros((2, len(drawn), elements), output)
    machine.clear()
    for what, array in (("plan", plan), ("table", table), ("ids", ids), ("epochs", epochs)):
        machine.array(what, array, read_only=True)
    for slot in set(drawn.tolist()):
        machine.memory(f"slot {slot}", pool.ctypes.data + int(slots[slot]), int(sizes[held[slot]]), read_only=True)
    machine.array("out", got, initialised=False)
    blocks, threads, shared = recipe_plan.launch_shape(recipe, numbers, plan, len(drawn))
    addresses = [one.ctypes.data for one in (table, ids, epochs, got)]
    machine.launch(name, blocks, (threads,), shared, [plan.ctypes.data, len(drawn), *addresses])
    assert not machine.complaints and not machine.unwritten("out"), machine.complaints

    memory = np.concatenate([image.reshape(-1) for image in images])
    given = rows, ids, epochs, np.uint64(SEED), np.uint64(FAST), numbers, norm, want
    batch_kernel(recipe)(images_in_memory(memory, layout), *given)
    allowed = 0 if dtype == torch.uint8 else 1e-4 * np.maximum(1, np.abs(want))
    assert (np.abs(got.astype(np.float64) - want) <= allowed).all()
