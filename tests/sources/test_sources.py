"""Every kind of source: what it lists, in which order, and which input it refuses."""

from __future__ import annotations

import collections
import gzip
import io
import lzma
import os
import pickle
import tarfile
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features
from samples import cifar_files, class_files, encode, noise, put, tar, zipped

import fastload
from fastload.errors import DataError, FastloadError, UsageError
from fastload.packing.decoding import decode
from fastload.sources import open_source, safe_pickle
from fastload.sources.patterns import expand


def contents(source) -> list[np.ndarray]:
    """All samples' pixels in sorted order."""
    found = dict(source.read())
    assert sorted(found) == list(range(len(source)))
    return [decode(found[index]) for index in range(len(source))]


def expect(error: type[FastloadError], words: str, *arguments, **options) -> None:
    with pytest.raises(error, match=words) as caught:
        source = open_source(*arguments, **options)
        for index, sample in source.read():
            if isinstance(sample, DataError):
                raise DataError(f"'{source.names[index]}' {sample}")
    assert "\n" not in str(caught.value)


# -- class folders --------------------------------------------------------------------------------


def test_class_folders_sort_by_class_then_path_and_count_what_they_ignore(tmp_path: Path) -> None:
    files = {"b/2.png": b"", "b/10.PNG": b"", "a/z/deep.jpeg": b"", "a/1.webp": b"", "a b/0.png": b"", "b/._2.png": b""}
    source = open_source(put(tmp_path / "s", {**files, "b/x.txt": b"", ".git/0.png": b""}))
    assert list(source.names) == ["a/1.webp", "a/z/deep.jpeg", "a b/0.png", "b/10.PNG", "b/2.png"]
    assert source.classes == ["a", "a b", "b"] and source.labels.tolist() == [0, 0, 1, 2, 2]
    assert source.ignored == 3 and source.labels.dtype == np.int64


def xz(data: bytes) -> bytes:
    return lzma.compress(data)


def zst(data: bytes) -> bytes:
    return zstandard.compress(data)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, xz, zst])
@pytest.mark.parametrize("prefix", ["", "./", "/", "data/set/"])
def test_tar_lists_and_reads_as_the_folder_does_whatever_its_compression_and_prefix(
    tmp_path: Path, pack, prefix: str
) -> None:
    files = class_files()
    folder = open_source(put(tmp_path / "s", files))
    plain = tar(tmp_path / "t.tar", {prefix + name: data for name, data in reversed(files.items())})
    plain.write_bytes(pack(plain.read_bytes()))
    archive = open_source(plain)
    assert [name.removeprefix("data/set/") for name in archive.names] == list(folder.names)
    assert archive.classes == folder.classes and np.array_equal(archive.labels, folder.labels)
    assert np.array_equal(archive.sizes, folder.sizes) and archive.ignored == folder.ignored
    assert archive.kind == folder.kind and archive.details == folder.details
    assert all(np.array_equal(a, b) for a, b in zip(contents(archive), contents(folder), strict=True))


def test_long_and_foreign_names_are_read_from_pax_and_gnu_tars(tmp_path: Path) -> None:
    names = [f"c/{'x' * 150}.png", f"c/{'é' * 40}.png", "c/\udcff.png"]
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = tar(tmp_path / "t.tar", {name: encode(noise()) for name in [*names, "d/0.png"]}, format=form)
        source = open_source(path)
        assert len(contents(source)) == 4 and any("\\xff" in name for name in source.names)


def test_split_is_a_top_level_folder_and_must_be_named_where_there_are_several(tmp_path: Path) -> None:
    files = {f"{split}/{name}": data for split in ("train", "test") for name, data in class_files(3, 2).items()}
    folder = put(tmp_path / "s", files)
    for path in (folder, tar(tmp_path / "t.tar", {f"top/{name}": data for name, data in files.items()})):
        assert len(open_source(path, split="train")) == 6
        expect(UsageError, r"several splits: test \(6 images\), train \(6 images\); name one with split=", path)
        expect(UsageError, "no split 'val'; its folders are test", path, split="val")


def test_one_leading_folder_is_passed_over_but_not_the_only_class(tmp_path: Path) -> None:
    assert open_source(put(tmp_path / "a", {"train/cat/0.png": b"", "train/dog/0.png": b""})).classes == ["cat", "dog"]
    only = put(tmp_path / "b", {"cat/0.png": b"", "cat/1.png": b""})
    expect(DataError, "holds 2 images of one class, 'cat', .*say class_level=1 if that is meant", only)
    assert open_source(only, class_level=1).classes == ["cat"]


@pytest.mark.parametrize(
    "files, words",
    [
        (
            {"a/0.png": b"", "b/x.txt": b"", "b/": b""},
            r"image 'a/0.png' stands in no class folder \(.*'b/x.txt' are not",
        ),
        ({"a/0.png": b"", "b/0.heic": b"", "b/": b""}, "class folder 'b' holds 1 .heic, which cannot be read"),
        ({"a/0.png": b"", "stray.png": b""}, "image 'stray.png' stands in no class folder"),
        ({"0.png": b"", "1.png": b""}, "image '0.png' stands in no class folder"),
        (
            {"a/x.csv": b"", "b.csv": b""},
            r"no image, no CIFAR batch and no WebDataset sample among 2 files \(2 of .csv\)",
        ),
        ({"a/": b""}, "is empty: there is not one file"),
    ],
)
def test_bad_class_folders_are_named_alike_in_folder_and_tar(
    tmp_path: Path, files: dict[str, bytes], words: str
) -> None:
    expect(DataError, words, put(tmp_path / "s", files))
    expect(DataError, words, tar(tmp_path / "t.tar", files))


def test_folder_follows_links_but_not_in_circles_and_names_broken_ones(tmp_path: Path) -> None:
    put(tmp_path / "real", class_files(1, 2))
    put(tmp_path / "s", {"ant/": b""})
    (tmp_path / "s" / "cat").symlink_to(tmp_path / "real" / "c0")
    assert len(contents(open_source(tmp_path / "s"))) == 2
    (tmp_path / "s" / "ant" / "0.png").symlink_to(tmp_path / "nowhere")
    expect(DataError, "'ant/0.png' is a link that cannot be followed", tmp_path / "s")
    (tmp_path / "s" / "ant" / "0.png").unlink()
    (tmp_path / "s" / "loop").symlink_to(tmp_path / "s")
    expect(DataError, "'loop' is a link to a folder that holds it", tmp_path / "s")


def test_tar_with_links_duplicates_or_ways_out_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    image = encode(noise())
    link = tarfile.TarInfo("c/link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "l.tar", "w") as archive:
        archive.addfile(link)
    expect(DataError, "'c/link.png' is a link", tmp_path / "l.tar", class_level=1)
    expect(DataError, "points outside the archive", tar(tmp_path / "o.tar", {"c/../../x.png": image}))
    with tarfile.open(tmp_path / "d.tar", "w") as archive:
        for _ in range(2):
            info = tarfile.TarInfo("c/0.png")
            info.size = len(image)
            archive.addfile(info, io.BytesIO(image))
    expect(DataError, "holds 'c/0.png' twice", tmp_path / "d.tar")
    assert sorted(os.listdir(tmp_path)) == ["d.tar", "l.tar", "o.tar"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, xz, zst])
@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 0.999))
def test_truncated_tar_is_an_error_wherever_it_ends(
    tmp_path_factory: pytest.TempPathFactory, pack, share: float
) -> None:
    path = tmp_path_factory.mktemp("t") / "t.tar"
    buffer = tar(path, class_files(2, 2)).read_bytes()
    end = max(number for number in range(0, len(buffer), 512) if any(buffer[number : number + 512])) + 512
    whole = pack(buffer[: end + 1024])
    # The last two blocks are the closing mark, of which one is enough.
    path.write_bytes(whole[: int(share * (len(whole) - (1024 if pack is bytes else 0)))])
    expect(DataError, r"t\.tar: ", path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_tar_is_an_error_or_reads(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("t") / "t.tar"
    content = bytearray(tar(path, class_files(2, 2)).read_bytes())
    for _ in range(3):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        for _ in open_source(path).read():
            pass
    except FastloadError as error:
        assert "\n" not in str(error)


# -- CIFAR ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["10py", "10bin", "100py", "100bin"])
@pytest.mark.parametrize("split", [None, "train", "test"])
def test_cifar_in_every_published_form_as_archive_and_folder(tmp_path: Path, kind: str, split: str | None) -> None:
    files, truth = cifar_files(kind)
    pixels, labels = truth[split or "train"]
    backwards = dict(reversed(files.items()))  # batches may come in any order
    for path in (put(tmp_path / "f", files), tar(tmp_path / "a.tar.gz", backwards, "w:gz")):
        source = open_source(path, split=split)
        assert source.labels.tolist() == labels and source.classes[9] == "class 9"
        assert all(np.array_equal(a, b) for a, b in zip(contents(source), pixels, strict=True))
        assert "[2]" in source.names[2] and source.details == {"split": split or "train"}


def test_cifar_that_lacks_or_breaks_a_file_is_named(tmp_path: Path) -> None:
    files, _ = cifar_files("10bin")
    name = "cifar-10-batches-bin/data_batch_3.bin"
    expect(DataError, f"'{name}' is missing", put(tmp_path / "m", {k: v for k, v in files.items() if k != name}))
    expect(DataError, "not a multiple of 3,073", put(tmp_path / "t", {**files, name: files[name][:-1]}))
    expect(UsageError, "has no split 'val'; CIFAR has train and test", put(tmp_path / "v", files), split="val")


class Attack:
    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_malicious_pickle_is_named_and_not_run(tmp_path: Path) -> None:
    files, _ = cifar_files("10py")
    proof = tmp_path / "executed"
    batch = "cifar-10-batches-py/data_batch_1"
    for attack in (
        Attack(os.system, f"touch {proof}"),
        Attack(eval, "1"),
        Attack(np.load, str(proof)),
        Attack(getattr, 1, "x"),
    ):
        files[batch] = pickle.dumps({b"data": attack})
        expect(DataError, f"{batch}: is not a pickle of plain data .*nothing in it was run", put(tmp_path / "f", files))
    assert not proof.exists()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "array", [np.arange(6, dtype=np.uint8).reshape(2, 3), np.asfortranarray(np.ones((2, 3), ">f4"))]
)
def test_pickles_of_plain_data_are_read_in_every_protocol(protocol: int, array: np.ndarray) -> None:
    value = {"data": array, b"names": ["é", b"\xff"], "n": [1, 2.5, None, True, np.int64(3)]}
    found = safe_pickle.load(pickle.dumps(value, protocol=protocol), "here")
    assert np.array_equal(found["data"], array) and found["data"].dtype == array.dtype
    assert found["names"] == ["é", b"\xff"] and found["n"] == [1, 2.5, None, True, 3]


def test_python_2_pickle_with_old_numpy_names_is_read() -> None:
    # As `cPickle.dump({'data': numpy.arange(3, dtype='u1'), 'labels': [7]}, file, 2)` of Python 2 wrote it.
    old = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b"
        b"\x87Rq\x05(K\x01K\x03\x85cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff"
        b"\xff\xffK\x00tb\x89U\x03\x00\x01\x02tbU\x06labelsq\x08]q\tK\x07au."
    )
    found = safe_pickle.load(old, "here")
    assert found["data"].tolist() == [0, 1, 2] and found["labels"] == [7]


@pytest.mark.parametrize(
    "value",
    [np.array([object()]), np.zeros(2, "i4,f4"), collections.OrderedDict(a=1), {1, 2}, (1, 2), np.zeros(2, "M8[s]")],
)
def test_pickles_of_anything_else_are_refused(value: object) -> None:
    with pytest.raises(DataError, match="not a pickle of plain data"):
        safe_pickle.load(pickle.dumps({"data": value}), "here")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_pickles_raise_nothing_but_data_error(data: st.DataObject) -> None:
    content = bytearray(pickle.dumps({"data": np.arange(9, dtype=np.uint8), "labels": [1] * 3}, protocol=2))
    for _ in range(2):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        safe_pickle.load(bytes(content), "here")
    except DataError as error:
        assert "\n" not in str(error)


def nested_lists(levels: int) -> bytes:
    """A pickle of a list of 10 lists of 10 lists …, of which each level is stored once."""
    data = b"\x80\x02]q\x00(X\x01\x00\x00\x00ae0"
    for level in range(levels):
        data += b"]q" + bytes([level + 1]) + b"(" + (b"h" + bytes([level])) * 10 + b"e0"
    return data + b"h" + bytes([levels]) + b"."


# One text of 5,000 letters, encoded a thousand times.
COPIES = (
    b"\x80\x02c_codecs\nencode\nq\x00X" + (5000).to_bytes(4, "little") + b"x" * 5000 + b"q\x01"
    b"X\x06\x00\x00\x00latin1q\x02" + b"h\x00h\x01h\x02\x86R0" * 1000 + b"N."
)


@pytest.mark.parametrize(
    "data, words",
    [
        (b"\x80\x02" + b"]" * 2_000_001, "more than 2,000,000 steps"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "keeps a value under number 2,147,483,647 in 4 steps"),
        (b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"x.", "only 2 remain"),
        (COPIES, "makes more bytes than it has"),
    ],
    ids=["steps", "table", "length", "copies"],
)
def test_a_pickle_that_asks_for_more_memory_than_it_has_bytes_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        safe_pickle.load(data, "here")


def test_what_a_pickle_refers_to_often_is_made_once() -> None:
    value = safe_pickle.load(nested_lists(40), "here")  # 10^40 lists, were each reference a copy
    for _ in range(40):
        assert len(value) == 10 and all(item is value[0] for item in value)
        value = value[0]
    assert value == ["a"]


@pytest.mark.parametrize("label", [1 << 70, -1, 256, "1", None])
def test_cifar_labels_that_are_none_are_refused(tmp_path: Path, label: object) -> None:
    files, _ = cifar_files("10py")
    pixels = np.zeros((1, 3072), np.uint8)
    files["cifar-10-batches-py/data_batch_2"] = pickle.dumps({b"data": pixels, b"labels": [label]})
    expect(DataError, "data_batch_2: has no list 'labels' of integers from 0 to 255", put(tmp_path / "f", files))


# -- npz ------------------------------------------------------------------------------------------

N = 5
RGB = np.stack([noise(6, 7) for _ in range(N)])


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, **arrays)
    return path


@pytest.mark.parametrize(
    "keys", [("images", "labels"), ("x", "y"), ("X", "Y"), ("data", "labels"), ("image", "targets")]
)
@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW"])
def test_npz_is_read_by_its_usual_keys_in_each_layout(tmp_path: Path, keys: tuple[str, str], layout: str) -> None:
    stored = {"NHWC": RGB, "NCHW": np.ascontiguousarray(RGB.transpose(0, 3, 1, 2)), "NHW": RGB[..., 0].copy()}[layout]
    expected = RGB if layout != "NHW" else np.repeat(RGB[..., :1], 3, axis=3)
    source = open_source(save(tmp_path / "a.npz", **{keys[0]: stored, keys[1]: np.arange(N)[:, None]}))
    assert source.labels.tolist() == list(range(N))  # a column of class indices is a list of them
    assert np.array_equal(contents(source), expected)


def test_npz_with_splits_or_named_arrays(tmp_path: Path) -> None:
    keras = save(tmp_path / "k.npz", x_train=RGB, y_train=np.arange(N), x_test=RGB[:2], y_test=np.arange(2))
    medmnist = save(tmp_path / "m.npz", train_images=RGB, train_labels=np.arange(N), val_images=RGB[:1], val_labels=[1])
    assert len(open_source(keras, split="test")) == 2 and len(open_source(medmnist, split="val")) == 1
    assert open_source(keras, images="x_test", labels="y_test").details == {}
    expect(UsageError, r"several splits: train \(5 images\), test \(2 images\); name one with split=", keras)
    expect(UsageError, "has no split 'dev'; its splits: train, test", keras, split="dev")
    expect(UsageError, "has no array 'x'; its arrays: x_test", keras, images="x", labels="y_test")
    expect(UsageError, "go together: give both", keras, images="x")


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"images": RGB / 255, "labels": np.arange(N)}, "'images' has dtype float64; images are uint8"),
        ({"images": RGB, "labels": np.arange(3)}, "'labels' has 3 rows but 'images' has 5"),
        ({"images": RGB, "labels": np.array(["a"] * N)}, "'labels' is text; labels are numbers"),
        ({"images": np.asfortranarray(RGB), "labels": np.arange(N)}, "Fortran order"),
        ({"images": RGB[:, :, :, 0, None, None], "labels": np.arange(N)}, "images are .N, H, W, C."),
        ({"images": np.array([Attack(os.abort)] * N), "labels": np.arange(N)}, "has dtype object"),
        ({"images": RGB, "labels": np.array([Attack(os.abort)] * N)}, "holds Python objects"),
        ({"pictures": RGB}, r"no pair of arrays like images and labels \(it has pictures\)"),
    ],
)
def test_npz_of_other_things_is_refused_and_never_unpickled(tmp_path: Path, arrays: dict, words: str) -> None:
    expect(FastloadError, words, save(tmp_path / "a.npz", **arrays))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_npz_raises_nothing_but_data_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = save(tmp_path_factory.mktemp("n") / "a.npz", images=RGB, labels=np.arange(N))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(2, len(content)) | st.just(len(content)))])
    try:
        for _ in open_source(path).read():
            pass
    except FastloadError as error:
        assert "\n" not in str(error)


# -- WebDataset -----------------------------------------------------------------------------------


def shard(path: Path, keys: range) -> Path:
    files = {}
    for key in reversed(keys):
        files[f"{key:04}.jpg"] = encode(noise(), "JPEG")
        files[f"{key:04}.cls"] = b"%d\n" % (key % 3)
        files[f"{key:04}.json"] = b"{}"
    return tar(path, files)


def test_webdataset_by_file_pattern_braces_and_folder(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(3):
        shard(folder / f"s-{number:03}.tar", range(number * 4, number * 4 + 4))
    assert open_source(folder / "s-001.tar").labels.tolist() == [1, 2, 0, 1]
    for source in (folder, folder / "s-*.tar", folder / "s-{000..002}.tar", folder / "s-00{0,1,2}.tar"):
        opened = open_source(source)
        assert opened.labels.tolist() == [key % 3 for key in range(12)] and opened.ignored == 12
        assert opened.names[4] == "s-001.tar: 0004.jpg" and len(contents(opened)) == 12
    expect(DataError, "s-003.tar: no such file", folder / "s-{000..003}.tar")
    expect(DataError, "no such file", folder / "t-*.tar")
    expect(UsageError, "no splits", folder / "s-*.tar", split="train")


@pytest.mark.parametrize(
    "files, words",
    [
        ({"a.jpg": b"", "b.jpg": b"", "b.cls": b"1"}, "sample 'a' has no .cls"),
        ({"a.cls": b"1", "b.jpg": b"", "b.cls": b"1"}, "sample 'a' has no image"),
        ({"a.jpg": b"", "a.png": b"", "a.cls": b"1"}, "sample 'a' has two images"),
        ({"a.jpg": b"", "a.cls": b"cat", "b.jpg": b"", "b.cls": b"1"}, "'b.cls' holds 1, where others hold 'cat'"),
        ({"a.jpg": b"", "a.cls": b"1" * 99}, "'a.cls' has 99 bytes, not an integer label"),
        ({"a.jpg": b"", "a.cls": b"9" * 20}, "'a.cls' holds '9{20}', not an integer label from 0 to"),
        ({"a.jpg": b"", "a.cls": b"1_0"}, "'a.cls' holds '1_0', not an integer"),
        ({"a.jpg": b"", "a.cls": b"-1"}, "'a.cls' holds '-1', not an integer"),
    ],
)
def test_bad_webdataset_samples_are_named(tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    expect(DataError, words, tar(tmp_path / "s.tar", files))


JPEG = encode(noise(), "JPEG")


@pytest.mark.parametrize(
    "files, labels, classes",
    [
        (
            {"0.webp": encode(noise(), "WEBP"), "0.cls": b"1", "1.ppm": encode(noise(), "PPM"), "1.cls": b"0\n"},
            [1, 0],
            [],
        ),
        ({"0.JPG": JPEG, "0.CLS": b"1", "1.img": JPEG, "1.cls": b"2"}, [1, 2], []),
        ({"0.image.jpg": JPEG, "0.label.cls": b"3", "1.jpg": JPEG, "1.label.cls": b"4"}, [3, 4], []),
        ({"im.0.jpg": JPEG, "im.0.cls": b"5", "im.1.jpg": JPEG, "im.1.cls": b"6"}, [5, 6], []),
        ({"tr/0.jpg": JPEG, "tr/0.cls": b"1", "tr/1.jpg": JPEG, "tr/1.cls": b"0"}, [1, 0], []),
        ({"0.jpg": JPEG, "0.cls": b"n02", "1.jpg": JPEG, "1.cls": b"n01\n"}, [1, 0], ["n01", "n02"]),
        ({"0.jpg": JPEG, "0.json": b'{"label": 7}', "1.jpg": JPEG, "1.json": b'{"label": 8}'}, [7, 8], []),
        (
            {"0.jpg": JPEG, "0.json": b'{"label": "cat"}', "1.jpg": JPEG, "1.json": b'{"label": "ant"}'},
            [1, 0],
            ["ant", "cat"],
        ),
        ({"0.jpg": JPEG, "0.json": b'{"class_id": "7"}', "1.jpg": JPEG, "1.json": b"8"}, [7, 8], []),
        ({"0.jpg": JPEG, "0.txt": b"7", "1.jpg": JPEG, "1.txt": b"8\n"}, [7, 8], []),
        ({"0.jpg": JPEG, "0.cls": b"\xef\xbb\xbf7\r\n", "1.jpg": JPEG, "1.cls": b"8"}, [7, 8], []),
        ({"0.jpg": JPEG, "0.cls": b"\xef\xbb\xbfcat", "1.jpg": JPEG, "1.cls": b"cat"}, [0, 0], ["cat"]),
        ({"0.jpg": JPEG, "0.json": b'\xef\xbb\xbf{"label": 7}', "1.jpg": JPEG, "1.json": b"8"}, [7, 8], []),
        ({"0.jpg": JPEG, "0.cls": b"1", "0.json": b"{}", "0.txt": b"a cat", "names.txt": b"x"}, [1], []),
    ],
)
@pytest.mark.parametrize("form", [tar, zipped])
def test_webdataset_images_and_labels_in_all_their_forms(
    tmp_path: Path, files: dict[str, bytes], labels: list[int], classes: list[str], form
) -> None:
    source = open_source(form(tmp_path / "s.archive", dict(reversed(files.items()))))
    assert source.kind == "webdataset" and len(contents(source)) == len(labels)
    assert source.labels.tolist() == labels and list(source.classes) == classes


@pytest.mark.parametrize(
    "files, words",
    [
        ({"0.jpg": JPEG, "0.txt": b"a cat"}, "'0.txt' holds 'a cat', not an integer label .*a caption is no label"),
        ({"0.jpg": JPEG, "0.txt": b"a cat " * 99}, "'0.txt' has 594 bytes, not an integer label; a caption"),
        ({"0.jpg": JPEG, "0.json": b'{"url": "x", "key": 1}'}, "'0.json' has no label .its keys: url, key; a label's"),
        ({"0.jpg": JPEG, "0.json": b"{"}, "'0.json' is not sound JSON"),
        ({"0.jpg": JPEG, "0.json": b"[" * 100_000}, "'0.json' is not sound JSON"),
        ({"0.jpg": JPEG, "0.json": b'{"label": [0, 1]}'}, "'0.json' has the label .0, 1., neither an integer"),
        ({"0.jpg": JPEG, "0.json": b'{"label": 1.0}'}, "'0.json' has the label 1.0, neither"),
        ({"0.jpg": JPEG, "0.json": b'{"label": true}'}, "'0.json' has the label True, neither"),
        ({"0.jpg": JPEG, "0.json": b'{"label": -1}'}, "'0.json' has the label -1, neither"),
        ({"0.jpg": JPEG, "0.json": b'{"label": 1' + b"0" * 40 + b"}"}, "'0.json' has the label 10+.*, neither"),
        (
            {"0.jpg": JPEG, "0.cls": b"1.0"},
            r"'0.cls' holds '1.0', not an integer.*; write .*\(1000, not 1e3 or 1000.0\)",
        ),
        ({"0.jpg": JPEG, "0.cls": b"1e3"}, "'0.cls' holds '1e3', not an integer.*; write a class's number in digits"),
        ({"0.jpg": JPEG, "0.json": b'{"label": 1e3}'}, "has the label 1000.0, neither.*; write a class's number"),
        ({"0.jpg": JPEG, "0.cls": b"\xff\xfe1\0"}, "'0.cls' is not text in UTF-8, and so no label; write"),
        ({"0.jpg": JPEG, "0.cls": b""}, "'0.cls' holds '', not an integer"),
        ({"0.jpg": JPEG, "0.cls": b"1", "0.label.cls": b"1"}, "sample '0' has two labels .0.cls, 0.label.cls."),
        (
            {"train/0.jpg": JPEG, "train/0.cls": b"1", "val/0.jpg": JPEG, "val/0.cls": b"1"},
            "holds several splits: train",
        ),
    ],
)
def test_webdataset_labels_that_are_none_are_refused_for_what_they_are(
    tmp_path: Path, files: dict[str, bytes], words: str
) -> None:
    expect(FastloadError, words, tar(tmp_path / "s.tar", files))


def test_webdataset_splits_are_told_apart_by_folders_and_by_the_shards_names(tmp_path: Path) -> None:
    inside = {"train/0.jpg": JPEG, "train/0.cls": b"1", "val/0.jpg": JPEG, "val/0.cls": b"2"}
    assert open_source(tar(tmp_path / "s.tar", inside), split="val").labels.tolist() == [2]
    folder = tmp_path / "shards"
    folder.mkdir()
    for name in ("set-train-0.tar", "set-train-1.tar", "set-val-0.tar"):
        shard(folder / name, range(3))
    expect(UsageError, r"holds several splits: train \(2 archives\), val \(1 archive\)", folder)
    assert len(open_source(folder, split="train")) == 6 and len(open_source(folder, split="validation")) == 3
    expect(UsageError, "has no split 'test'; its archives' names say train", folder, split="test")


def test_archives_of_one_class_each_are_class_folders(tmp_path: Path) -> None:
    """ImageNet's own form: a tar for each class, in a folder or in a tar of all."""
    files = {name: {f"{name}_{i}.JPEG": encode(noise(), "JPEG") for i in range(2)} for name in ("n01", "n02")}
    folder = put(tmp_path / "f", {"LICENSE": b""})
    for name, content in files.items():
        tar(folder / f"{name}.tar", content)
    whole = {f"train/{name}.tar": (folder / f"{name}.tar").read_bytes() for name in files}
    zips = put(tmp_path / "z", {"x/": b""})
    for name, content in files.items():
        zipped(zips / f"{name}.zip", content)
    plain = put(tmp_path / "p", {f"{name}/{file}": data for name in files for file, data in files[name].items()})
    truth = open_source(plain)
    for path in (
        folder,
        folder / "*.tar",
        tar(tmp_path / "w.tar", whole),
        tar(tmp_path / "w.tgz", whole, "w:gz"),
        zips,
    ):
        source = open_source(path)
        assert source.classes == ["n01", "n02"] and source.labels.tolist() == [0, 0, 1, 1]
        assert list(source.names) == list(truth.names) and source.kind == "class folders"
        assert dict(source.read()) == dict(truth.read())


@pytest.mark.parametrize("names", [("00000", "00001"), ("shard-0", "shard-1"), ("cats_0001", "cats_0002")])
def test_numbered_archives_of_images_are_no_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    folder = put(tmp_path / "f", {"x/": b""})
    for name in names:
        tar(folder / f"{name}.tar", {"0.jpg": JPEG, "1.jpg": JPEG})
    expect(UsageError, f"the archives {names[0]}, {names[1]} are numbered parts of one set, not classes", folder)
    assert len(open_source(folder, unlabelled=True)) == 4
    assert open_source(folder, class_level=1).classes == list(names)


def test_all_images_are_taken_without_labels(tmp_path: Path) -> None:
    files = {"train/1.jpg": JPEG, "train/deep/0.png": encode(noise()), "x.txt": b"", "test/a/0.jpg": JPEG}
    for place in (put(tmp_path / "f", files), tar(tmp_path / "t.tar", files), zipped(tmp_path / "z.zip", files)):
        source = open_source(place, unlabelled=True)
        assert list(source.names) == ["test/a/0.jpg", "train/1.jpg", "train/deep/0.png"]
        assert source.labels is None and source.classes == () and len(contents(source)) == 3
        assert list(open_source(place, unlabelled=True, split="train").names) == ["train/1.jpg", "train/deep/0.png"]
    expect(
        UsageError,
        "class_level= names classes, and unlabelled=True leaves them out",
        place,
        unlabelled=True,
        class_level=1,
    )


@pytest.mark.parametrize("name", ["0.jpg_", "0.jpg?w=200", "0", "0.jpeg.bak"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_a_file_of_no_known_suffix_is_an_image_if_it_begins_as_one(tmp_path: Path, name: str, kind: str) -> None:
    files = {f"a/{name}": encode(noise(), kind), "a/README": b"text", "b/1.png": encode(noise())}
    for place in (put(tmp_path / "f", files), tar(tmp_path / "t.tar", files), zipped(tmp_path / "z.zip", files)):
        source = open_source(place)
        assert list(source.names) == [f"a/{name}", "b/1.png"] and source.passed_over == {"no suffix": 1}
        assert len(contents(source)) == 2


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow does not decode AVIF")
def test_avif_is_decoded(tmp_path: Path) -> None:
    files = {"a/0.avif": encode(noise(16, 16), "AVIF"), "b/0.png": encode(noise(16, 16)), "b/1.heic": b"x"}
    source = open_source(put(tmp_path / "f", files))
    assert [pixels.shape for pixels in contents(source)] == [(16, 16, 3)] * 2 and source.passed_over == {".heic": 1}


def test_brace_patterns_keep_their_order_and_padding(tmp_path: Path) -> None:
    for name in ("b08", "b09", "b10", "a1"):
        (tmp_path / name).touch()
    assert [path.name for path in expand(f"{tmp_path}/b{{08..10}}")] == ["b08", "b09", "b10"]
    assert [path.name for path in expand(f"{tmp_path}/{{b10,a1}}")] == ["b10", "a1"]


# -- HDF5 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"chunks": (2, 6, 7, 3), "compression": "gzip"}])
def test_users_hdf5_contiguous_or_compressed(tmp_path: Path, options: dict) -> None:
    with h5py.File(tmp_path / "u.h5", "w") as file:
        file.create_dataset("x", data=RGB, **options)
        file["y"], file["f"] = np.arange(N), RGB / 255
    source = open_source(tmp_path / "u.h5", images="x", labels="y")
    assert np.array_equal(contents(source), RGB) and source.labels.tolist() == list(range(N))
    expect(DataError, "has dtype float64, not uint8", tmp_path / "u.h5", images="f", labels="y")
    expect(UsageError, r"not a packed file \(its datasets: f, x, y\); name your datasets", tmp_path / "u.h5")


def test_labels_can_be_left_out_of_every_source(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=RGB, labels=np.arange(N))
    np.savez(tmp_path / "b.npz", images=RGB)
    with h5py.File(tmp_path / "u.h5", "w") as file:
        file["x"] = RGB
    fastload.pack(tmp_path / "a.npz", tmp_path / "p.h5", progress=False)
    pairs = Pairs((pixels, 1) for pixels in RGB)
    dicts = [{"image": pixels, "text": "x"} for pixels in RGB]
    for source in (tmp_path / "a.npz", tmp_path / "b.npz", tmp_path / "p.h5", pairs, list(RGB), dicts):
        opened = open_source(source, unlabelled=True)
        assert np.array_equal(contents(opened), RGB) and opened.labels is None and len(opened.classes) == 0
    for source, key in ((tmp_path / "u.h5", "x"), (tmp_path / "b.npz", "images")):
        assert np.array_equal(contents(open_source(source, images=key, unlabelled=True)), RGB)
    assert open_source(put(tmp_path / "c", cifar_files("10py")[0]), unlabelled=True).labels is None
    fastload.pack(dicts, tmp_path / "q.h5", unlabelled=True, progress=False)
    with fastload.PackedFile(tmp_path / "q.h5") as file:
        assert file.labels is None and len(file) == N
    expect(UsageError, "labels= names labels, and unlabelled=True leaves them out", pairs, labels="y", unlabelled=True)


# -- map-style datasets ---------------------------------------------------------------------------


class Pairs(list):
    classes = ("zero", "one")


IMAGES = {
    "PIL": lambda pixels: Image.fromarray(pixels),
    "array": lambda pixels: pixels,
    "tensor": lambda pixels: torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
    "float tensor": lambda pixels: torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 255,
    "half tensor": lambda pixels: torch.from_numpy(pixels.transpose(2, 0, 1).copy()).double() / 255,
}


@pytest.mark.parametrize("form", IMAGES)
@pytest.mark.parametrize("label", [int, np.int32, torch.tensor])
def test_torch_style_pairs_of_every_image_and_label_type(form: str, label) -> None:
    source = open_source(Pairs((IMAGES[form](pixels), label(index % 2)) for index, pixels in enumerate(RGB)))
    assert np.array_equal(contents(source), RGB)
    assert source.labels.tolist() == [0, 1, 0, 1, 0] and source.classes == ["zero", "one"]


def test_hugging_face_style_dicts_with_class_names_and_splits() -> None:
    for image_key, label_key in (("image", "label"), ("img", "fine_label")):
        train = Pairs({image_key: Image.fromarray(pixels), label_key: 1, "id": "x"} for pixels in RGB)
        train.features = {label_key: SimpleNamespace(names=["cat", "dog"])}
        source = open_source({"train": train}, split="train")
        assert np.array_equal(contents(source), RGB) and source.classes == ["cat", "dog"]
    expect(UsageError, "has the splits train; name one", {"train": train})


def test_labels_may_be_arrays_and_images_grey() -> None:
    source = open_source([(RGB[0, :, :, 0], [0.5, 1.0]), (torch.zeros(6, 7, dtype=torch.uint8), [1.0, 2.0])])
    assert contents(source)[1].shape == (6, 7, 3) and source.labels.tolist() == [[0.5, 1.0], [1.0, 2.0]]


@pytest.mark.parametrize(
    "item, words",
    [
        ((RGB[0] / 255, 1), r"item 1' .* ndarray float64 \[6, 7, 3\]; expected"),
        ((torch.zeros(3, 4, 4) - 1, 1), r"item 1' .*values from -1 to -1.*leave normalization out"),
        ((torch.full((3, 4, 4), torch.nan), 1), "item 1' .*values from nan to nan"),
        ((torch.zeros(4, 4, 5), 1), r"item 1' .*Tensor torch.float32 \[4, 4, 5\]|item 1"),
        ((torch.zeros(3, 4, 4, dtype=torch.int64), 1), r"item 1' .*torch.int64 \[3, 4, 4\]"),
        (("a.png", 1), "item 1' .*is a str"),
        ((RGB[0], "cat"), "item 1' its label is text; labels are numbers"),
        ((RGB[0], None), "item 1' its label is None"),
        ((RGB[0], [1, 2]), r"item 1' .*label of shape \(2,\), where the first one has \(\)"),
        ((RGB[0], 1, 2), "item 1' .*not a pair"),
        ({"photo": RGB[0], "label": 1}, "item 1' .*keys photo, label; name the right one with images="),
    ],
)
def test_what_a_dataset_should_not_yield_is_named_by_index(item: object, words: str) -> None:
    if words.endswith("|item 1"):
        item = (torch.zeros(5, 4, 4), 1)
        words = r"item 1' .*Tensor torch.float32 \[5, 4, 4\]"
    expect(DataError, words, [(RGB[0], 0), item])


def test_what_is_no_source_at_all_is_a_usage_error() -> None:
    expect(UsageError, "a generator cannot be packed", (x for x in ()))
    expect(DataError, "no such file or folder", "/nowhere/at/all")
