"""Several packed files as one set: one order over all, equal to one file of the same samples."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from batches import same
from packs import noise_images, write_encoded, write_pair, write_raw
from samples import encode

from fastload import Augment, DataError, TwoPhaseLoader, UsageError, build_subset
from fastload.packed.file import PackedFile
from fastload.packed.set import open_packed

SIZES = (70, 1, 129)


@pytest.fixture(scope="module")
def images():
    return noise_images(sum(SIZES), seed=3)


@pytest.fixture(scope="module")
def labels():
    return np.random.default_rng(3).integers(0, 10, sum(SIZES))


@pytest.fixture(scope="module")
def shards(images, labels, tmp_path_factory):
    """Three files of one set, whose ids are those of the whole."""
    folder = tmp_path_factory.mktemp("shards")
    bounds = np.cumsum([0, *SIZES])
    for number, (first, last) in enumerate(pairwise(bounds)):
        write_raw(folder / f"{number}.h5", images[first:last], labels[first:last], ids=np.arange(first, last))
    return folder


@pytest.fixture(scope="module")
def one(images, labels, tmp_path_factory):
    return write_raw(tmp_path_factory.mktemp("one") / "full.h5", images, labels)


def batches(full, **changes):
    settings = {
        "batch_size": 32,
        "steps": 15,
        "swap": 0,
        "augment": Augment.paper(24),
        "device": "cpu",
        "with_ids": True,
        "seed": 5,
    }
    with TwoPhaseLoader(full, **(settings | changes)) as loader:
        return list(loader)


@pytest.mark.parametrize("shuffle", [True, "block", False])
@pytest.mark.parametrize("budget", [0, None])
def test_a_set_gives_the_batches_of_one_file_with_the_same_samples(shards, one, shuffle, budget):
    whole = batches(one, shuffle=shuffle, resident_budget=budget)
    assert same(batches(f"{shards}/*.h5", shuffle=shuffle, resident_budget=budget), whole)
    listed = [shards / f"{number}.h5" for number in range(3)]
    assert same(batches(listed, shuffle=shuffle, resident_budget=budget), whole)


def test_dali_gives_the_set_s_samples_too(shards, one):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    options = {"engine": "dali", "resident_budget": 0}
    assert same(batches(f"{shards}/*.h5", **options), batches(one, **options))


def test_encoded_files_join_as_well(images, labels, tmp_path):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    files = [encode(image) for image in images[:30]]
    write_encoded(tmp_path / "a.h5", files[:11], labels[:11])
    write_encoded(tmp_path / "b.h5", files[11:], labels[11:30])
    write_encoded(tmp_path / "whole.hdf5", files, labels[:30])
    options = {"batch_size": 8, "steps": 6}
    assert same(batches(f"{tmp_path}/*.h5", **options), batches(tmp_path / "whole.hdf5", **options))


def test_files_packed_apart_get_ids_of_their_own(images, labels, tmp_path):
    for number in range(3):
        write_raw(tmp_path / f"{number}.h5", images[number : number + 5], labels[number : number + 5])
    with open_packed(f"{tmp_path}/*.h5") as found:
        assert found.ids.tolist() == list(range(15)) and len(found) == 15
        assert found.read(7) == images[3].tobytes()  # the third of the second file


def test_ids_in_common_that_cannot_be_raised_are_an_error(images, labels, tmp_path):
    for number in range(2):
        write_raw(tmp_path / f"{number}.h5", images[:2], labels[:2], ids=np.array([0, 2**63 - 1]))
    with pytest.raises(DataError, match="ids in common"):
        open_packed(f"{tmp_path}/*.h5")


def test_the_fingerprint_is_that_of_the_files_in_their_order(shards):
    paths = [shards / f"{number}.h5" for number in range(3)]
    with open_packed(paths) as forwards, open_packed(paths[::-1]) as backwards, open_packed(str(shards / "*")) as again:
        assert forwards.fingerprint == again.fingerprint != backwards.fingerprint
    with open_packed([paths[0]]) as single, PackedFile(paths[0]) as file:
        assert single.fingerprint == file.fingerprint


def test_files_that_do_not_fit_together_are_named(shards, images, labels, tmp_path):
    other = write_raw(tmp_path / "small.h5", images[:5, :16], labels[:5])
    with pytest.raises(DataError, match=r"small\.h5: has images of shape \(16, 32, 3\), but .*0\.h5"):
        open_packed([shards / "0.h5", other])
    named = write_raw(tmp_path / "named.h5", images[:5], labels[:5], classes=["a", "b"])
    with pytest.raises(DataError, match=r"named\.h5: has classes"):
        open_packed([shards / "0.h5", named])
    _, subset = write_pair(tmp_path)
    with pytest.raises(DataError, match="is a subset"):
        open_packed([shards / "0.h5", subset])
    with pytest.raises(DataError, match="no file matches"):
        open_packed(f"{shards}/*.hdf5")
    with pytest.raises(UsageError, match="twice"):
        open_packed([shards / "0.h5", shards / "0.h5"])
    with pytest.raises(UsageError, match="empty list"):
        open_packed([])


def test_names_shapes_and_missing_labels_join(images, labels, tmp_path):
    shapes = np.full((5, 2), 32, np.int32)
    files = [encode(image) for image in images[:10]]
    names = [f"c/{row}.png" for row in range(10)]
    write_encoded(tmp_path / "a.h5", files[:5], None, names=names[:5], shapes=shapes)
    write_encoded(tmp_path / "b.h5", files[5:], None, names=names[5:], shapes=shapes + 1)
    with open_packed(f"{tmp_path}/*.h5") as found:
        assert found.labels is None and len(found) == 10
        assert list(found.names) == names and found.name_of(7) == "c/7.png" and found.names[-1] == "c/9.png"
        assert np.array_equal(found.shapes, np.concatenate([shapes, shapes + 1]))
    write_encoded(tmp_path / "b.h5", files[5:], None)
    with open_packed(f"{tmp_path}/*.h5") as found:
        assert found.names is None and found.shapes is None and found.name_of(7) == "row 7 (id 7)"
    write_encoded(tmp_path / "b.h5", files[5:], labels[5:10])
    with pytest.raises(DataError, match=r"b\.h5: has labels int64 of shape \(\), but .*a\.h5 has none"):
        open_packed(f"{tmp_path}/*.h5")


def test_a_file_of_the_set_that_is_truncated_in_mid_run_is_an_error(images, labels, tmp_path):
    for number in range(2):
        write_raw(tmp_path / f"{number}.h5", images, labels)
    with TwoPhaseLoader(
        f"{tmp_path}/*.h5", batch_size=16, steps=500, swap=0, augment=Augment.paper(24), device="cpu", resident_budget=0
    ) as loader:
        stream = iter(loader)
        next(stream)
        with open(tmp_path / "1.h5", "r+b") as file:
            file.truncate(8192)
        with pytest.raises(DataError, match=r"row .* can no longer be read|1\.h5: was changed"):
            list(stream)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_subset_keeps_its_samples_names_and_having_no_labels(images, labels, tmp_path, labelled):
    names = [f"c/{row}.png" for row in range(40)]
    full = write_raw(tmp_path / "full.h5", images[:40], labels[:40] if labelled else None, names=names)
    build_subset(full, tmp_path / "s.h5", strategy="random", size=9)
    with PackedFile(tmp_path / "s.h5") as file:
        assert list(file.names) == [names[i] for i in file.ids] and (file.labels is not None) == labelled
    if not labelled:
        with pytest.raises(UsageError, match=r"full\.h5: holds no labels, and balance_classes=True needs them"):
            build_subset(full, tmp_path / "s.h5", strategy="random", size=9, balance_classes=True)


def test_a_subset_is_built_from_a_set_and_belongs_to_it(shards, one, tmp_path):
    report = build_subset(f"{shards}/*.h5", tmp_path / "s.h5", strategy="random", size=20)
    alone = build_subset(one, tmp_path / "alone.h5", strategy="random", size=20)
    assert report.chosen == alone.chosen == 20
    settings = {"batch_size": 8, "steps": 6, "augment": Augment.paper(24), "device": "cpu", "with_ids": True}
    with PackedFile(tmp_path / "s.h5") as ours, PackedFile(tmp_path / "alone.h5") as theirs:
        assert np.array_equal(ours.ids, theirs.ids) and ours.read(3) == theirs.read(3)
    with TwoPhaseLoader(f"{shards}/*.h5", tmp_path / "s.h5", **settings) as loader:
        assert len(list(loader)) == 6
    with pytest.raises(DataError, match="another full set"):
        TwoPhaseLoader(one, tmp_path / "s.h5", **settings)
    with pytest.raises(UsageError, match="is the full set itself"):
        build_subset(f"{shards}/*.h5", shards / "1.h5", strategy="random", size=20)
