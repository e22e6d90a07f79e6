"""A loader's state as a checkpoint keeps it: what it holds, and whether it belongs to the loader that reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fastload.augment.recipe import first_edition
from fastload.common.arguments import integer, real
from fastload.errors import UsageError
from fastload.loop.policies import SwapPolicy

STATE_FORMAT = 2
"""Format 1 is read too: its augmentation was the paper's, with other numbers."""


class Snapshot(NamedTuple):
    """Where a run stands, as a checkpoint says it.

    Arguments:
        step: batches delivered.
        seconds: of wall-clock time by then.
        swap: the step of the swap as it was agreed, or None.
        callbacks: how many on_swap callbacks had returned, at the step of the swap.
        policy: what decides the swap, with what it had seen.
        rolling: the state of the run's pool, or None; see `renewal_state`.
    """

    step: int
    seconds: float
    swap: int | None
    callbacks: int
    policy: SwapPolicy
    rolling: Mapping[str, Any] | None = None


def state_of(snapshot: Snapshot, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint as plain numbers, text, lists and dicts; `identity` is what the loader must have again."""
    return {
        "fastload_state": STATE_FORMAT,
        "step": snapshot.step,
        "seconds": snapshot.seconds,
        "agreed_swap": snapshot.swap,
        "swap_callbacks": snapshot.callbacks,
        "plateau": snapshot.policy.history(),
        "rolling": snapshot.rolling,
        **identity,
    }


def snapshot_of(state: Any, identity: Mapping[str, Any], policy: SwapPolicy, ranks: int) -> Snapshot:
    """Return what a checkpoint says; raise UsageError, naming what differs, unless it belongs to this loader.

    Arguments:
        state: what `state_of` returned, after it was saved and loaded.
        identity: of this loader.
        policy: of this loader.
        ranks: its world size, for the error.
    """
    if isinstance(state, Mapping) and state.get("fastload_state") == 1:
        state = _upgraded(state)
    if not isinstance(state, Mapping) or state.get("fastload_state") != STATE_FORMAT:
        found = state.get("fastload_state") if isinstance(state, Mapping) else type(state).__name__
        raise UsageError(
            f"this is no state of a TwoPhaseLoader that this fastload can read (found {_short(found)}, it reads "
            f"format {STATE_FORMAT}); give what loader.state_dict() returned, or update fastload"
        )
    state = {"scaled_decoding": False, "refill": 0, **state}  # older states do not say it
    for name, value in identity.items():
        if _differs(state.get(name), value):
            raise UsageError(
                f"the state was saved with {name}={_short(state.get(name))}, this loader has {_short(value)}; "
                + _mend(name, state.get(name), ranks)
            )
    try:
        step, seconds = integer("step", state["step"], 0), real("seconds", state["seconds"])
        if not 0 <= seconds < math.inf:
            raise UsageError(f"seconds={seconds}; it must be 0 or more")
        swap = None if state["agreed_swap"] is None else integer("agreed_swap", state["agreed_swap"], 0)
        callbacks = integer("swap_callbacks", state.get("swap_callbacks", 0), 0)  # older states have none
        policy = policy.restored(state)
    except (LookupError, TypeError, AttributeError, UsageError) as error:
        raise UsageError(f"the state is damaged ({error}); load an earlier one") from error
    return Snapshot(step, seconds, swap, callbacks, policy, state.get("rolling"))


def _upgraded(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state of format 1 as one of the present format."""
    try:
        augment = first_edition(state["augment"]).state()
    except (LookupError, TypeError, UsageError) as error:
        raise UsageError(f"the state is damaged ({error}); load an earlier one") from error
    later = {"views": 1, "mix": None, "transform": None}
    return {**state, "fastload_state": STATE_FORMAT, "augment": augment, **later}


def _mend(name: str, found: Any, ranks: int) -> str:
    """Return what to do about a setting that differs from the state's."""
    if name != "global_batch_size" or not isinstance(found, int) or isinstance(found, bool) or found < 1:
        return "make the loader as it was"
    of = "this one rank" if ranks == 1 else f"these {ranks:,} ranks"
    if found % ranks:
        return f"it is batch_size times the ranks, and {ranks:,} ranks do not divide {found:,}: take another number"
    return f"it is batch_size times the ranks, so give batch_size={found // ranks} on {of}"


def _differs(found: Any, value: Any) -> bool:
    """Whether a setting of a state is not this loader's; True and 1 are two, however deep they lie."""
    if isinstance(value, Mapping):
        if not isinstance(found, Mapping) or found.keys() != value.keys():
            return True
        return any(_differs(found[name], one) for name, one in value.items())
    if isinstance(value, list):
        if not isinstance(found, list) or len(found) != len(value):
            return True
        return any(map(_differs, found, value))
    try:
        return bool(found != value) or _is_flag(found) != _is_flag(value)
    except (RuntimeError, ValueError):  # an array or a tensor of several elements
        return True


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
