"""What the library says of Python's arguments is said by a command with its options, and nothing else is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from samples import class_files, encode, noise, put

from fastload import build_subset, pack
from fastload.command.cli import app, main
from fastload.command.options import OptionNames
from fastload.errors import FastloadError

COMMANDS = typer.main.get_command(app)


def said(command: str, text: str, *typed: str) -> str:
    return OptionNames.of(COMMANDS, [command, *typed])(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("resize=0 is not between 1 and 8192", "--resize 0 is not between 1 and 8192"),
        ("make them one size with resize=S, or not", "make them one size with --resize S, or not"),
        ("seed=-1; it must be", "--seed -1; it must be"),
        ("take it with max_pixels=19,200.", "take it with --max-pixels 19,200."),
        ('wants order="shuffled"', "wants --order shuffled"),
        ("order='best' is neither", "--order best is neither"),
        ("split='a b': no such split", "--split 'a b': no such split"),
        ("split='': no such split", "--split '': no such split"),
        ("keep the files with encoded=True", "keep the files with --encoded"),
        ("(channels=4 keeps it)", "(--channels 4 keeps it)"),
        ("name images= and labels=.", "name --images and --labels."),
        ("images=…: has none", "--images: has none"),
        ("source='': an empty text", "SOURCE '': an empty text"),
        ("out='x.h5'; it must be", "OUT.h5 x.h5; it must be"),
    ],
)
def test_each_form_of_an_argument_becomes_its_option(text: str, expected: str) -> None:
    assert said("pack", text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "give resident_budget=5, or rank=3",  # no arguments of the command
        'shuffle="block" would not mix the classes',
        "the kernel_size=3 and (no_seed=4)",
        "'labels=3 x.png' cannot be decoded",  # names of data
        '"seed=1 of 2" is none',
        "call `pack(source, out, resize=256)` again",  # code
        "a/labels=5/train.h5: no such file",  # paths
        "labels=5/train.h5: no such file",
        "seed=5.h5: no such file",
        "split=/data/x.h5: no such file",
        "encoded='no'; it is True or False",  # no value that an option has
        "name the labels, the order and the seed",
    ],
)
def test_what_is_no_argument_of_the_command_stays(text: str) -> None:
    assert said("pack", text) == text


def test_what_the_user_typed_stays_wherever_it_is_told() -> None:
    text = "labels=5: no such file; name labels=5 more, and seed=5 set.h5"
    assert said("pack", text) == "--labels 5: no such file; name --labels 5 more, and --seed 5 set.h5"
    assert said("pack", text, "labels=5", "o.h5") == "labels=5: no such file; name labels=5 more, and --seed 5 set.h5"
    assert said("pack", text, "--split=seed=5 set.h5", "--order=a").endswith("and seed=5 set.h5")


def test_the_words_are_those_of_the_command_that_runs() -> None:
    text = "choose a smaller batch_size=, or resize=8; name full="
    assert said("pack", text) == "choose a smaller batch_size=, or --resize 8; name full="
    assert said("build-subset", text) == "choose a smaller --batch-size, or --resize 8; name FULL.h5"
    assert said("verify", text) == "choose a smaller batch_size=, or resize=8; name --full"
    assert said("demo", text, "--debug") == "choose a smaller --batch-size, or resize=8; name full="
    assert said("none", text) == said("--help", text) == text


@pytest.mark.parametrize("command", COMMANDS.commands)
def test_every_option_and_place_of_a_command_is_known_by_its_parameter(command: str) -> None:
    parameters = COMMANDS.commands[command].params
    assert len(parameters) > 3
    for parameter in parameters:
        spelling = said(command, f"give {parameter.name}=")
        assert spelling in [f"give {name}" for name in (*parameter.opts, parameter.metavar)]


# -- from the library to the terminal ------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return put(tmp_path / "s", class_files(each=2))


def told_by_both(capsys: pytest.CaptureFixture[str], call: Callable[[], object], *words: object) -> tuple[str, str]:
    """Return what an error says in Python, and what the same command prints of it."""
    with pytest.raises(FastloadError) as caught:
        call()
    assert main([*map(str, words), "-q"]) == caught.value.exit_code
    return str(caught.value), capsys.readouterr().err.removeprefix("error: ").removesuffix("\n")


def test_an_error_names_arguments_in_python_and_options_in_the_command(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o.h5"
    told, printed = told_by_both(
        capsys, lambda: pack(source, out, encoded=True, resize=8), "pack", source, out, "--encoded", "--resize", 8
    )
    words = "{} keeps the files as they are, so {} cannot go with it; leave one out, or make new files with {}"
    assert told == words.format("encoded=True", "resize=", "jpeg=True")
    assert printed == words.format("--encoded", "--resize", "--jpeg")
    told, printed = told_by_both(
        capsys, lambda: pack(source, out, channels="rgb"), "pack", source, out, "--channels", "rgb"
    )
    assert told == "channels='rgb' is neither 'as-is' nor between 1 and 32"
    assert printed == "--channels rgb is neither 'as-is' nor between 1 and 32"
    pack(source, out)
    told, printed = told_by_both(
        capsys,
        lambda: build_subset(out, tmp_path / "s.h5", size="1.000"),
        *("build-subset", out, tmp_path / "s.h5", "--size", "1.000"),
    )
    assert told.startswith("size='1.000': could be") and "--" not in told
    assert printed.startswith("--size 1.000: could be")
    told, printed = told_by_both(
        capsys,
        lambda: build_subset(out, tmp_path / "s.h5", strategy="kmeans", embeddings="e.npy", epochs=2),
        *("build-subset", out, tmp_path / "s.h5", "--strategy", "kmeans", "--embeddings", "e.npy", "--epochs", 2),
    )
    assert told == "embeddings= takes the autoencoder's place, so there is no use for epochs="
    assert printed == "--embeddings takes the autoencoder's place, so there is no use for --epochs"


def test_a_path_that_looks_like_an_argument_is_printed_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pack", "labels=5", "o.h5"]) != 0
    assert capsys.readouterr().err.startswith("error: labels=5: ")
    put(tmp_path / "labels=5 seed=3", {"a/0.png": encode(noise(8, 8)), "b/0.png": encode(noise(8, 9))})
    assert main(["pack", "labels=5 seed=3", "o.h5", "-q"]) == 1
    told = capsys.readouterr().err
    assert (
        told.startswith("error: labels=5 seed=3: 'b/0.png' is 8×9")
        and "with --resize S, keep whole pictures with --short-side S, or" in told
    )


def test_the_summary_of_pack_names_options_too(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = pack(source, tmp_path / "o.h5")
    assert 'training with shuffle="block" wants order="shuffled"' in str(summary) and "--" not in str(summary)
    assert main(["pack", str(source), str(tmp_path / "o.h5")]) == 0
    assert 'training with shuffle="block" wants --order shuffled' in capsys.readouterr().out


def test_a_mend_that_is_printed_can_be_typed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pack(source, "full.h5")
    values = np.zeros((6, 3), np.float32)
    values[[1, 4]] = np.nan
    np.save("e.npy", values)
    words = ["build-subset", "full.h5", "s.h5", "--strategy", "kmeans", "--embeddings", "e.npy", "--size", "2", "-q"]
    assert main(words) == 1
    mend = capsys.readouterr().err.rpartition("leave them out: ")[2].split()
    assert mend == ["--exclude", "1,4"] and main([*words, *mend]) == 0
