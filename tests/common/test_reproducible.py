"""Reproducible CUDA work changes torch's settings for its own time only, however the program has set them."""

from __future__ import annotations

import os
import sys
import warnings

import pytest
import torch
from places import ROOT
from programs import run_programs
from torch.utils import deterministic

from fastload.common.reproducible import reproducible

PROGRAM = """
import os, sys
from contextlib import nullcontext
import torch
from fastload.common.reproducible import reproducible

backends = torch.backends
PLACES = [backends, backends.cudnn, backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul]


def either(ask):
    try:
        return ask()
    except RuntimeError:  # the older settings cannot be asked beside the newer ones
        return "mixed"


def seen():
    flags = backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic
    older = either(lambda: backends.cudnn.allow_tf32), either(torch.get_float32_matmul_precision)
    return [place.fp32_precision for place in PLACES], flags, older


def check(settings, inside):
    exec(settings)
    before = seen()
    with inside("cuda:0"), inside("cuda"):
        now = [place.fp32_precision for place in PLACES[2:]]
        if inside is reproducible:
            assert "tf32" not in now and backends.cudnn.deterministic and not backends.cudnn.benchmark, now
    assert seen() == before, (settings, before, seen())
    if "fp32_precision" in settings:  # what was inherited is inherited still
        backends.fp32_precision = "tf32" if backends.fp32_precision == "ieee" else "ieee"
    return repr(seen()).encode()


def alone(settings, inside):
    read, write = os.pipe()
    if os.fork() == 0:  # with settings of its own
        os.write(write, check(settings, inside))
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as found:
        return found.read()


for settings in sys.argv[1:]:
    found, expected = alone(settings, reproducible), alone(settings, nullcontext)
    assert found == expected != "", (settings, found, expected)
    print("checked")
"""
SETTINGS = [
    "",
    "backends.fp32_precision = 'tf32'",
    "backends.fp32_precision = 'ieee'",
    "backends.cudnn.fp32_precision = 'ieee'",
    "backends.cudnn.conv.fp32_precision = 'ieee'",
    "backends.fp32_precision = 'tf32'; backends.cudnn.rnn.fp32_precision = 'ieee'",
    "backends.cuda.matmul.fp32_precision = 'tf32'",
    "torch.set_float32_matmul_precision('high')",
    "torch.set_float32_matmul_precision('medium'); backends.cudnn.allow_tf32 = False",
    "backends.cudnn.benchmark = True; backends.cudnn.enabled = False",
]


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch has only the older settings")
def test_precisions_are_exact_inside_and_as_the_program_set_them_after():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    halves = [[*command, *settings] for settings in (SETTINGS[::2], SETTINGS[1::2])]
    for told in run_programs(halves, environment, timeout=120):
        assert told.split() == ["checked"] * (len(SETTINGS) // 2)


@pytest.mark.parametrize("filled", [True, False])
def test_new_tensors_are_not_filled_inside_and_as_before_after(monkeypatch, filled):
    monkeypatch.setattr(deterministic, "fill_uninitialized_memory", filled)
    with reproducible("cuda"):
        assert torch.are_deterministic_algorithms_enabled() and not deterministic.fill_uninitialized_memory
        assert not torch.empty(1000).isnan().all()
    assert deterministic.fill_uninitialized_memory is filled and not torch.are_deterministic_algorithms_enabled()


def test_settings_come_back_after_a_failure_too():
    before = torch.backends.cudnn.benchmark, warnings.filters[:]
    with pytest.raises(ZeroDivisionError), reproducible("cuda"):
        1 / 0  # noqa: B018
    assert (torch.backends.cudnn.benchmark, warnings.filters[:]) == before
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_cpu_is_left_alone():
    with reproducible("cpu"):
        assert not torch.are_deterministic_algorithms_enabled()
