"""The rule that chooses a run's feed: `fastload.loop.advice`."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastload.loop.advice import regime

RATES = st.floats(0.1, 1e7)


def test_what_fits_is_kept_however_fast_the_stream_is():
    for stream in (1.0, 1e6):
        found = regime(stream, 1000.0, fits=True, global_batch_size=256)
        assert (found.feed, found.refill, found.uses, found.warning) == ("resident", 0.0, math.inf, "")


@pytest.mark.parametrize("stream", [1000.0, 1000.5, 1e6])
def test_a_stream_that_keeps_up_is_used(stream):
    found = regime(stream, 1000.0, fits=False, global_batch_size=256)
    assert (found.feed, found.refill, found.warning) == ("stream", 1.0, "")
    assert f"{stream:,.0f}" in found.reason and "1,000" in found.reason


@given(RATES, RATES, st.integers(1, 1 << 16))
def test_a_slower_stream_fills_a_pool_with_nine_tenths_of_its_rate(stream, trainer, batch):
    found = regime(stream, trainer, fits=False, global_batch_size=batch)
    if stream >= trainer:
        assert found.feed == "stream"
        return
    arrivals = Fraction(found.refill).limit_denominator(batch) * batch
    assert found.feed == "rolling" and arrivals.denominator == 1
    steps = Fraction(trainer) / batch  # a second
    sustained = arrivals * steps <= Fraction(stream) * Fraction(9, 10) * (1 + Fraction(1, 10**9))
    assert 1 <= arrivals < max(2, batch) and (sustained or arrivals == 1)
    assert (arrivals + 1) * steps > Fraction(stream) * Fraction(9, 10) * (1 - Fraction(1, 10**9)), "more could arrive"
    assert found.uses == pytest.approx(float(batch / arrivals))


@pytest.mark.parametrize(("stream", "uses", "warned"), [(500, 2.22, False), (150, 7.53, False), (100, 11.1, True)])
def test_more_than_eight_uses_are_warned_of(stream, uses, warned):
    found = regime(stream, 1000.0, fits=False, global_batch_size=128)
    assert found.uses == pytest.approx(uses, rel=0.05)
    assert ("above 8" in found.warning) is warned


def test_of_files_that_can_be_cut_fewer_arrive_whole_than_a_stream_gives():
    stream = regime(1000, 4000, fits=False, global_batch_size=1000)
    slower = regime(1000, 4000, fits=False, global_batch_size=1000, arrival_rate=500)
    assert (stream.refill, slower.refill) == (0.225, 0.112)
    assert "whole images come at 500" in slower.reason and "whole" not in stream.reason
    assert regime(5000, 4000, fits=False, global_batch_size=1000, arrival_rate=500).feed == "stream"
