"""Scores of one's own for the strategy `scores`: every form of file, what is kept of them, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from packs import noise_images, write_raw

from fastload.command.cli import main
from fastload.common.tensors import load_tensors
from fastload.errors import DataError, UsageError
from fastload.packed.file import PackedFile
from fastload.selection import Scores, select
from fastload.subset.build import build_subset
from fastload.subset.listener import Listener

COUNT = 120
IDS = np.random.default_rng(2).permutation(COUNT) + 1000
NAMES = [f"pictures/{number}, left.png" for number in IDS]
VALUES = np.round(np.random.default_rng(3).standard_normal(COUNT), 3)
ORDER = np.random.default_rng(4).permutation(COUNT)
"""The order of rows in files that say whose each score is."""


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    images = noise_images(COUNT, 4, 4)
    images[7] = images[3]  # an exact copy
    path = tmp_path_factory.mktemp("full") / "full.h5"
    return write_raw(path, images, np.arange(COUNT) % 4, ids=IDS, names=NAMES)


@pytest.fixture
def build(full, tmp_path):
    """Choose 30 samples by scores of a file, or by VALUES; return the report."""
    np.save(tmp_path / "values.npy", VALUES)

    def call(**settings):
        settings = {"size": 30, "scores_from": tmp_path / "values.npy", "threads": 1} | settings
        return build_subset(full, settings.pop("out", tmp_path / "s.h5"), strategy="scores", **settings)

    return call


def lines(*rows) -> str:
    return "".join(",".join(map(str, row)) + "\n" for row in rows)


FORMS = {
    "a.npz": lambda path: np.savez(path, ids=IDS[ORDER], score=VALUES[ORDER]),
    "named.npz": lambda path: np.savez(path, ids=np.array(NAMES)[ORDER], score=VALUES[ORDER]),
    "bytes.npz": lambda path: np.savez(path, ids=np.array(NAMES, "S")[ORDER], score=VALUES[ORDER]),
    "rows.npz": lambda path: np.savez_compressed(path, score=VALUES),
    "a.npy": lambda path: np.save(path, VALUES),
    "big.npy": lambda path: np.save(path, VALUES.astype(">f8")),
    "no-suffix": lambda path: path.write_text(lines(*zip(VALUES.tolist()))),
    "a.csv": lambda path: path.write_text(lines(*zip(IDS[ORDER], VALUES[ORDER].tolist(), strict=True))),
    "head.csv": lambda path: path.write_text(
        "\ufeff Score , epoch,id\n\n" + lines(*((VALUES[row], 5, IDS[row]) for row in ORDER)) + " \n"
    ),
    "names.csv": lambda path: path.write_text(
        'name,score\r\n"' + '\r\n"'.join(f'{NAMES[row]}",{VALUES[row]}' for row in ORDER) + "\r\n"
    ),
    "column.csv": lambda path: path.write_text("score\n" + lines(*zip(VALUES.tolist()))),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_file_chooses_the_same_subset_to_the_byte(build, tmp_path, name):
    expected = build(out=tmp_path / "expected.h5")
    FORMS[name](tmp_path / name)
    found = build(scores_from=tmp_path / name)
    assert found.ids == expected.ids
    assert (tmp_path / "s.h5").read_bytes() == (tmp_path / "expected.h5").read_bytes()


@pytest.mark.parametrize("balance", [{}, {"balance_classes": True}, {"equal_classes": True}])
@pytest.mark.parametrize("reading", [{}, {"hardest": "highest", "leave_out": 0.3}])
def test_it_is_the_selection_of_what_may_be_chosen(build, balance, reading):
    report = build(**balance, **reading, include=IDS[[5, 50]], exclude=[NAMES[9]], seed=6)
    keep = ~np.isin(np.arange(COUNT), [5, 50, 9, 7 if IDS[3] < IDS[7] else 3])
    chosen = select(
        "scores",
        None,
        IDS[keep],
        size=28,
        labels=(np.arange(COUNT) % 4)[keep] if balance else None,
        equal="equal_classes" in balance,
        seed=6,
        scores=Scores(VALUES[keep], **reading),
    )
    assert report.ids == [*IDS[[5, 50]].tolist(), *chosen.ids.tolist()]
    assert report.per_dimension.sum() + report.filled == 28


def test_what_was_left_out_is_counted_where_it_is_taken_all_the_same(build):
    report = build(size=COUNT - 1, leave_out=0.5)
    assert report.filled == 59 and "59, which were left out until all others were taken" in str(report)
    assert "of the hardest      0, which" not in str(build())


def test_the_subset_and_the_report_say_by_what_they_were_chosen(build, tmp_path):
    report = build(hardest="highest", leave_out=0.25)
    with PackedFile(tmp_path / "s.h5") as subset:
        assert subset.selection.attributes["strategy"] == "scores"
        kept = json.loads(subset.selection.attributes["settings"])
        row = np.array([np.flatnonzero(number == IDS)[0] for number in subset.ids])
        np.testing.assert_array_equal(subset.selection.score, VALUES[row].astype(np.float32))
    assert kept == dict(report.settings) and kept["hardest"] == "highest" and kept["leave_out"] == 0.25
    assert len(kept["scores"]) == 32 and str(tmp_path) not in json.dumps(kept)
    told = str(report)
    assert f"of {tmp_path / 'values.npy'}, row i's of row i of the full set" in told
    assert "those of the highest scores, 25% left out" in told and "a stratum gave" in told


class Stopped(Listener):
    """Stops like Ctrl-C when the choice is made, which then is kept."""

    def __init__(self):
        self.notes, self.how = [], {}

    def begin(self, step, total, done=0):
        if step == "write":
            raise KeyboardInterrupt

    def end(self, report):
        self.how[report.step] = report.how

    def note(self, text):
        self.notes.append(text)


def test_a_kept_choice_answers_for_the_same_scores_only(build, tmp_path):
    def analysed(**settings):
        listener = Stopped()
        with pytest.raises(KeyboardInterrupt):
            build(listener=listener, **settings)
        tensors, _ = load_tensors(tmp_path / "s.h5.work" / "selection.safetensors")
        return listener.how["analyse"], tensors["ids"].tolist(), " ".join(listener.notes)

    how, first, _ = analysed()
    assert how == "done"
    FORMS["a.npz"](tmp_path / "a.npz")
    assert analysed(scores_from=tmp_path / "a.npz")[:2] == ("reused", first), "the same scores, from elsewhere"
    np.save(tmp_path / "other.npy", -VALUES)
    how, other, said = analysed(scores_from=tmp_path / "other.npy")
    assert how == "done" and other != first and "analyse and what follows is done anew, since scores " in said
    how, _, said = analysed(scores_from=tmp_path / "other.npy", leave_out=0.2)
    assert how == "done" and "since leave_out 0.1 → 0.2" in said
    how, _, said = analysed(scores_from=tmp_path / "other.npy", leave_out=0.2, hardest="highest")
    assert how == "done" and "since hardest lowest → highest" in said
    np.save(tmp_path / "values.npy", -VALUES)
    assert analysed(leave_out=0.2, hardest="highest")[0] == "reused"


def test_what_another_strategy_writes_as_scores_is_read(build, full, tmp_path):
    np.save(tmp_path / "e.npy", np.random.default_rng(5).random((COUNT, 6), np.float32))
    build_subset(
        full,
        tmp_path / "t.h5",
        strategy="penalized",
        size=20,
        embeddings=tmp_path / "e.npy",
        scores=tmp_path / "a.npz",
        exclude=[1005],
    )
    report = build(scores_from=tmp_path / "a.npz", exclude=[1005])
    assert len(report.ids) == 30 and 1005 not in report.ids
    with pytest.raises(DataError, match=r'1 of 119 samples: pictures/1005, left.png.*exclude="1005"$'):
        build(scores_from=tmp_path / "a.npz")


def test_missing_scores_are_told_by_name_with_the_list_to_exclude_them(build, tmp_path):
    values = VALUES.copy()
    values[[4, 60]] = np.nan, np.inf
    np.save(tmp_path / "nan.npy", values)
    with pytest.raises(DataError) as told:
        build(scores_from=tmp_path / "nan.npy")
    first, second = sorted(IDS[[4, 60]])
    assert str(told.value).startswith(
        f"{tmp_path / 'nan.npy'}: scores are missing, NaN, infinite or beyond float32 in 2 of"
    )
    assert f"pictures/{first}, left.png" in str(told.value)
    assert str(told.value).endswith(f'give these a score, or leave them out: exclude="{first},{second}"')
    assert len(build(scores_from=tmp_path / "nan.npy", exclude=f"{first},{second}").ids) == 30
    # As many as make a list too long for a message, in a file that has them not at all.
    (tmp_path / "few.csv").write_text(lines(("id", "score"), *zip(IDS[:100], VALUES[:100].tolist(), strict=True)))
    with pytest.raises(
        DataError, match=r"20 of 1\d\d samples: .* and 10 more; .*exclude=\"(.*not-finite.txt)\""
    ) as told:
        build(scores_from=tmp_path / "few.csv")
    listed = tmp_path / "s.h5.work" / "not-finite.txt"
    assert len(build(scores_from=tmp_path / "few.csv", exclude=listed).ids) == 30


WRONG = {
    "none.npz": (None, "no such file; scores_from= takes FILE.npz"),
    "folder": (lambda path: path.mkdir(), r"cannot be read as scores \(Is a directory\)"),
    "short.npy": (lambda path: np.save(path, VALUES[:-1]), "has 119 scores and no ids, but the full set has 120"),
    "two.npy": (lambda path: np.save(path, np.zeros((COUNT, 2))), r"float64 of shape \(120, 2\)"),
    "text.npy": (lambda path: np.save(path, np.array(["a"] * COUNT)), "one real number a sample"),
    "object.npy": (lambda path: np.save(path, np.array([{}] * COUNT)), "cannot be read as scores"),
    "cut.npy": (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr'"), "cannot be read as scores"),
    "cut.npz": (lambda path: path.write_bytes(b"PK\x03\x04 and no more"), "cannot be read as scores"),
    "aum.npz": (lambda path: np.savez(path, aum=VALUES, ids=IDS), "no array 'score'; it has aum, ids: save them"),
    "uneven.npz": (lambda path: np.savez(path, score=VALUES, ids=IDS[1:]), "119 ids for 120 scores"),
    "float.npz": (lambda path: np.savez(path, score=VALUES, ids=IDS + 0.5), ":ids: holds float64; ids are whole"),
    "others.npz": (lambda path: np.savez(path, score=VALUES, ids=IDS + 1), "has id 1120, .*the scores of another set"),
    "twice.npz": (lambda path: np.savez(path, score=[1.0, 2.0], ids=[1003, 1003]), "id 1003 .* more than once"),
    "none.csv": (lambda path: path.write_text("\n \n"), "holds no scores"),
    "head.csv": (lambda path: path.write_text("id,score\n"), "holds no scores"),
    "prose.txt": (lambda path: path.write_text("These are scores.\n"), "line 1: is 'These are scores.'; scores_from="),
    "wide.csv": (lambda path: path.write_text("1,2,3\n"), "line 1: is '1,2,3'"),
    "aum.csv": (lambda path: path.write_text("id,aum\n1003,1\n"), "line 1: is 'id,aum'; .* names a column 'score'"),
    "index.csv": (lambda path: path.write_text(",score\n0,1\n"), "has columns '', 'score'; name one 'id' or 'name'"),
    "word.csv": (lambda path: path.write_text("id,score\n1003,1\n1004,high\n"), "line 3: 'high' is no number"),
    "ragged.csv": (lambda path: path.write_text("1003,1\n1004\n"), "line 2: has 1 column, and others have 2"),
    "strange.csv": (lambda path: path.write_text("name,score\nmine.png,1\n"), "has the name 'mine.png'"),
    "image.png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe"), r"scores \(it is no text\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_by_its_name_before_any_work(build, tmp_path, name):
    make, words = WRONG[name]
    if make is not None:
        make(tmp_path / name)
    with pytest.raises(DataError, match=words) as told:
        build(scores_from=tmp_path / name)
    assert str(told.value).startswith(str(tmp_path / name))
    assert not (tmp_path / "s.h5").exists() and not (tmp_path / "s.h5.work").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scores_from": None}, r'strategy="scores" chooses by scores that you bring: give scores_from="FILE"'),
        ({"scores_from": None, "scores": "a.npz"}, r"give scores_from=.*; scores= is a file to write"),
        ({"scores": "a.npz"}, "no use for scores=;"),
        ({"strategy": "random"}, r'strategy="random".* has no use for scores_from=: strategy="scores" has'),
        ({"strategy": "kmeans", "scores_from": None, "leave_out": 0.1}, "has no use for leave_out="),
        ({"hardest": "high"}, "hardest='high'; say which"),
        ({"leave_out": 10}, "leave_out=10; it is a share"),
        ({"per_dimension": 3, "size": None}, "has no dimensions for per_dimension=3; give size="),
        ({"embeddings": "e.npy"}, "looks at no embeddings, so there is no use for embeddings=;"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(full, tmp_path, settings, words):
    np.save(tmp_path / "values.npy", VALUES)
    settings = {"strategy": "scores", "size": 30, "scores_from": tmp_path / "values.npy"} | settings
    with pytest.raises(UsageError, match=words):
        build_subset(full, tmp_path / "s.h5", **settings)


def test_the_command_chooses_cifar_s_images_by_scores_and_says_so(few_cifar, tmp_path, capfd):
    with PackedFile(few_cifar) as file:
        # How far an image is from its class's mean: a score for which high is hard.
        pixels = np.stack([file.image(row) for row in range(len(file))]).astype(np.float64)
        means = np.stack([pixels[file.labels == label].mean(axis=0) for label in range(10)])
        values = np.sqrt(((pixels - means[file.labels]) ** 2).mean(axis=(1, 2, 3)))
        ids, labels = file.ids, file.labels
    np.savez(tmp_path / "far.npz", ids=ids, score=values)
    words = ["build-subset", few_cifar, tmp_path / "s.h5", "--strategy", "scores", "--size", 80, "--balance-classes"]
    words += ["--scores-from", tmp_path / "far.npz", "--hardest", "highest", "--leave-out", "0.2"]
    assert main([*map(str, words), "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    expected = select("scores", None, ids, size=80, labels=labels, scores=Scores(values, "highest", 0.2))
    assert report["ids"] == expected.ids.tolist()
    assert [found["chosen"] for found in report["classes"]] == [8] * 10
    hardest = {row for label in range(10) for row in ids[labels == label][np.argsort(values[labels == label])[-8:]]}
    assert not hardest & set(report["ids"])
    assert main(["verify", str(tmp_path / "s.h5"), "--full", str(few_cifar)]) == 0
    assert main(["inspect", str(tmp_path / "s.h5")]) == 0
    assert "hardest" in capfd.readouterr().out


def test_the_command_says_its_refusals_in_its_own_options(few_cifar, tmp_path, capfd):
    words = ["build-subset", str(few_cifar), str(tmp_path / "s.h5")]
    for more, told in (
        (["--strategy", "scores"], "--strategy scores chooses by scores that you bring: give --scores-from FILE"),
        (["--scores-from", "a.npz"], "has no use for --scores-from: --strategy scores has"),
        (["--strategy", "scores", "--scores-from", "a.npz"], "a.npz: no such file; --scores-from takes FILE.npz"),
        (["--strategy", "scores", "--scores-from", "a.npz", "--leave-out", "10"], "--leave-out 10; it is a share"),
    ):
        assert main([*words, *more]) in (1, 2)
        said = capfd.readouterr().err
        assert told in said and said.count("\n") == 1, said
