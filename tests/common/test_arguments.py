"""Arguments of another kind than what was asked for are refused by name, never taken for something else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastload
from fastload.augment import Augment, PaperColor
from fastload.bench.__main__ import main as bench
from fastload.bench.select_grid import Grid
from fastload.command.demo import run_demo
from fastload.command.verify import verify_file
from fastload.errors import UsageError
from fastload.feeds.evaluation import EvaluationLoader

SOURCE = [(np.full((4, 4, 3), shade, np.uint8), shade % 2) for shade in range(6)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("encoded", "no"),
        ("skip_broken", "no"),
        ("skip_broken", 1),
        ("unlabelled", "false"),
        ("unlabelled", None),
        ("progress", "no"),
        ("progress", 0),
        ("seed", True),
        ("seed", 1.0),
        ("seed", -1),
        ("seed", 2**64),
        ("resize", True),
        ("resize", 8.0),
        ("resize", "8"),
        ("channels", True),
        ("channels", 3.0),
        ("channels", "3"),
        ("channels", torch.tensor(True)),
        ("workers", True),
        ("workers", 2.0),
        ("workers", 0),
        ("max_pixels", True),
        ("max_pixels", 1e6),
        ("class_level", True),
        ("class_level", 1.0),
        ("order", 1),
        ("order", "random"),
        ("split", 3),
        ("classes_from", 3),
    ],
)
def test_pack_refuses_arguments_of_another_kind_by_name(tmp_path, name, value):
    with pytest.raises(UsageError, match=name):
        fastload.pack(SOURCE, tmp_path / "out.h5", **{name: value})
    assert not list(tmp_path.iterdir())


def test_numbers_and_truth_values_of_numpy_and_torch_are_plain_ones(tmp_path):
    summary = fastload.pack(
        SOURCE,
        tmp_path / "out.h5",
        workers=np.int64(1),
        channels=torch.tensor(3),
        seed=np.uint64(7),
        skip_broken=np.False_,
        progress=np.bool_(False),
    )
    assert summary.shape == (4, 4, 3)


def test_other_calls_refuse_arguments_of_another_kind_by_name(tmp_path):
    path = tmp_path / "out.h5"
    fastload.pack(SOURCE, path, progress=False)
    with pytest.raises(UsageError, match="progress='no'"):
        verify_file(path, progress="no")
    for wrong in ({"with_ids": "no"}, {"batch_size": True}, {"first_row": 1.5}, {"every": True}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            EvaluationLoader(path, Augment.paper(4), **({"batch_size": 2} | wrong))
    with pytest.raises(UsageError, match="clamp=1"):
        PaperColor(clamp=1)
    for wrong in ({"steps": True}, {"batch_size": 2.5}, {"epochs": True}, {"epochs": float("nan")}, {"seed": 1.0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            run_demo(**wrong)
    with pytest.raises(UsageError, match="k=True"):
        Grid(ks=(True,))


@pytest.mark.parametrize(
    "words",
    [
        ["select", "--minutes", "nan"],
        ["select", "--minutes", "-1"],
        ["select", "--k", "2.5"],
        ["select", "--k", "0"],
        ["advise", "--full", "f.h5", "--step-ms", "nan"],
        ["advise", "--full", "f.h5", "--step-ms", "1", "--crop", "0"],
        ["paper", "--full", "f.h5", "--test", "t.h5", "--minutes", "nan"],
    ],
)
def test_numbers_that_mean_nothing_are_refused_by_the_benchmarks(words, capsys):
    assert bench([*words, "--device", "cpu"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and words[-2].removeprefix("--") in told[0]
