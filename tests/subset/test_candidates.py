"""Which samples may be chosen: lists of ids and names, and exact copies, which count once."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from packs import noise_images, write_raw
from rich.cells import cell_len
from screens import screen

from fastload import Augment, TwoPhaseLoader
from fastload.command.cli import main
from fastload.command.subset_terminal import print_report
from fastload.command.verify import verify_file
from fastload.errors import DataError, UsageError
from fastload.packed.file import PackedFile, PackedWriter
from fastload.subset.build import build_subset
from fastload.subset.report import HINT

COUNT = 60


@pytest.fixture
def full(tmp_path):
    """60 samples with names; ids 40 to 44 are exact copies of ids 0 to 4."""
    images = noise_images(COUNT, 4, 4)
    images[40:45] = images[:5]
    names = [f"c{row % 3}/{row:03}.png" for row in range(COUNT)]
    with PackedWriter(
        tmp_path / "full.h5",
        shape=images.shape,
        labels=np.arange(COUNT) % 3,
        source={"kind": "test"},
        names=names,
        classes=["c0", "c1", "c2"],
    ) as out:
        for row, image in enumerate(images):
            out.write(row, image)
    np.save(tmp_path / "e.npy", np.random.default_rng(0).random((COUNT, 5), np.float32))
    return tmp_path / "full.h5"


def chosen(full, **settings):
    settings = {"strategy": "top-activations", "size": 20} | settings
    own = {} if settings["strategy"] == "random" else {"embeddings": full.with_name("e.npy")}
    report = build_subset(full, full.with_name("s.h5"), threads=1, **(own | settings))
    assert verify_file(full.with_name("s.h5"), full=full, progress=False).ok
    return report


@pytest.mark.parametrize("strategy", ["top-activations", "random", "kmeans"])
def test_what_is_excluded_is_never_chosen_and_the_rest_as_if_it_were_all(full, strategy):
    first = chosen(full, strategy=strategy).ids
    without = chosen(full, strategy=strategy, exclude=first[:5])
    assert not set(without.ids) & set(first[:5]) and len(without.ids) == 20
    assert without.left_out["excluded"] == 5


@pytest.mark.parametrize("strategy", ["top-activations", "random"])
@pytest.mark.parametrize("form", ["ids", "names", "text", "file", "file of Windows", "npy"])
def test_what_is_included_comes_first_in_the_order_that_was_given(full, tmp_path, strategy, form):
    ids = [33, 7, 51]
    names = [f"c{i % 3}/{i:03}.png" for i in ids]
    (tmp_path / "list.txt").write_text("\n".join(names) + "\n")
    (tmp_path / "windows.txt").write_text("\r\n".join(names), encoding="utf-8-sig")
    np.save(tmp_path / "list.npy", ids)
    include = {
        "ids": ids,
        "names": names,
        "text": "33, 7,51",
        "file": tmp_path / "list.txt",
        "file of Windows": tmp_path / "windows.txt",
        "npy": str(tmp_path / "list.npy"),
    }[form]
    report = chosen(full, strategy=strategy, include=include)
    assert report.ids[:3] == ids and len(set(report.ids)) == 20
    assert report.names[:3] == names
    with PackedFile(full.with_name("s.h5")) as subset:
        assert subset.selection.dimension[:3].tolist() == [-1, -1, -1]
    union = chosen(full, strategy="kmeans", size=None, per_dimension=2, include=include)
    assert union.ids[:3] == ids


def test_exact_copies_are_chosen_once_the_lowest_id_unless_asked(full):
    everything = chosen(full, strategy="random", size=55)
    assert set(everything.ids) == set(range(COUNT)) - set(range(40, 45))
    assert everything.left_out["exact duplicates left out"] == 5
    assert set(chosen(full, strategy="random", size=60).ids) == set(range(COUNT)), "there are too few others"
    assert set(chosen(full, strategy="random", size=60, keep_duplicates=True).ids) == set(range(COUNT))
    # The copy that is asked for by name stands for the other.
    named = chosen(full, strategy="random", size=55, include=[42])
    assert named.ids[0] == 42 and 2 not in named.ids


def test_samples_with_nan_are_named_and_may_be_left_out(full):
    values = np.load(full.with_name("e.npy"))
    values[[5, 9], 1] = np.nan
    np.save(full.with_name("e.npy"), values)
    for strategy in ("top-activations", "kmeans"):
        told = r'NaN or infinity in 2 of 55 samples: c2/005.png, c0/009.png; embed these again, .* exclude="5,9"$'
        with pytest.raises(DataError, match=told):
            chosen(full, strategy=strategy)
        assert len(chosen(full, strategy=strategy, exclude="5,9").ids) == 20


class BrokenEncoder(torch.nn.Module):
    """Gives a picture's first line, with NaN for about half of them, the darker ones."""

    def forward(self, images):
        return torch.where(images.mean((1, 2, 3)) < 0.5, torch.nan, 1.0)[:, None] + images[:, 0, 0]


@pytest.mark.parametrize("strategy", ["top-activations", "kmeans", "the encoder's pass"])
def test_many_samples_with_nan_are_ten_names_and_a_list_to_exclude(full, strategy):
    values = np.load(full.with_name("e.npy"))
    values[20:35, 1] = np.inf
    np.save(full.with_name("e.npy"), values)
    source = {"strategy": strategy}
    count = 15
    if strategy == "the encoder's pass":
        source = {
            "encoder": "test_candidates:BrokenEncoder",
            "encoder_normalize": ((0,), (1,)),
            "embeddings": None,
            "input_size": 4,
        }
        with PackedFile(full) as file:
            candidates = set(range(COUNT)) - {1, 40, 42, 43, 44}  # with 1 left out its copy 41 may be chosen
            count = sum(file.read_image(row).mean() < 0.5 * 255 for row in candidates)
    with pytest.raises(DataError) as told:
        chosen(full, exclude=[1], **source)
    text = str(told.value)
    assert f"NaN or infinity in {count} of 55 samples: " in text and f" and {count - 10} more; " in text
    assert text.count(".png") == 10
    listed = text.rpartition("exclude=")[2].strip('"')
    excluded = {int(line) for line in Path(listed).read_text().splitlines()}
    copies = {1, 40, 42, 43, 44}  # would be candidates in their place, and may hold NaN too
    assert 1 in excluded and len(excluded - copies) == count
    report = chosen(full, exclude=listed, **source)
    assert not set(report.ids) & excluded and len(report.ids) == 20
    assert not full.with_name("s.h5.work").exists()


def test_a_kept_work_folder_does_not_answer_for_other_lists(full):
    first = chosen(full, keep=True).ids
    assert not set(chosen(full, keep=True, exclude=first[:5]).ids) & set(first[:5])
    assert chosen(full, keep=True, include=[51, 33]).ids[:2] == [51, 33]
    assert chosen(full, keep=True, include=[33, 51]).ids[:2] == [33, 51]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"exclude": [99]}, DataError, "exclude=…: has id 99, which .*full.h5 does not hold"),
        ({"include": ["c0/none.png"]}, DataError, "has the name 'c0/none.png', which"),
        ({"include": [3], "exclude": [3]}, UsageError, r"id 3 \(c0/003.png\) is both included and excluded"),
        ({"include": list(range(20))}, UsageError, "size=20: 20 are named by include= already"),
        ({"exclude": list(range(30)), "size": 40}, UsageError, "40 samples were asked for, but 30 are left"),
        ({"exclude": 3}, UsageError, "exclude=3"),
        ({"exclude": [1.5]}, UsageError, "exclude=…: holds float64"),
        ({"keep_duplicates": "no"}, UsageError, "keep_duplicates='no'"),
        ({"equal_classes": "no"}, UsageError, "equal_classes='no'"),
        ({"balance_classes": "no"}, UsageError, "balance_classes='no'"),
        ({"keep": "no"}, UsageError, "keep='no'"),
        ({"fresh": 1}, UsageError, "fresh=1"),
        ({"alone": "yes"}, UsageError, "alone='yes'"),
        ({"size": True}, UsageError, "size=True"),
        ({"size": "0,5%"}, UsageError, "size='0,5%': .*write 0.5%"),
        ({"size": "1.000"}, UsageError, "size='1.000': could be a number or a share"),
        ({"size": None, "per_dimension": 2.5}, UsageError, "per_dimension=2.5"),
        ({"equal_classes": True, "balance_classes": True}, UsageError, "give one of the two"),
        ({"strategy": ["random"]}, UsageError, "strategy="),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(full, settings, error, message):
    with pytest.raises(error, match=message):
        chosen(full, **settings)
    assert not full.with_name("s.h5").exists()


def test_the_subset_of_a_set_without_labels_has_none_either(tmp_path):
    images = noise_images(COUNT, 4, 4)
    full = write_raw(tmp_path / "full.h5", images, None, names=[f"{row}.png" for row in range(COUNT)])
    np.save(tmp_path / "e.npy", np.random.default_rng(0).random((COUNT, 5), np.float32))
    for strategy in ("top-activations", "random"):
        report = chosen(full, strategy=strategy)
        assert report.classes == [] and report.names == [f"{row}.png" for row in report.ids]
        with PackedFile(tmp_path / "s.h5") as subset:
            assert subset.labels is None and subset.classes == [] and len(subset) == 20
            assert np.array_equal(subset.read_image(3), images[report.ids[3]])
        settings = {"swap": 2, "batch_size": 4, "steps": 4, "augment": Augment.paper(4), "device": "cpu"}
        with TwoPhaseLoader(full, tmp_path / "s.h5", **settings) as loader:
            batches = list(loader)
        assert [(len(batch), len(batch[0])) for batch in batches] == [(1, 4)] * 4, "(images,) in both phases"
    with pytest.raises(UsageError, match="balance_classes=True"):
        chosen(full, balance_classes=True)


def test_a_budget_in_bytes_is_what_the_samples_take(full):
    report = chosen(full, strategy="random", size="3kB")
    assert 20 < report.chosen < COUNT
    with PackedFile(full.with_name("s.h5")) as subset:
        stored = 48 + 8 + 18 + 28  # pixels, label, name and where it begins, the rest
        assert report.chosen == 3000 // stored and subset.nbytes == report.chosen * 48


def test_the_report_as_json_holds_ids_and_names_in_order_of_choice(full, capfd):
    words = ["build-subset", str(full), str(full.with_name("s.h5")), "--strategy", "random", "--size", "0.1"]
    assert main([*words, "--include", "c0/033.png", "--equal-classes", "--json", "--quiet"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["ids"][0] == 33 and found["names"][0] == "c0/033.png" and len(found["ids"]) == 6
    assert found["settings"]["equal_classes"]


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
def test_the_report_fits_eighty_columns(full, monkeypatch, kind):
    report = chosen(full, size=None, per_dimension=1, balance_classes=True, include=["c0/033.png"])
    long = [("a class with a long name " * 3, 7, 20), ("短い名前" * 8, 5, 20)]
    report = replace(report, out=Path("s.h5"), full=Path("full.h5"), classes=long, losses=[0.3811, 0.1402])
    told = screen(monkeypatch, kind)
    print_report(report, json=False, quiet=False)
    lines = told.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= 80 and len(lines) > 10
    assert HINT in " ".join(line.strip() for line in lines), "broken between words, and whole"
    # Without the terminal's width there are longer lines: the breaks above were needed.
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert max(map(cell_len, str(report).splitlines())) > 80


def test_the_report_tells_balanced_unions_right(full):
    report = chosen(full, size=None, per_dimension=1, balance_classes=True)
    lines = str(report).splitlines()
    assert any(f"{report.chosen} distinct of 15 (1 × 5 dimensions × 3 classes)" in line for line in lines)
    assert "balanced: so many of each dimension" in str(report)
    assert "the 1 strongest" not in str(report) and "┃" not in str(report)


def test_what_is_announced_counts_what_the_strategy_itself_takes(monkeypatch):
    from fastload.subset import estimate
    from fastload.subset.estimate import estimate_strategy

    monkeypatch.setattr(estimate, "_flops_per_second", lambda: 1e10)  # a busy machine's changes from call to call
    seconds, memory = estimate_strategy("pca", 2000, 2048, 10_000, 1)
    assert seconds > 0.5 and memory > 7 * 8 * 2048**2
    assert estimate_strategy("combinations", 2000, 2048, 10_000, 1)[1] < memory / 2, "it makes no covariance"
    few, many = (estimate_strategy("kmeans", rows, 256, 10_000, 1)[0] for rows in (10_000, 1_000_000))
    assert many > 20 * few
