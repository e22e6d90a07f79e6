"""`fastload demo`: three trainings and their table, the same again from the same seed, and nothing left behind."""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fastload.command import demo, digits
from fastload.command.cli import main
from fastload.common.install import install_command
from fastload.errors import DataError, FastloadError, UsageError
from fastload.packed.file import PackedFile

TINY: dict[str, Any] = {"steps": 6, "batch_size": 8, "epochs": 0.1}
NAMES = ["full set only", "top-activations", "random"]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /tmp, so that what is left behind is seen."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def write_classes(folder: Path, count: int, classes: tuple[str, ...] = ("ant", "bee", "cat"), seed: int = 0) -> Path:
    """Write `count` noise images of 40×36 for each class, as PNG files in class folders."""
    noise = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(noise.integers(0, 256, (40, 36, 3), np.uint8)).save(folder / name / f"{number}.png")
    return folder


def run(**options: Any) -> tuple[list[demo.Training], str]:
    written = io.StringIO()
    trainings = demo.run_demo(console=Console(file=written, width=80), **{**TINY, **options})
    return trainings, written.getvalue()


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[demo.Training], str, Path]:
    """One demo on the digits: its trainings, what it printed, and the folder that it kept."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("demo") / "kept"
    return *run(out=folder, size="50", seed=3), folder


def test_it_trains_three_times_and_shows_a_table_and_the_commands_in_80_columns(
    digits_run: tuple[list[demo.Training], str, Path],
) -> None:
    trainings, text, _ = digits_run
    assert [one.name for one in trainings] == NAMES
    full, *phased = trainings
    assert full.selection_seconds is None and full.fast_seconds == 0 < full.fine_seconds
    for one in phased:
        assert one.selection_seconds is not None and one.fast_seconds > 0 and one.fine_seconds > 0
    table = text[text.index("trained on") :].splitlines()
    for one, line in zip(trainings, table[2:5], strict=True):
        assert line.strip().startswith(one.name)
        assert f"{one.accuracy:.1%}" in line and f"{one.images_per_second:,.0f}" in line
    commands = [line for line in text.splitlines() if line.startswith("$ fastload")]
    assert [command.split()[2] for command in commands] == ["pack", "pack", "build-subset", "build-subset"]
    assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith("$"))


def test_the_same_seed_gives_the_same_accuracies_and_a_temporary_folder_goes(
    digits_run: tuple[list[demo.Training], str, Path], temporary: Path
) -> None:
    trainings, _ = run(size="50", seed=3)
    accuracies = [one.accuracy for one in trainings]
    assert len(set(accuracies)) > 1  # or equality would say little
    assert accuracies == [one.accuracy for one in digits_run[0]]
    assert list(temporary.iterdir()) == []


def test_out_keeps_the_digits_the_packed_files_and_the_subsets(
    digits_run: tuple[list[demo.Training], str, Path],
) -> None:
    folder = digits_run[2]
    with PackedFile(folder / "train.h5") as train, PackedFile(folder / "test.h5") as test:
        assert len(train) + len(test) == 1797 and train.shape == (32, 32, 3)
        assert np.bincount(test.labels).min() >= 34  # every class has its fifth
    for strategy in ("top-activations", "random"):
        with PackedFile(folder / f"{strategy}.h5") as subset:
            assert len(np.unique(subset.ids)) == 50
    assert len(list((folder / "digits").rglob("*.png"))) == 1797


def test_a_folder_in_use_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not an empty folder"):
        run(out=tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_an_interrupt_leaves_nothing_behind(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")

    def interrupt(*args: Any, **options: Any) -> None:
        assert any(temporary.rglob("train.h5"))
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "build_subset", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert list(temporary.iterdir()) == []


def test_without_scikit_learn_it_says_what_to_install(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["demo"]) == 2
    assert install_command("demo") in capsys.readouterr().err
    assert list(temporary.iterdir()) == []


def test_digits_are_enlarged_8x8_greys_and_the_split_is_the_same_each_time(tmp_path: Path) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    counts = digits.write_digits(tmp_path / "a")
    digits.write_digits(tmp_path / "b")
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.png"))
    assert sum(counts) == len(files) == 1797
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files[::50])
    known = datasets.load_digits()
    for name in files[::150]:
        image = Image.open(tmp_path / "a" / name)
        assert image.mode == "RGB" and image.size == (32, 32)
        row = int(name.stem)
        assert name.parent.name == str(known.target[row])
        small = np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BOX), float) * 16 / 255
        assert np.abs(small - known.images[row]).mean() < 1.5


def test_your_own_class_folders_with_train_and_test_splits(tmp_path: Path) -> None:
    write_classes(tmp_path / "mine" / "train", 10)
    write_classes(tmp_path / "mine" / "test", 3, seed=1)
    trainings, text = run(data=str(tmp_path / "mine"), size="30%")
    assert [one.name for one in trainings] == NAMES
    assert "9 of 30 samples" in text and "--split train" in text and "--resize 32" in text
    assert all(one.accuracy * 9 == pytest.approx(round(one.accuracy * 9)) for one in trainings)


def test_your_own_test_set_beside_the_training_set(tmp_path: Path) -> None:
    write_classes(tmp_path / "a", 6)
    write_classes(tmp_path / "b", 3, seed=1)
    trainings, _ = run(data=str(tmp_path / "a"), test=str(tmp_path / "b"), size="5", swap=3)
    assert [one.name for one in trainings] == NAMES


@pytest.mark.parametrize(
    ("prepare", "error", "text"),
    [
        (
            lambda a, b: write_classes(b, 3, ("ant", "bee", "dog")),
            DataError,
            "the test set: has other classes than the training set: 'dog'",
        ),
        (lambda a, b: shutil.copytree(a, b), UsageError, "the training set itself"),
    ],
)
def test_test_sets_that_do_not_belong_to_the_training_set_are_refused(
    tmp_path: Path, prepare: Any, error: type[Exception], text: str
) -> None:
    write_classes(tmp_path / "a", 3)
    prepare(tmp_path / "a", tmp_path / "b")
    with pytest.raises(error, match=text):
        run(data=str(tmp_path / "a"), test=str(tmp_path / "b"), size="3")


def test_val_serves_where_there_is_no_test_split_that_can(tmp_path: Path) -> None:
    write_classes(tmp_path / "mine" / "train", 6)
    write_classes(tmp_path / "mine" / "val", 3, seed=1)
    (tmp_path / "mine" / "test").mkdir()
    shutil.copy(tmp_path / "mine" / "val" / "ant" / "0.png", tmp_path / "mine" / "test")  # no class folders
    trainings, text = run(data=str(tmp_path / "mine"), size="5", swap=3)
    assert [one.name for one in trainings] == NAMES and "--split val" in text


@pytest.mark.parametrize(
    ("files", "text"),
    [
        (
            ("train/a/0.png", "train/b/0.png", "test/0.png"),
            "image 'test/0.png' stands in no class.*give --test",
        ),
        (("train/a/0.png", "train/b/0.png"), "has no split 'test'; its folders are .*give --test"),
        (("a/0.png", "a/1.png"), "has no split 'train'; 2 images stand in one folder"),
    ],
)
def test_data_that_does_not_do_is_refused_with_its_own_cause(tmp_path: Path, files: tuple[str, ...], text: str) -> None:
    write_classes(tmp_path / "one", 1)
    for name in files:
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "one" / "ant" / "0.png", tmp_path / "mine" / name)
    with pytest.raises(FastloadError, match=text):
        run(data=str(tmp_path / "mine"))


def test_data_without_a_test_set_names_the_option(tmp_path: Path) -> None:
    write_classes(tmp_path / "a", 3)
    with pytest.raises(UsageError, match="--test"):
        run(data=str(tmp_path / "a"))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--test", "somewhere"], "--test goes with --data"),
        (["--steps", "0"], "at least 1 step"),
        (["--swap", "1.5"], "share of the steps"),
        (["--swap", "soon"], "share of the steps"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--size", "200%"], "above 0% and at or below 100%"),
    ],
)
def test_options_that_cannot_be_served_end_with_one_line_and_2(
    words: list[str], text: str, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *words]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in said if line.startswith("error:")]) == 1 and text in said[-1]
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(("text", "swap"), [("0.5", 0.5), ("60", 60), ("1", 1), ("1.0", 1.0), ("25%", 0.25)])
def test_swap_is_a_step_or_a_share(text: str, swap: float | int) -> None:
    parsed = demo.parse_swap(text)
    assert parsed == swap and type(parsed) is type(swap)


@pytest.mark.parametrize("wrong", [{"size": "0"}, {"epochs": 0.0}, {"seed": -1}, {"swap": 2.0}, {"steps": 0}])
def test_wrong_settings_are_refused_before_anything_is_packed(tmp_path, wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        demo.run_demo(out=tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()
