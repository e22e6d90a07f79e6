"""Labels: what is taken, in which form, and what is refused by name; the same for every source, and for `verify`."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packs import noise_images, write_raw
from samples import noise

import fastload
from fastload.command.verify import verify_file
from fastload.errors import DataError
from fastload.packed.file import PackedFile, PackedWriter
from fastload.packed.labels import as_ids, as_labels, label_faults

IMAGES = noise_images(6, 8, 8)


class Named(list):
    classes = ("a", "b")


def pairs(labels) -> list:
    return [(image, label) for image, label in zip(IMAGES, labels, strict=True)]


def npz(path: Path, labels: np.ndarray) -> Path:
    np.savez(path, images=IMAGES, labels=labels)
    return path


def hdf5(path: Path, labels: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        file["x"], file["y"] = IMAGES, labels
    return path


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 1, 1), (6, 1, 1, 1)])
@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.dtype(">i4"), np.uint64, bool])
def test_a_column_of_class_indices_is_one_number_a_sample_whatever_the_source(tmp_path: Path, shape, dtype) -> None:
    column = (np.arange(6) % 2).reshape(shape).astype(dtype)
    for source, options in (
        (npz(tmp_path / "a.npz", column), {}),
        (hdf5(tmp_path / "u.h5", column), {"images": "x", "labels": "y"}),
        (pairs(column), {}),
    ):
        fastload.pack(source, tmp_path / "out.h5", **options)
        with PackedFile(tmp_path / "out.h5") as file:
            assert file.labels.tolist() == [0, 1, 0, 1, 0, 1] and file.labels.dtype.isnative
    with PackedFile(tmp_path / "u.h5", images="x", labels="y") as own:
        assert own.labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_a_column_of_floating_point_keeps_its_shape(tmp_path: Path) -> None:
    column = np.arange(6, dtype=np.float32)[:, None]
    for source in (npz(tmp_path / "a.npz", column), pairs(column)):
        fastload.pack(source, tmp_path / "out.h5")
        with PackedFile(tmp_path / "out.h5") as file:
            assert np.array_equal(file.labels, column)


HOSTILE = [
    (np.array([0, 2**63], np.uint64), r"row 1 is 9,223,372,036,854,775,808, beyond"),
    ([0, 2**70], "row 1 is an integer of 71 bits, beyond a 64-bit"),
    ([0, 10**5000], "row 1 is an integer of 16610 bits"),
    ([-1, 2**63], "beyond"),
    ([0, None], "row 1 is None"),
    ([0, "cat"], "is text"),
    ([[1, 2], [3]], "rows of several lengths"),
    (np.ma.array([1, 2], mask=[False, True]), "row 1 is masked"),
    (np.ma.array([[1, 2]], mask=[[False, True]]), r"row 0, element \[1\] is masked"),
    (np.array([1j]), "is complex128; labels are numbers"),
    (np.array(["2020-01-01"], "datetime64[D]"), "is datetime64"),
    (torch.eye(2).to_sparse(), "is a sparse tensor"),
    (torch.ones(2).to(torch.float8_e4m3fn), r"is a tensor \(torch.float8_e4m3fn\) that NumPy cannot hold"),
    (torch.empty(2, device="meta"), "is a tensor .*that NumPy cannot hold"),
    (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "is a tensor .*that NumPy cannot hold"),
    (3, "is one int64 for the whole set"),
]


@pytest.mark.parametrize("values, words", HOSTILE, ids=[words for _, words in HOSTILE])
def test_labels_that_are_no_numbers_are_refused_by_name(values, words: str) -> None:
    with pytest.raises(DataError, match=f"^train: 'y'.*{words}") as caught:
        as_labels(values, "train: 'y'")
    assert "\n" not in str(caught.value)


def test_a_mask_that_hides_nothing_is_no_mask() -> None:
    assert as_labels(np.ma.array([1, 2]), "y").tolist() == [1, 2]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_labels_of_64_bits_keep_their_value(values: list[int]) -> None:
    assert as_labels(values, "y").tolist() == values


@pytest.mark.parametrize(
    "ids, words",
    [
        (np.array([0, 2**63], np.uint64), "ids: row 1 is 9,223,372,036,854,775,808, beyond"),
        ([0, -4], "ids: row 1 is -4; an id is not negative"),
        ([0.0, 1.0], "ids is float64"),
        (np.ma.array([1, 2], mask=[False, True]), "ids: row 1 is masked"),
    ],
)
def test_ids_that_are_no_ids_are_refused_by_name(tmp_path: Path, ids, words: str) -> None:
    assert as_ids(np.array([2**63 - 1], np.uint64), "ids").tolist() == [2**63 - 1]
    with pytest.raises(DataError, match=f"out.h5: {words}"):
        PackedWriter(tmp_path / "out.h5", shape=(2, 8, 8, 3), labels=[0, 0], ids=ids, source={})


@pytest.mark.parametrize(
    "labels, classes, rows, reason",
    [
        ([0, 1, -1, 2], ["a", "b"], [2, 3], "outside 0 to 1, the numbers of its classes"),
        ([0, 1, -1, 2], [], None, ""),  # without names they may be whatever the source had
        ([[0], [9]], ["a"], [1], "outside 0 to 0"),
        ([0.5, np.nan, np.inf], [], [1, 2], "not finite"),
        ([[0.5, 1], [np.nan, 1]], ["a", "b"], [1], "not finite"),
        ([True, False], ["a"], None, ""),
    ],
)
def test_labels_that_no_training_can_use_are_found(labels, classes, rows, reason: str) -> None:
    found = label_faults(as_labels(labels, "y"), classes)
    assert [fault.rows.tolist() for fault in found] == ([] if rows is None else [rows])
    assert all(fault.reason.startswith(reason) for fault in found)


def test_pack_and_verify_refuse_the_same_labels(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    nan = np.array([0, 1, np.nan, 1, 0, 1])
    outside = [0, 1, 2, 1, -1, 1]
    for source, classes, words, kept in (
        (npz(tmp_path / "a.npz", nan), (), r"'images\[2\]' has label nan, not finite", [0, 1, 3, 4, 5]),
        (pairs(nan), (), "'item 2' has label nan, not finite", [0, 1, 3, 4, 5]),
        (Named(pairs(outside)), ("a", "b"), "'item 2' has label 2, outside 0 to 1", [0, 1, 3, 5]),
    ):
        with pytest.raises(DataError, match=words):
            fastload.pack(source, out)
        summary = fastload.pack(source, out, skip_broken=True)
        assert len(summary.skipped) == 6 - len(kept)
        with PackedFile(out) as file:
            assert file.ids.tolist() == kept
        assert verify_file(out).ok
        labels = np.asarray(nan if not classes else outside)
        assert not verify_file(write_raw(tmp_path / "old.h5", IMAGES, labels, classes=classes)).ok


# -- what a header claims -------------------------------------------------------------------------


def zipped(path: Path, **arrays: tuple[tuple[int, ...], str, int]) -> Path:
    """An .npz of zeros whose headers claim (shape, dtype), with so many bytes behind each."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (shape, dtype, size) in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                header = {"shape": shape, "fortran_order": False, "descr": np.dtype(dtype).str}
                np.lib.format.write_array_header_2_0(file, header)
                file.write(bytes(size))
    return path


@pytest.mark.parametrize(
    "labels, images, words",
    [
        (((10**9,), "i8"), ((6, 8, 8, 3), "u1"), "'labels' has 1,000,000,000 rows but 'images' has 6"),
        (((6, 10**9), "f4"), ((6, 8, 8, 3), "u1"), r"'labels' has shape \(6, 1000000000\), 24,000,000,000 bytes"),
        (((6,), "i8"), ((6, 2**20, 2**20, 3), "u1"), r"'images' has shape .* bytes an image"),
        (((6,), "i8"), ((6, 0, 8, 3), "u1"), r"'images' has shape \(6, 0, 8, 3\): its images hold not one pixel"),
        (
            ((6,), "i8"),
            ((6, 8, 8, 3), "u2"),
            "'images' has dtype uint16; images are uint8, 0 to 255: scale them to that",
        ),
        (((), "i8"), ((6, 8, 8, 3), "u1"), "'labels' is one int64 for the whole set; .* save one for each sample"),
    ],
)
def test_what_an_npz_claims_is_checked_before_it_is_read(tmp_path: Path, labels, images, words: str) -> None:
    path = zipped(tmp_path / "a.npz", images=(*images, 1152), labels=(*labels, 1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=words):
            fastload.pack(path, tmp_path / "out.h5")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_what_an_hdf5_file_claims_of_its_labels_is_checked_before_it_is_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("fastload.packed.labels.LARGEST_LABELS", 1000)
    for width, taken in ((166, True), (167, False)):
        path = hdf5(tmp_path / f"{width}.h5", np.zeros((6, width), np.uint8))
        if taken:
            fastload.pack(path, tmp_path / "out.h5", images="x", labels="y")
            continue
        with pytest.raises(DataError, match=r"'y' has shape \(6, 167\), 1,002 bytes; labels may take 1,000"):
            fastload.pack(path, tmp_path / "out.h5", images="x", labels="y")


def test_images_whose_pixels_are_masked_are_refused(tmp_path: Path) -> None:
    masked = np.ma.array(noise(8, 8), mask=np.eye(8, dtype=bool)[:, :, None].repeat(3, 2))
    with pytest.raises(DataError, match="'item 1' has an image of which pixels are masked"):
        fastload.pack([(noise(8, 8), 0), (masked, 1)], tmp_path / "out.h5")
