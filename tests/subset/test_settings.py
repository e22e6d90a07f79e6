"""The arguments of build_subset: listed once, for the function, for the command, and for people."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest
import typer
from packs import noise_images, write_raw
from places import ROOT

from fastload import build_subset
from fastload.command.cli import app, main
from fastload.command.cli import build_subset as command
from fastload.errors import UsageError
from fastload.packed.file import PackedFile
from fastload.selection import DEFAULT_STRATEGY, STRATEGIES, register
from fastload.selection.random import random
from fastload.subset import settings as subset_settings
from fastload.subset import trials
from fastload.subset.settings import Settings

FIELDS = {field.name for field in dataclasses.fields(Settings)}
OF_EMBEDDINGS = {
    "embeddings": "e.npy",
    "embedding_ids": "ids.npy",
    "encoder": "models:encoder",
    "input_size": 8,
    "encoder_normalize": ((0.5,), (0.2,)),
    "embedding_size": 8,
    "epochs": 0,
    "batch_size": 32,
    "learning_rate": 0.1,
    "preset": "paper",
    "scores": "a.npz",
    "keep": True,
}


def test_the_function_takes_and_describes_every_setting():
    parameters = inspect.signature(build_subset).parameters
    assert list(parameters) == [field.name for field in dataclasses.fields(Settings)]
    assert all(parameters[field.name].default == field.default for field in dataclasses.fields(Settings)[2:])
    assert set(re.findall(r"^        (\w+): ", build_subset.__doc__, re.M)) == FIELDS


def test_the_command_has_every_setting_but_those_of_a_program():
    options = inspect.signature(command).parameters
    assert set(options) - {"json", "quiet"} == FIELDS - {"alone", "listener"}
    for field in dataclasses.fields(Settings)[2:]:
        default = None if field.name == "strategy" else field.default  # its name is not known before a slow import
        assert field.name not in options or options[field.name].default == default, field.name


def test_an_argument_that_is_none_is_refused_by_name_before_anything_is_opened():
    with pytest.raises(TypeError, match=r"build_subset\(\) got an unexpected keyword argument 'sise'"):
        build_subset("full.h5", "s.h5", sise=3)
    with pytest.raises(UsageError, match="give one of the two"):
        Settings("full.h5", "s.h5", size=3, per_dimension=2)


# -- the strategy --------------------------------------------------------------------------------------------------


def test_where_no_strategy_is_named_function_and_command_take_the_default(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(trials, "TRIAL_SECONDS", 0.01)
    monkeypatch.setattr(subset_settings, "DEFAULT_EPOCHS", 1)
    full = write_raw(tmp_path / "full.h5", noise_images(60, 28, 28), [row % 3 for row in range(60)])
    build_subset(full, tmp_path / "called.h5", threads=1)
    build_subset(full, tmp_path / "named.h5", strategy=DEFAULT_STRATEGY, threads=1)
    assert main(["build-subset", str(full), str(tmp_path / "said.h5"), "--threads", "1"]) == 0
    assert f"{DEFAULT_STRATEGY}, seed 0" in capfd.readouterr().out
    written = [(tmp_path / f"{name}.h5").read_bytes() for name in ("called", "named", "said")]
    assert written[0] == written[1] == written[2]
    with PackedFile(tmp_path / "said.h5") as subset:
        assert subset.selection.attributes["strategy"] == DEFAULT_STRATEGY


def test_the_help_the_docstring_and_the_page_tell_the_default_strategy():
    options = {option.name: option for option in typer.main.get_command(app).commands["build-subset"].params}
    (described,) = re.findall(r"^        strategy: (.*?)^        size: ", build_subset.__doc__, re.M | re.S)
    page = (ROOT / "docs/strategies.md").read_text()
    assert re.findall(r"([\w-]+) by default", options["strategy"].help) == [DEFAULT_STRATEGY]
    assert re.findall(r'"([\w-]+)" by default', described) == [DEFAULT_STRATEGY]
    assert re.findall(r"[Tt]he default, `([\w-]+)`", page) == [DEFAULT_STRATEGY]


@pytest.mark.parametrize("name", OF_EMBEDDINGS)
@pytest.mark.parametrize("strategy", ["random", "blind"])
def test_what_only_embeddings_use_is_refused_where_the_strategy_looks_at_none(name, strategy):
    register("blind", random, needs_embeddings=False)
    try:
        with pytest.raises(UsageError) as told:
            Settings("full.h5", "s.h5", strategy=strategy, **{name: OF_EMBEDDINGS[name]})
    finally:
        del STRATEGIES["blind"]
    argument = "keep=True" if name == "keep" else f"{name}="
    assert str(told.value).endswith(
        f'looks at no embeddings, so there is no use for {argument}; say strategy="top-activations", the paper\'s, or '
        "leave it out"
    )
    assert str(told.value).startswith(f'strategy="{strategy}"')


def test_a_refusal_names_all_that_is_of_no_use_and_the_default_as_such(monkeypatch, capsys):
    monkeypatch.setattr("fastload.selection.DEFAULT_STRATEGY", "random")
    words = ["build-subset", "full.h5", "s.h5", "--strategy", "random"]
    assert main([*words, "--epochs", "3", "--preset", "paper", "--keep"]) == 2
    assert capsys.readouterr().err == (
        "error: --strategy random, the default, looks at no embeddings, so there is no use for --epochs, --preset, "
        "--keep; say --strategy top-activations, the paper's, or leave them out\n"
    )
    assert main([*words, "--per-dimension", "20"]) == 2
    assert capsys.readouterr().err == (
        "error: --strategy random, the default, has no dimensions for --per-dimension 20; give --size, or say "
        "--strategy top-activations, the paper's\n"
    )
    monkeypatch.setattr("fastload.selection.DEFAULT_STRATEGY", "stratified")
    with pytest.raises(UsageError, match=r'^strategy="random" looks at no embeddings'):
        Settings("full.h5", "s.h5", strategy="random", epochs=3)


def test_what_other_strategies_have_in_common_with_random_is_not_refused():
    Settings("full.h5", "s.h5", strategy="random", seed=3, device="cuda", engine="dali", threads=2, fresh=True)
    Settings("full.h5", "s.h5", strategy="random", include=[1], exclude=[2], balance_classes=True, resize=8)
