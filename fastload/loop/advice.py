"""Which feed serves a run, from two rates: the rule of `feed="auto"` and of `python -m fastload.bench advise`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

MARGIN = 0.9
"""The share of the stream's rate that arrivals may take: a disk or a decoder is slower than its average for a while."""

MOST_USES = 8.0
"""Uses of a sample above which `regime` warns: each arrival then serves so many steps that little new is seen."""


@dataclass(frozen=True)
class Regime:
    """The feed that serves a run best.

    Attributes:
        feed: "resident": the whole set is kept on the device; "stream": it is read as training goes on; "rolling": a
            pool on the device is renewed from the stream.
        refill: arrivals a step as a share of the batch: 0 of a resident set, 1 of a stream, between the two of a
            rolling pool.
        reason: why, in a sentence with the two rates.
        warning: what to expect where a sample serves more than MOST_USES steps, in a sentence, or "".
    """

    feed: Literal["resident", "stream", "rolling"]
    refill: float
    reason: str
    warning: str = ""

    @property
    def uses(self) -> float:
        """Steps that a sample serves, on average, from its arrival until it is replaced; infinite without arrivals."""
        return 1 / self.refill if self.refill else math.inf


def regime(
    stream_rate: float,
    trainer_rate: float,
    *,
    fits: bool,
    global_batch_size: int,
    arrival_rate: float | None = None,
) -> Regime:
    """Return the feed that serves a run: what fits is kept, a stream that keeps up is used, and any other fills a pool.

    Arguments:
        stream_rate: images/s that the stream feeds of all ranks give together, above 0.
        trainer_rate: images/s that training takes on all ranks when it never waits, above 0.
        fits: the whole set fits the memory that it may have.
        global_batch_size: images a step on all ranks.
        arrival_rate: images/s that can arrive in a pool, where that is less than the stream's rate: whole files are
            decoded for it, and of files that can be cut a stream decodes the crops only.
    """
    if fits:
        return Regime("resident", 0.0, "the whole set fits")
    rates = f"the stream gives {_rate(stream_rate)} images/s and training takes {_rate(trainer_rate)}"
    coming = stream_rate if arrival_rate is None else min(arrival_rate, stream_rate)
    if stream_rate >= trainer_rate:
        return Regime("stream", 1.0, f"{rates}: the stream keeps up")
    arrivals = max(1, math.floor(MARGIN * global_batch_size * coming / trainer_rate))
    refill = arrivals / global_batch_size
    if coming < stream_rate:
        rates = f"{rates}; whole images come at {_rate(coming)}"
    reason = (
        f"{rates}: {arrivals:,} of the batch's {global_batch_size:,} arrive each step, each serves {1 / refill:.3g}"
    )
    return Regime("rolling", refill, reason, too_many_uses(refill))


def too_many_uses(refill: float) -> str:
    """Return a warning where samples serve more than MOST_USES steps, else "".

    Arguments:
        refill: arrivals a step as a share of the batch, above 0.
    """
    if 1 / refill <= MOST_USES:
        return ""
    return (
        f"each sample serves {1 / refill:.3g} steps, and above {MOST_USES:g} accuracy suffers: make the stream faster, "
        "by smaller files, more processors or a faster disk"
    )


def _rate(images: float) -> str:
    return f"{images:,.0f}" if images >= 10 else f"{images:.2g}"
