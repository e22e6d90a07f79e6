"""The evidence's sets of data: what is in them, that they are made alike each time, and whole or not at all."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from idx_files import idx_bytes, write_fashion
from packs import noise_images, write_raw
from recipe_reference import augmented

from fastload.augment import Augment
from fastload.bench.evidence import near_copies, sets
from fastload.bench.evidence.idx import read_idx
from fastload.bench.evidence.sets import NAMES, ImageSet, Sources, fashion_folder, make_set, wrong_rows
from fastload.errors import DataError, UsageError
from fastload.feeds.batch import Output
from fastload.feeds.evaluation import EvaluationLoader
from fastload.feeds.feed import open_feed
from fastload.order import FAST, Order, permutation
from fastload.packed.file import PackedFile

MADE_OF_CIFAR = [name for name in NAMES if name != "fashion-mnist"]
LIMIT = 1000


def pixels_of(path: Path) -> np.ndarray:
    with PackedFile(path) as file:
        return np.stack([file.read_image(row) for row in range(len(file))])


def fields(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    with PackedFile(path) as file:
        return file.labels, file.ids, file.classes


@pytest.fixture(scope="module")
def sources(cifar_full: Path) -> Sources:
    """CIFAR-10; its training set stands for the test set too, of which the sets take a part, or nothing."""
    return Sources(cifar_full, cifar_full, None)


@pytest.fixture(scope="module")
def made(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageSet]:
    """Every set that is made from CIFAR-10, of at most 1,000 training images."""
    folder, few = tmp_path_factory.mktemp("sets"), Sources(sources.full, sources.test, None, LIMIT)
    return {name: make_set(name, few, folder) for name in MADE_OF_CIFAR}


def test_cifar10_is_the_files_themselves_where_there_is_no_limit(sources, tmp_path):
    assert make_set("cifar10", sources, tmp_path) == ImageSet("cifar10", sources.full, sources.test)
    assert not list(tmp_path.iterdir())


def test_a_limit_takes_as_many_of_each_class_and_a_fifth_of_it_to_test_on(made, sources):
    full_labels, _, names = fields(sources.full)
    for path, count in ((made["cifar10"].full, LIMIT), (made["cifar10"].test, LIMIT // 5)):
        labels, ids, classes = fields(path)
        assert np.bincount(labels).tolist() == [count // 10] * 10 and classes == names
        assert len(np.unique(ids)) == count and np.array_equal(full_labels[ids], labels)
        with PackedFile(sources.full) as full:
            assert all(
                np.array_equal(full.read_image(int(i)), pixels) for i, pixels in zip(ids, pixels_of(path), strict=True)
            )
    assert {one.test for one in made.values()} == {made["cifar10"].test}  # the changed sets are tested on clean images
    assert all(str(LIMIT) in one.full.name and name in one.full.name for name, one in made.items())


def test_the_whole_long_tail_falls_exponentially_from_5000_to_50(sources, tmp_path):
    found = make_set("long-tail", sources, tmp_path)
    labels, ids, classes = fields(found.full)
    # 5,000 · 100^(-c / 9), rounded
    assert np.bincount(labels).tolist() == [5000, 2997, 1797, 1077, 646, 387, 232, 139, 83, 50]
    full_labels, _, names = fields(sources.full)
    assert np.array_equal(full_labels[ids], labels) and len(np.unique(ids)) == len(ids) and classes == names
    assert found.test == sources.test and found.copies == 1
    kept = np.flatnonzero(np.isin(np.arange(50_000), ids) & (full_labels == 5)) - 25_000
    assert 2000 < kept.mean() < 3000 and kept.max() > 4500  # drawn from the whole class, not from its beginning


def test_no_class_of_a_small_long_tail_is_empty(made):
    counts = np.bincount(fields(made["long-tail"].full)[0])
    assert counts.tolist() == [100, 60, 36, 22, 13, 8, 5, 3, 2, 1]


def test_near_copies_are_near_their_image_never_equal_and_mixed(made, sources):
    one = made["near-copies"]
    labels, ids, _ = fields(one.full)
    images, full_labels = pixels_of(one.full).astype(int), fields(sources.full)[0]
    originals = ids // one.copies
    assert one.copies == 5 and np.bincount(labels).tolist() == [LIMIT // 10] * 10
    assert (np.unique(originals, return_counts=True)[1] == 5).all() and len(np.unique(ids)) == LIMIT
    assert np.array_equal(full_labels[originals], labels)
    assert len({image.tobytes() for image in images}) == LIMIT
    with PackedFile(sources.full) as full:
        away = np.array(
            [np.abs(image - full.read_image(int(i))).mean() for image, i in zip(images, originals, strict=True)]
        )
        others = [
            np.abs(image - full.read_image(int(i))).mean()
            for image, i in zip(images, np.roll(originals, 1), strict=True)
        ]
    assert away.max() < 20 < 40 < np.median(others)  # in levels of 255
    worse = [away[ids % 5 == number].mean() for number in (0, 1, 3, 4)]
    assert worse == sorted(worse) and worse[0] < 2 < worse[-1]  # CIFAR-10's own files are of quality 75, copy 2's
    assert (np.diff(np.argsort(ids)) == 1).mean() < 0.02  # copies do not stand side by side
    assert np.abs(np.corrcoef(np.arange(LIMIT), labels)[0, 1]) < 0.15


def test_a_copy_that_would_equal_another_is_made_at_the_next_quality_below(few_cifar, tmp_path):
    images = pixels_of(few_cifar)[:2]
    full = write_raw(tmp_path / "full.h5", images[[0, 1, 0]], np.arange(3), classes=list("abc"))
    others: list[tuple[int, int]] = []
    with PackedFile(full) as file:
        rows = np.array([0, 1, 2, 0])
        copies = list(near_copies.near_copies(file, rows, [60, 60, 60, 60], others))
        want = list(near_copies.near_copies(file, rows, [60, 60, 59, 58], []))
    assert others == [(2, 59), (3, 58)]  # row 2 is row 0's picture
    assert all(np.array_equal(a, b) for a, b in zip(copies, want, strict=True))
    assert len({copy.tobytes() for copy in copies}) == 4


def test_a_picture_without_differing_copies_is_named(tmp_path):
    grey = write_raw(tmp_path / "grey.h5", np.full((1, 8, 8, 3), 128, np.uint8), np.zeros(1, int), classes=["a"])
    with PackedFile(grey) as file, pytest.raises(DataError, match=r"grey\.h5: row 0 \(id 0\) looks the same at every"):
        list(near_copies.near_copies(file, np.zeros(200, np.int64), [100] * 200, []))


def test_a_fifth_of_the_training_labels_is_wrong_as_often_by_each_other_class(sources, tmp_path):
    found = make_set("wrong-labels", sources, tmp_path)
    labels, ids, _ = fields(found.full)
    true = fields(sources.full)[0]
    wrong = np.flatnonzero(labels != true)
    assert np.array_equal(ids, np.arange(50_000)) and found.test == sources.test
    assert len(wrong) == 10_000 and np.array_equal(wrong, np.sort(wrong_rows(50_000)))
    table = np.zeros((10, 10))
    np.add.at(table, (true[wrong], labels[wrong]), 1)
    off = table[~np.eye(10, dtype=bool)]
    assert ((off - 10_000 / 90) ** 2 / (10_000 / 90)).sum() < 143.3  # χ², 89 degrees of freedom, 1 in 4,000
    with PackedFile(sources.full) as full, PackedFile(found.full) as file:
        assert np.array_equal(full.digests, file.digests)  # the images are untouched


@pytest.mark.parametrize("n", [1000, 50_000])
def test_random_subsets_have_their_fair_share_of_wrong_labels(n):
    wrong, shares = np.zeros(n, bool), []
    wrong[wrong_rows(n)] = True
    for seed in range(20):
        shares.append(wrong[permutation(n, seed)[: n // 10]].mean())
    assert abs(np.mean(shares) - 0.2) < 0.02 and max(shares) < 0.35


@pytest.mark.parametrize("name", MADE_OF_CIFAR)
def test_another_folder_gets_the_same_bytes(name, made, sources, tmp_path):
    again = make_set(name, Sources(sources.full, sources.test, None, LIMIT), tmp_path)
    for here, there in ((made[name].full, again.full), (made[name].test, again.test)):
        assert here != there and here.read_bytes() == there.read_bytes()


def test_a_whole_file_is_taken_and_another_is_made_anew(made, sources, few_cifar, tmp_path):
    few = Sources(sources.full, sources.test, None, LIMIT)
    first = make_set("wrong-labels", few, tmp_path)
    was, content = first.full.stat(), first.full.read_bytes()
    assert make_set("wrong-labels", few, tmp_path) == first
    assert (first.full.stat().st_ino, first.full.stat().st_mtime_ns) == (was.st_ino, was.st_mtime_ns)
    first.full.write_bytes(content[: len(content) // 2])
    assert make_set("wrong-labels", few, tmp_path).full.read_bytes() == content
    other = make_set("wrong-labels", Sources(few_cifar, few_cifar, None, LIMIT), tmp_path)  # other sources, same name
    assert other == first and len(fields(other.full)[0]) == 400


def test_what_is_interrupted_leaves_nothing(sources, tmp_path, monkeypatch):
    read, seen = PackedFile.read_image, []

    def stops(file, row):
        seen.append(row)
        if len(seen) == 700:
            raise KeyboardInterrupt
        return read(file, row)

    few = Sources(sources.full, sources.test, None, LIMIT)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PackedFile, "read_image", stops)
        make_set("near-copies", few, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"cifar10-{LIMIT}-test.h5"]
    assert len(fields(make_set("near-copies", few, tmp_path).full)[0]) == LIMIT


def test_what_cannot_be_made_is_said(sources, few_cifar, tmp_path):
    with pytest.raises(UsageError, match=r"'cifar100' is none of .*; choose one of cifar10, fashion-mnist, long-tail"):
        make_set("cifar100", sources, tmp_path)
    with pytest.raises(UsageError, match="limit=49 leaves some of 10 classes without images; give 50 or more"):
        make_set("cifar10", Sources(few_cifar, few_cifar, None, 49), tmp_path)
    with pytest.raises(DataError, match="Fashion-MNIST is not here; install Debian's package dataset-fashion-mnist"):
        make_set("fashion-mnist", sources, tmp_path)
    nameless = write_raw(tmp_path / "nameless.h5", noise_images(20), np.arange(20) % 10)
    with pytest.raises(DataError, match=r"nameless\.h5: the evidence's sets are made from raw images"):
        make_set("long-tail", Sources(nameless, nameless, None), tmp_path)


# -- Fashion-MNIST ---------------------------------------------------------------------------------------------------


def test_idx_files_become_packed_files_of_one_channel(tmp_path):
    held = write_fashion(tmp_path / "idx")
    found = make_set("fashion-mnist", Sources(tmp_path, tmp_path, tmp_path / "idx"), tmp_path / "made")
    for path, prefix in ((found.full, "train"), (found.test, "t10k")):
        labels, ids, classes = fields(path)
        assert np.array_equal(pixels_of(path)[..., 0], held[f"{prefix}-images-idx3-ubyte"])
        assert np.array_equal(labels, held[f"{prefix}-labels-idx1-ubyte"]) and labels.dtype == np.int64
        assert np.array_equal(ids, np.arange(len(labels)))
        assert (classes[0], classes[9], len(classes)) == ("T-shirt/top", "Ankle boot", 10)
    limited = make_set("fashion-mnist", Sources(tmp_path, tmp_path, None, 50), tmp_path / "made")
    assert np.bincount(fields(limited.full)[0]).tolist() == [5] * 10
    assert np.bincount(fields(limited.test)[0]).tolist() == [1] * 10


def test_one_channel_goes_through_the_papers_augmentation(tmp_path):
    write_fashion(tmp_path / "idx")
    found = make_set("fashion-mnist", Sources(tmp_path, tmp_path, tmp_path / "idx"), tmp_path)
    augment, images = Augment.paper(24), pixels_of(found.full)
    with PackedFile(found.full) as file:
        feed = open_feed(file, augment, Order(60, 3, FAST), Output(60, torch.device("cpu")))
        batch = feed.make(0, 60)
        feed.close()
        plain = torch.cat([one for one, _ in EvaluationLoader(file, augment, batch_size=25)]).numpy()
    rows = Order(60, 3, FAST).rows(0, 60)[0]
    want = np.stack([augmented(images[row], augment, row, 0, seed=3, phase=FAST)[0] for row in rows.tolist()])
    np.testing.assert_allclose(batch.images.numpy().transpose(0, 2, 3, 1), want, atol=2e-4)
    centre = images[:, 2:26, 2:26, 0].astype(np.float64)
    mean, deviation = centre.mean((1, 2), keepdims=True), centre.std((1, 2), keepdims=True)
    np.testing.assert_allclose(plain[:, 0], (centre - mean) / deviation, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzipped"])
def test_an_idx_file_is_read_as_it_is(tmp_path, packed):
    values = np.random.default_rng(0).integers(0, 256, (3, 4, 5), dtype=np.uint8)
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(idx_bytes(values)) if packed else idx_bytes(values))
    assert np.array_equal(read_idx(path, 3), values)


VALUES = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
DAMAGED = {
    "empty": (b"", "begins with nothing, and an IDX file of bytes in 3 dimensions begins with 00000803"),
    "labels": (idx_bytes(VALUES[0, 0]), "begins with 00000801"),
    "floats": (b"\x00\x00\x0d\x03" + idx_bytes(VALUES)[4:], "begins with 00000d03"),
    "a header alone, cut": (idx_bytes(VALUES)[:10], "begins with 00000803, and .* and their sizes"),
    "cut": (idx_bytes(VALUES)[:-1], "holds 59 bytes after its header, which says 3×4×5 = 60"),
    "too long": (idx_bytes(VALUES) + b"x", "holds 61 bytes after its header"),
    "huge sides": (b"\x00\x00\x08\x03" + b"\xff" * 12, "holds 0 bytes after its header, which says 4,294,967,295×"),
    "gzip, cut": (gzip.compress(idx_bytes(VALUES))[:-9], "cannot be read .*; replace it by a whole copy"),
    "gzip, changed": (gzip.compress(idx_bytes(VALUES))[:-8] + b"abcdefgh", "cannot be read .*CRC"),
    "gzip, not deflated": (gzip.compress(b"")[:10] + b"\xff" * 30, "cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_idx_files_are_named_with_what_is_wrong(tmp_path, kind):
    data, message = DAMAGED[kind]
    (tmp_path / "images").write_bytes(data)
    with pytest.raises(DataError, match=f"images: {message}"):
        read_idx(tmp_path / "images", 3)


def test_files_that_do_not_go_together_or_are_missing_are_named(tmp_path):
    idx = tmp_path / "idx"
    write_fashion(idx)
    (idx / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(19, np.uint8)))
    sources = Sources(tmp_path, tmp_path, idx)
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte: holds 19 labels, but .*ubyte holds 20 images"):
        make_set("fashion-mnist", sources, tmp_path)
    (idx / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"idx: holds neither t10k-labels-idx1-ubyte nor t10k-labels-idx1-ubyte\.gz"):
        make_set("fashion-mnist", sources, tmp_path)


def test_the_folder_of_debians_package_is_found_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "_DEBIAN", tmp_path / "fashion-mnist")
    assert fashion_folder() is None
    (tmp_path / "fashion-mnist").mkdir()
    assert fashion_folder() == tmp_path / "fashion-mnist"


def test_fashion_mnist_itself(tmp_path):
    folder = fashion_folder()
    if folder is None:
        pytest.skip("Fashion-MNIST is not in /usr/share/datasets; Debian's package dataset-fashion-mnist puts it there")
    found = make_set("fashion-mnist", Sources(tmp_path, tmp_path, folder), tmp_path)
    for path, count in ((found.full, 6000), (found.test, 1000)):
        with PackedFile(path) as file:
            assert file.shape == (28, 28, 1) and np.bincount(file.labels).tolist() == [count] * 10
