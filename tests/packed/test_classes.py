"""Labels of two files are matched by their classes' names: subset and full set, training set and test set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packs import noise_images, write_raw

from fastload import Augment, DataError, TwoPhaseLoader
from fastload.feeds.evaluation import EvaluationLoader
from fastload.packed.classes import label_map, mapped_labels

names = st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=8, unique=True)


@given(known=names, data=st.data())
def test_labels_keep_their_names_whatever_the_order_and_however_few_they_are(known, data):
    chosen = data.draw(st.lists(st.sampled_from(known), min_size=1, unique=True))
    labels = np.array(data.draw(st.lists(st.integers(0, len(chosen) - 1), max_size=20)), np.int32)
    found = mapped_labels(labels, label_map(chosen, known), "test.h5")
    assert [known[label] for label in found] == [chosen[label] for label in labels]


@given(known=names, stranger=st.text(min_size=1, max_size=5))
def test_a_class_without_a_counterpart_is_refused_by_name(known, stranger):
    if stranger in known:
        assert label_map([*known[:1], stranger], [*known[:1], stranger]) is None
        return
    with pytest.raises(DataError, match=r"^test\.h5: has other classes than train\.h5: ") as error:
        label_map([stranger, *known], known, source="test.h5", target="train.h5")
    assert repr(stranger)[1:-1] in str(error.value) or not stranger.isprintable()


@pytest.mark.parametrize(
    ("one", "other"),
    [([], ["a"]), (["a"], []), (["a", "b"], ["a", "b"]), (["a"], ["a", "b"]), (["a", "a"], ["a", "a"])],
)
def test_numbers_that_mean_the_same_already_stay(one, other):
    assert label_map(one, other) is None


def test_a_name_of_two_classes_cannot_be_matched_and_is_named():
    with pytest.raises(DataError, match="'crane' stands for more than one"):
        label_map(["dove", "crane"], ["crane", "dove", "crane"])


def test_a_class_name_cannot_write_to_the_terminal_or_fill_it():
    with pytest.raises(DataError) as error:
        label_map(["\x1b[2J" + "x" * 500], ["cat"])
    assert "\x1b" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("labels", [np.array([0.5, 1.0]), np.array([0, 2]), np.array([-1, 0])])
def test_labels_that_belong_to_no_name_are_refused(labels):
    with pytest.raises(DataError, match=r"^test\.h5: (its labels are float64|has a label (2|-1))"):
        mapped_labels(labels, label_map(["b", "a"], ["a", "b"]), "test.h5")


@pytest.fixture
def training(tmp_path):
    labels = np.arange(30) % 3
    return write_raw(tmp_path / "train.h5", noise_images(30), labels, classes=["ant", "bee", "cat"])


def make(full, subset=None, **changes):
    settings = {"batch_size": 5, "steps": 6, "swap": 0, "augment": Augment.paper(8), "device": "cpu", "with_ids": True}
    return TwoPhaseLoader(full, subset, **(settings | changes))


@pytest.mark.parametrize("engine", ["fused", "dali"])
def test_a_test_set_s_labels_are_the_training_set_s(training, tmp_path, engine):
    if engine == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    test = write_raw(tmp_path / "test.h5", noise_images(8), np.arange(8) % 2, classes=["cat", "bee"])
    with make(training, engine=engine) as loader, loader.evaluation(test, batch_size=3) as batches:
        assert [label for _, labels, _ in batches for label in labels.tolist()] == [2, 1] * 4
    with EvaluationLoader(test, Augment.paper(8), batch_size=8) as batches:
        assert next(iter(batches))[1].tolist() == [0, 1] * 4  # of itself, with nothing to compare it with


def test_a_test_set_of_other_classes_is_refused_before_its_first_batch(training, tmp_path):
    test = write_raw(tmp_path / "test.h5", noise_images(8), np.arange(8) % 2, classes=["bee", "dog"])
    with make(training) as loader, pytest.raises(DataError, match=r"test\.h5: has other classes .*: 'dog' is none"):
        loader.evaluation(test)


def test_a_subset_whose_classes_stand_in_another_order_gives_the_full_set_s_labels(training, tmp_path):
    subset = write_raw(tmp_path / "subset.h5", noise_images(10), np.arange(10) % 2, classes=["bee", "ant"])
    with make(training, subset, swap=6) as loader:
        for _, labels, ids in loader:
            assert labels.tolist() == [1 - id % 2 for id in ids.tolist()]
        assert loader.evaluation(subset)._labels[:2].tolist() == [1, 0]
    other = write_raw(tmp_path / "other.h5", noise_images(10), np.arange(10) % 2, classes=["bee", "dog"])
    with pytest.raises(DataError, match=r"other\.h5: has other classes than .*train\.h5: 'dog'"):
        make(training, other, swap=3)


@pytest.mark.parametrize("label", [-1, 2, 2**40, np.nan])
def test_a_label_that_no_training_can_use_is_refused_when_a_loader_is_made(tmp_path, label):
    labels = np.array([0, 1] * 8, np.float64 if label != label else np.int64)
    good = write_raw(tmp_path / "good.h5", noise_images(16, 8, 8), labels, classes=["a", "b"])
    labels[5] = label
    bad = write_raw(tmp_path / "bad.h5", noise_images(16, 8, 8), labels, classes=["a", "b"])
    settings = {"batch_size": 4, "steps": 4, "swap": 0, "augment": Augment.paper(8), "device": "cpu"}
    with pytest.raises(DataError, match=r"bad\.h5: 1 label (outside|not finite).*the first that of row 5 \(id 5\)"):
        TwoPhaseLoader(bad, **settings)
    with (
        TwoPhaseLoader(good, **settings) as loader,
        pytest.raises(DataError, match=r"1 label (outside|not finite)"),
    ):
        loader.evaluation(bad)
