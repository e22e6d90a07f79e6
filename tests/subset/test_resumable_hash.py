"""The hash whose state can be kept: the package xxhash's digests, however the bytes are cut and kept."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from fastload.subset.resumable_hash import ResumableHash

EDGES = [0, 1, 63, 64, 65, 128, 240, 241, 255, 256, 1023, 1024, 1025, 1088, 2048, 2049, 9000]


@pytest.mark.parametrize("length", EDGES)
def test_digests_are_those_of_the_package(length):
    data = np.random.default_rng(length).bytes(length)
    assert ResumableHash(data).hexdigest() == xxhash.xxh3_128_hexdigest(data)


@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.one_of(st.sampled_from(EDGES), st.integers(0, 3000)), max_size=6),
    kept_after=st.sets(st.integers(0, 5)),
)
def test_neither_cuts_nor_keeping_the_state_change_the_digest(seed, lengths, kept_after):
    rng = np.random.default_rng(seed)
    pieces = [rng.bytes(length) for length in lengths]
    hasher, reference = ResumableHash(b"start"), xxhash.xxh3_128(b"start")
    for i, piece in enumerate(pieces):
        hasher.update(piece)
        reference.update(piece)
        if i in kept_after:
            hasher = ResumableHash.restored(hasher.state())
        assert hasher.hexdigest() == reference.hexdigest()


def test_a_matrix_is_hashed_as_its_bytes():
    rows = np.random.default_rng(0).random((300, 7), np.float32)
    hasher = ResumableHash()
    hasher.update(rows)
    assert hasher.hexdigest() == xxhash.xxh3_128_hexdigest(rows.tobytes())
