"""Order: the published Philox answers, a bijection for every n, and the same rows wherever they are computed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import philox as philox_reference
from reference import row_at

from fastload.errors import UsageError
from fastload.kernels import permute
from fastload.kernels.philox import bounded, philox4x32, unit_interval
from fastload.order import FAST, FINE_TUNE, ONCE, Order, permutation, sorted_by_label

# Random123-1.14.0, tests/kat_vectors: philox4x32 10 rounds, counter, key, answer.
KNOWN_ANSWERS = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, answer):
    got = philox4x32(*(np.uint64(word) for word in [*counter, *key]))
    assert [int(word) for word in got] == answer
    assert philox_reference(tuple(counter), tuple(key)) == answer


def test_words_map_to_the_ends_of_their_ranges():
    last = np.uint64(0xFFFFFFFF)
    assert bounded(np.uint64(0), np.uint64(7)) == 0
    assert bounded(last, np.uint64(7)) == 6
    assert unit_interval(np.uint64(0)) == 0.0
    assert unit_interval(last) == 1.0 - 2.0**-24


def test_the_permutation_is_a_bijection_for_every_n_to_2000():
    for n in range(1, 2001):
        rows, epochs = Order(n, seed=11, phase=FAST).rows(0, 2 * n)
        everything = np.arange(n)
        assert np.array_equal(np.sort(rows[:n]), everything)
        assert np.array_equal(np.sort(rows[n:]), everything)
        assert np.array_equal(epochs, np.repeat([0, 1], n))


@pytest.mark.parametrize("n", [2**31, 2**31 + 7, 2**32 + 1, 10**12 + 39])
def test_permuting_huge_sets_is_inverted_exactly(n):
    word = np.uint64
    half = permute.half_bits(word(n))
    keys = np.arange(8, dtype=np.uint64) * word(0x9E3779B1) & word(0xFFFFFFFF)
    offsets = np.unique(np.random.default_rng(n).integers(0, n, 300))
    images = [int(permute.permute(word(offset), word(n), half, keys)) for offset in offsets]
    assert len(set(images)) == len(offsets)
    assert all(0 <= image < n for image in images)
    assert [int(permute.unpermute(word(image), word(n), half, keys)) for image in images] == offsets.tolist()


@settings(deadline=None, max_examples=60)
@given(
    n=st.one_of(st.integers(1, 5000), st.integers(2**31, 2**40)),
    seed=st.integers(0, 2**64 - 1),
    phase=st.sampled_from([FAST, FINE_TUNE, ONCE]),
    data=st.data(),
)
def test_rows_equal_the_plain_reference(n, seed, phase, data):
    start = data.draw(st.integers(0, 5 * n))
    rows, epochs = Order(n, seed, phase).rows(start, 5)
    assert [row_at(start + i, n, seed, phase) for i in range(5)] == list(zip(rows, epochs, strict=True))


def test_epochs_phases_and_seeds_give_other_orders():
    n = 1000
    orders = [
        Order(n, 0, FAST).rows(0, n)[0],
        Order(n, 0, FAST).rows(n, n)[0],
        Order(n, 0, FINE_TUNE).rows(0, n)[0],
        Order(n, 1, FAST).rows(0, n)[0],
        Order(n, 2**32, FAST).rows(0, n)[0],
        np.arange(n),
    ]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            # Two random orders agree in one place on average.
            assert np.sum(one == other) < 10


@settings(deadline=None, max_examples=200)
@given(
    n=st.integers(1, 3000),
    block=st.integers(1, 64),
    window=st.integers(1, 40),
    seed=st.integers(0, 2**64 - 1),
)
def test_block_order_is_a_bijection_that_stays_within_its_window(n, block, window, seed):
    order = Order(n, seed, FINE_TUNE, "block", block, window)
    rows, _ = order.rows(0, 2 * n)
    assert np.array_equal(np.sort(rows[:n]), np.arange(n))
    assert np.array_equal(np.sort(rows[n:]), np.arange(n))
    for start in range(0, n, block * window):
        # Windows after the short block begin less than one block earlier, so a stretch meets at most two windows.
        stretch = rows[max(0, start) : start + block * window]
        assert len(np.unique(stretch // block)) <= 2 * window + 1


@given(
    n=st.integers(1, 3000),
    block=st.integers(1, 64),
    window=st.integers(1, 8),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 3),
)
def test_the_numbers_of_blocks_are_those_whose_rows_each_window_holds(n, block, window, seed, epoch):
    order = Order(n, seed, FINE_TUNE, "block", block, window)
    number = -(-n // block)
    blocks = order.blocks(epoch * number, number)
    assert sorted(blocks) == list(range(number))
    rows, _ = order.rows(epoch * n, n)
    begin = 0
    for first in range(0, number, window):
        held = [row for one in blocks[first : first + window] for row in range(one * block, min(n, (one + 1) * block))]
        assert sorted(rows[begin : begin + len(held)]) == sorted(held)
        begin += len(held)
    assert np.array_equal(order.blocks(epoch * number + 1, number)[: number - 1], blocks[1:])


def test_block_order_mixes_rows_within_a_window_and_blocks_over_the_file():
    rows, _ = Order(64 * 256, 5, FINE_TUNE, "block", block_rows=16, window_blocks=8).rows(0, 64 * 256)
    window = rows[:128]
    assert len(np.unique(window // 16)) == 8
    assert np.sum(np.diff(window) == 1) < 20
    assert np.ptp(window) > 64 * 64


def test_file_order_is_the_identity_and_wraps():
    rows, epochs = Order(5, shuffle=False).rows(3, 7)
    assert rows.tolist() == [3, 4, 0, 1, 2, 3, 4]
    assert epochs.tolist() == [0, 0, 1, 1, 1, 1, 1]


def test_a_batch_is_the_same_wherever_it_is_cut():
    order = Order(777, seed=3)
    whole = order.rows(0, 4000)[0]
    pieces = np.concatenate([order.rows(at, min(13, 4000 - at))[0] for at in range(0, 4000, 13)])
    assert np.array_equal(whole, pieces)


def test_permutation_is_the_once_phase():
    assert np.array_equal(permutation(100, 9), Order(100, 9, ONCE).rows(0, 100)[0])


def test_permutations_of_other_numbers_are_the_once_phase_s_other_epochs():
    rows, epochs = Order(100, 9, ONCE).rows(300, 100)
    assert np.array_equal(permutation(100, 9, 3), rows) and set(epochs.tolist()) == {3}
    assert sorted(rows.tolist()) == list(range(100)) and not np.array_equal(rows, permutation(100, 9))


def test_sorted_labels_are_recognized():
    assert sorted_by_label(np.array([0, 0, 1, 1]))
    assert not sorted_by_label(np.array([0, 1, 0]))
    assert not sorted_by_label(np.zeros(4))
    assert not sorted_by_label(np.zeros((4, 2)))


@pytest.mark.parametrize(
    "wrong", [{"n": 0}, {"n": 3, "seed": -1}, {"n": 3, "seed": 2**64}, {"n": 3, "shuffle": "blocks"}]
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(UsageError) as error:
        Order(**wrong)
    assert str(next(v for k, v in reversed(wrong.items()))) in str(error.value)
