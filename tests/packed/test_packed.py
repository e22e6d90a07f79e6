"""The packed file: what is written is read back, and nothing in a damaged file is trusted."""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packs import write_format_1
from places import ROOT

from fastload.errors import DataError, UsageError
from fastload.packed import writer as packed_writer
from fastload.packed.file import PackedFile, PackedWriter, SelectionTable, checksum, damaged_rows, fingerprint

COUNT, SHAPE = 12, (5, 7, 3)
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, *SHAPE), dtype=np.uint8)
FILES = [bytes([row]) * (row + 1) for row in range(COUNT)]
relaxed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write_raw(path: Path, **more: object) -> Path:
    with PackedWriter(
        path, shape=PIXELS.shape, labels=np.arange(COUNT) % 3, classes=["a", "bé", "c"], source={"kind": "test"}, **more
    ) as out:
        for row in reversed(range(COUNT)):
            out.write(row, PIXELS[row])
    return path


def write_encoded(path: Path, **more: object) -> Path:
    sizes = np.array([len(file) for file in FILES])
    with PackedWriter(path, sizes=sizes, labels=np.arange(COUNT), source={}, **more) as out:
        for row, file in enumerate(FILES):
            out.write(row, file)
    return path


NAMES = [f"klass/{row}\N{SNOWMAN}.png" if row != 3 else "" for row in range(COUNT)]


def write_subset(path: Path, **more: object) -> Path:
    attributes = {"strategy": "random", "seed": np.uint64(2**63)}
    table = SelectionTable(np.arange(COUNT), np.zeros(COUNT), np.linspace(0, 1, COUNT), attributes)
    return write_raw(path, ids=np.arange(COUNT)[::-1] * 7, selection=table, **more)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_raw(tmp_path / "raw.h5")


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if "partial" in path.name]


# -- what is written is read back -----------------------------------------------------------------


def test_raw_file_gives_back_pixels_labels_ids_and_names(raw: Path) -> None:
    with PackedFile(raw) as file:
        assert (file.storage, file.shape, len(file)) == ("raw", SHAPE, COUNT)
        assert all(np.array_equal(file.image(row), PIXELS[row]) for row in range(COUNT))
        assert all(np.array_equal(file.read_image(row), PIXELS[row]) for row in range(COUNT))
        assert file.classes == ["a", "bé", "c"] and file.source == {"kind": "test"}
        assert np.array_equal(file.ids, np.arange(COUNT)) and np.array_equal(file.labels, np.arange(COUNT) % 3)
        assert not file.data.flags.writeable


def test_file_is_as_the_format_page_says_when_read_with_h5py_alone(raw: Path) -> None:
    with h5py.File(raw) as file:
        assert np.array_equal(file["images"][()], PIXELS)
        assert file["images"].id.get_offset() % 4096 == 0 and file["images"].chunks is None
        assert file.attrs["fastload_format"] == 2 and file.attrs["storage"] == b"raw"
        assert list(file["digests"][()]) == [xxhash.xxh3_64_intdigest(image.tobytes()) for image in PIXELS]
        labels = np.arange(COUNT, dtype=np.int64) % 3
        assert file.attrs["fingerprint"].decode() == xxhash.xxh3_128_hexdigest(PIXELS.tobytes() + labels.tobytes())


def test_encoded_file_gives_back_each_files_bytes(tmp_path: Path) -> None:
    with PackedFile(write_encoded(tmp_path / "e.h5")) as file:
        assert [file.read(row) for row in range(COUNT)] == FILES
        assert [file.stored(row).tobytes() for row in range(COUNT)] == FILES
        assert damaged_rows(file) == [] and fingerprint(file) == file.fingerprint


def test_same_content_gives_same_bytes_whenever_written(tmp_path: Path) -> None:
    first = write_subset(tmp_path / "1.h5").read_bytes()
    time.sleep(1.1)  # HDF5's time stamps count in seconds
    assert write_subset(tmp_path / "2.h5").read_bytes() == first


def test_subset_keeps_ids_and_reasons(tmp_path: Path) -> None:
    with PackedFile(write_subset(tmp_path / "s.h5")) as file:
        assert file.ids[0] == 77 and file.selection is not None
        assert np.array_equal(file.selection.dimension, np.arange(COUNT))
        assert file.selection.score.dtype == np.float32 and file.selection.attributes["strategy"] == "random"


def test_skipped_rows_are_left_out_and_ids_stay(tmp_path: Path) -> None:
    with PackedWriter(tmp_path / "s.h5", shape=(4, 1, 1, 1), labels=np.arange(4), source={}) as out:
        for row in (0, 3):
            out.write(row, bytes([row]))
        out.skip(1)
        out.skip(2)
    with PackedFile(tmp_path / "s.h5") as file:
        assert list(file.ids) == [0, 3] == list(file.labels) == [int(file.image(row)[0, 0, 0]) for row in range(2)]
        assert damaged_rows(file) == [] and fingerprint(file) == file.fingerprint
    assert leftovers(tmp_path) == []


def test_names_come_back_as_they_were_and_messages_say_them(tmp_path: Path) -> None:
    with PackedFile(write_raw(tmp_path / "n.h5", names=NAMES)) as file:
        assert list(file.names) == NAMES == [file.names[row] for row in range(COUNT)] and len(file.names) == COUNT
        assert file.names[-1] == NAMES[-1] and file.names[2:5] == NAMES[2:5]
        assert file.name_of(5) == NAMES[5]
        with pytest.raises(IndexError):
            file.names[COUNT]
    with h5py.File(tmp_path / "n.h5") as file:  # as the format page says
        starts = file["name_offsets"][()]
        assert bytes(file["names"][starts[5] : starts[6]]).decode() == NAMES[5]
    with PackedFile(write_raw(tmp_path / "without.h5", ids=np.arange(COUNT) + 5000)) as file:
        assert file.names is None and file.name_of(8) == "row 8 (id 5,008)"


def test_a_name_that_is_not_utf_8_is_stored_as_text(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    with PackedFile(write_raw(tmp_path / "n.h5", names=[odd] * COUNT)) as file:
        assert file.names[0] == r"caf\xe9.png"


def test_a_set_without_labels_has_none_and_its_own_fingerprint(tmp_path: Path) -> None:
    with PackedWriter(tmp_path / "u.h5", shape=PIXELS.shape, source={}) as out:
        for row in range(COUNT):
            out.write(row, PIXELS[row])
    with PackedFile(tmp_path / "u.h5") as file:
        assert file.labels is None and len(file) == COUNT
        assert fingerprint(file) == file.fingerprint == xxhash.xxh3_128_hexdigest(PIXELS.tobytes())


@pytest.mark.parametrize("by", ["argument", "attribute", "row"])
def test_encoded_images_keep_their_height_and_width(tmp_path: Path, by: str) -> None:
    shapes = np.arange(2 * COUNT, dtype=np.int32).reshape(COUNT, 2) + 1
    sizes = np.array([len(file) for file in FILES])
    given = {"shapes": shapes} if by == "argument" else {}
    with PackedWriter(tmp_path / "e.h5", sizes=sizes, labels=np.arange(COUNT), source={}, **given) as out:
        for row, file in enumerate(FILES):
            out.write(row, file, **({"shape": tuple(shapes[row])} if by == "row" else {}))
        out.skip(2)
        if by == "attribute":
            out.shapes = shapes
    with PackedFile(tmp_path / "e.h5") as file:
        assert file.shapes.dtype == np.int32 and np.array_equal(file.shapes, np.delete(shapes, 2, axis=0))


def test_shapes_of_some_rows_only_are_the_caller_s_mistake(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="each or for none"),
        PackedWriter(tmp_path / "e.h5", sizes=np.array([1, 1]), source={}) as out,
    ):
        out.write(0, b"x", shape=(1, 1))
        out.write(1, b"x")


def test_format_1_is_read(tmp_path: Path) -> None:
    labels = np.arange(COUNT) % 3
    with PackedFile(write_format_1(tmp_path / "1.h5", PIXELS, labels, ids=labels * 5)) as file:
        assert (file.format, file.names, file.shapes, file.checksum) == (1, None, None, None)
        assert np.array_equal(file.labels, labels) and np.array_equal(file.ids, labels * 5)
        assert [file.read(row) for row in range(COUNT)] == [image.tobytes() for image in PIXELS]
        assert damaged_rows(file) == [] and fingerprint(file) == file.fingerprint
    offsets = np.cumsum([0, *map(len, FILES)])
    joined = np.frombuffer(b"".join(FILES), np.uint8)
    with PackedFile(write_format_1(tmp_path / "1e.h5", joined, labels, offsets=offsets)) as file:
        assert [file.read(row) for row in range(COUNT)] == FILES and file.storage == "encoded"


def by_the_page(path: Path) -> str:
    """The checksum as docs/format.md tells it, by h5py alone."""
    with h5py.File(path) as file:
        present = [name for name in ("ids", "offsets", "shapes", "names", "name_offsets") if name in file]
        present += [f"selection/{name}" for name in ("dimension", "rank", "score") if "selection" in file]
        datasets = [(name, file[name][()]) for name in present]
        labels, selection = file.get("labels"), file.get("selection")
        plain = {"settings": dict(selection.attrs)} if selection else {}
        text = {
            key: value.decode() if isinstance(value, bytes) else value.item()
            for key, value in plain.get("settings", {}).items()
        }
        header = {
            "storage": file.attrs["storage"].decode(),
            "source": json.loads(file.attrs["source"]),
            "created_with": file.attrs["created_with"].decode(),
            "images": list(file["images"].shape),
            "labels": [labels.dtype.str, list(labels.shape)] if labels is not None else None,
            "classes": [name.decode() for name in file["classes"][()]],
            "selection": text if selection else None,
            "datasets": [[name, array.dtype.str, list(array.shape)] for name, array in datasets],
        }
    return xxhash.xxh3_128_hexdigest(
        json.dumps(header, sort_keys=True).encode() + b"".join(array.tobytes() for _, array in datasets)
    )


@pytest.mark.parametrize("write", [write_raw, write_encoded, write_subset])
def test_the_checksum_is_that_of_the_format_page(tmp_path: Path, write) -> None:
    path = write(tmp_path / "c.h5", names=NAMES)
    with PackedFile(path) as file:
        assert file.checksum == checksum(file) == by_the_page(path)


def test_labels_may_come_last_and_have_any_shape(tmp_path: Path) -> None:
    with PackedWriter(tmp_path / "l.h5", shape=(2, 1, 1, 1), source={}) as out:
        out.write(0, b"a")
        out.write(1, b"b")
        out.labels = np.ones((2, 3), np.float32)
    with PackedFile(tmp_path / "l.h5") as file:
        assert file.labels.shape == (2, 3) and file.labels.dtype == np.float32


@pytest.mark.parametrize("labels, error", [(np.ones(3), ValueError), (np.array(["a", "b"]), DataError)])
def test_labels_that_cannot_be_stored_leave_nothing_behind(tmp_path: Path, labels, error: type[Exception]) -> None:
    with pytest.raises(error), PackedWriter(tmp_path / "l.h5", shape=(2, 1, 1, 1), source={}) as out:
        out.write(0, b"a")
        out.write(1, b"b")
        out.labels = labels
    assert os.listdir(tmp_path) == []


# -- an old file or none --------------------------------------------------------------------------


def test_failed_writing_leaves_the_old_file_and_nothing_else(raw: Path) -> None:
    before = raw.read_bytes()
    with pytest.raises(RuntimeError), PackedWriter(raw, shape=(1, 1, 1, 1), labels=np.zeros(1), source={}) as out:
        out.write(0, b"x")
        raise RuntimeError
    assert raw.read_bytes() == before and os.listdir(raw.parent) == [raw.name]


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
def test_full_disk_is_one_error_that_says_how_much_is_needed(
    raw: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = raw.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed_writer.os, call, full)
    with pytest.raises(DataError, match=r"raw\.h5: cannot be written \(No space left on device\); it needs 0\.0 MB"):
        write_raw(raw)
    assert raw.read_bytes() == before and leftovers(raw.parent) == []


def test_killed_writers_partial_file_goes_with_the_next_run_and_a_living_ones_stays(tmp_path: Path) -> None:
    script = (
        "import sys, time, numpy as np; from fastload.packed.file import PackedWriter\n"
        "w = PackedWriter(sys.argv[1], shape=(9, 1, 1, 1), labels=np.zeros(9), source={}).__enter__()\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    out = tmp_path / "out[1].h5"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", script, out], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        write_raw(out)
        assert len(leftovers(tmp_path)) == 1  # it lives
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(leftovers(tmp_path)) == 1
    write_raw(out)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "name, words",
    [("", "is a folder"), ("no/x.h5", "there is no folder"), ("a.tar", "not replaced"), ("mine.h5", "not replaced")],
)
def test_impossible_target_is_refused_before_any_work(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "a.tar").write_bytes(b"precious")
    with h5py.File(tmp_path / "mine.h5", "w") as file:
        file["x"] = PIXELS
    with pytest.raises(UsageError, match=words):
        write_raw(tmp_path / name)
    assert (tmp_path / "a.tar").read_bytes() == b"precious"


# -- nothing is trusted ---------------------------------------------------------------------------


def open_fully(path: Path) -> PackedFile | None:
    """Open, read and verify; DataError is the only way this may fail."""
    try:
        file = PackedFile(path)
        for row in range(len(file)):
            file.read(row)
        damaged_rows(file)
        fingerprint(file)
        return file
    except DataError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return None


@pytest.mark.parametrize("write", [write_raw, write_encoded, write_subset])
@relaxed
@given(data=st.data())
def test_flipped_bytes_are_an_error_or_found_by_the_digests(tmp_path: Path, write, data: st.DataObject) -> None:
    (tmp_path / "f.h5").unlink(missing_ok=True)
    path = write(tmp_path / "f.h5")
    content = bytearray(path.read_bytes())
    used = [index for index, byte in enumerate(content) if byte]  # most of the rest is padding
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.sampled_from(used) | st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    original = PackedFile(path)
    path.unlink()
    path.write_bytes(content)
    file = open_fully(path)
    if file is not None and (
        not np.array_equal(file.data, original.data) or not np.array_equal(file.labels, original.labels)
    ):
        assert fingerprint(file) != file.fingerprint


@pytest.mark.parametrize("write", [write_raw, write_encoded])
def test_truncation_anywhere_is_an_error(tmp_path: Path, write) -> None:
    path = write(tmp_path / "t.h5")
    content = path.read_bytes()
    for size in {0, 1, 8, 100, *range(0, len(content), 499), len(content) - 1}:
        path.unlink()
        path.write_bytes(content[:size])
        assert open_fully(path) is None, size


def test_file_that_shrinks_while_open_is_an_error_not_a_signal(raw: Path) -> None:
    with PackedFile(raw) as file:
        os.truncate(raw, 4096)
        with pytest.raises(DataError, match="has become shorter"):
            damaged_rows(file)


def edited(path: Path, change) -> Path:
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def replace(name: str, value: object, **options: object):
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, data=value, **options)

    return change


def external_link(file: h5py.File) -> None:
    del file["images"]
    file["images"] = h5py.ExternalLink("/etc/passwd", "/x")


def soft_link(file: h5py.File) -> None:
    file.move("images", "other")
    file["images"] = h5py.SoftLink("/other")


def external_storage(file: h5py.File) -> None:
    del file["images"]
    file.create_dataset("images", PIXELS.shape, "u1", external=[("/etc/passwd", 0, PIXELS.nbytes)])


def virtual_storage(file: h5py.File) -> None:
    del file["images"]
    layout = h5py.VirtualLayout(PIXELS.shape, "u1")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "images", PIXELS.shape)
    file.create_virtual_dataset("images", layout)


def huge(name: str, shape: tuple[int, ...], dtype: str):
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, shape, dtype)  # contiguous, never allocated

    return change


def link_instead(name: str):
    def change(file: h5py.File) -> None:
        file.move(name, "other")
        file[name] = h5py.SoftLink("/other")

    return change


def linked_elsewhere(name: str):
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file[name] = h5py.ExternalLink("/etc/passwd", "/x")

    return change


def group_instead(file: h5py.File) -> None:
    del file["images"]
    file.create_group("images")


def attribute(name: str, value: object):
    fixed = np.bytes_(value) if isinstance(value, str) else value
    return lambda file: file.attrs.__setitem__(name, fixed)


def text_in_the_heap(file: h5py.File) -> None:
    file.attrs["storage"] = "raw"  # h5py's own choice: variable length


def without_labels_in_format_1(file: h5py.File) -> None:
    del file["labels"]
    file.attrs["fastload_format"] = 1


def add(name: str, value: object):
    """For a file of encoded images, which alone may hold shapes."""

    def change(file: h5py.File) -> None:
        del file["images"]
        file["images"], file["offsets"] = PIXELS.reshape(-1), np.arange(COUNT + 1) * PIXELS[0].size
        file[name] = value
        file.attrs["storage"] = np.bytes_("encoded")

    return change


CHANGES = {
    "external link": (external_link, "is a link"),
    "soft link": (soft_link, "is a link"),
    "external storage": (external_storage, "outside the file"),
    "virtual storage": (virtual_storage, "outside the file"),
    "group": (group_instead, "is a group"),
    "float images": (replace("images", PIXELS.astype(np.float32)), "has dtype float32, not uint8"),
    "chunked images": (replace("images", PIXELS, chunks=(1, 5, 7, 3)), "not contiguous"),
    "unwritten images": (huge("images", PIXELS.shape, "u1"), "not contiguous"),
    "sizes past the file": (huge("images", (COUNT, 2**31, 2**20, 3), "u1"), "more than the file can hold"),
    "sizes that overflow": (huge("images", (2**30, 2**30, 1, 1), "u1"), "more than the file can hold"),
    "three dimensions": (replace("images", PIXELS[..., 0]), "3 dimensions"),
    "short labels": (replace("labels", np.arange(COUNT - 1)), "'labels' has 11 rows but 'images' has 12; was the file"),
    "text labels": (replace("labels", np.array([b"a"] * COUNT)), "labels are an array of numbers"),
    "scalar labels": (replace("labels", 3), "labels are an array of numbers"),
    "huge labels": (huge("labels", (COUNT, 2**50), "i8"), "more than the file can hold"),
    "no labels in format 1": (without_labels_in_format_1, "has no dataset 'labels'"),
    "falling name offsets": (
        replace("name_offsets", np.arange(COUNT + 1)[::-1]),
        "'name_offsets' does not rise from 0",
    ),
    "name offsets past the end": (replace("name_offsets", np.arange(COUNT + 1) * 99), "'name_offsets' does not rise"),
    "short name offsets": (replace("name_offsets", np.arange(3)), r"'name_offsets' has shape \(3,\), not \(13,\)"),
    "names without offsets": (lambda file: file.__delitem__("name_offsets"), "has no dataset 'name_offsets'"),
    "names of text": (replace("names", np.array([b"a"] * COUNT)), r"dtype \|S1, not uint8"),
    "names of two dimensions": (replace("names", np.zeros((2, 2), np.uint8)), "'names' has 2 dimensions"),
    "float ids": (replace("ids", np.arange(COUNT, dtype=float)), "has dtype float64, not int64"),
    "negative ids": (replace("ids", -np.arange(COUNT)), "negative ids"),
    "short digests": (replace("digests", np.zeros(3, np.uint64)), r"has shape \(3,\), not \(12,\)"),
    "number classes": (replace("classes", np.arange(3)), "not a list of names"),
    "selection dataset": (lambda file: file.create_dataset("selection", data=1), "not a group"),
    "other format": (attribute("fastload_format", 3), "has format 3, this fastload reads up to 2"),
    "no checksum": (lambda file: file.attrs.__delitem__("checksum"), "no valid 'checksum'"),
    "format of text": (attribute("fastload_format", "one"), "has format one"),
    "format of many": (attribute("fastload_format", [1, 1]), "has format"),
    "short shapes": (add("shapes", np.ones((3, 2), np.int32)), "'shapes' has shape"),
    "storage": (attribute("storage", "cooked"), "not 'raw', 'ragged' or 'encoded'"),
    "source": (attribute("source", "[1]"), "not a JSON object"),
    "source of numbers": (attribute("source", 5), "not a JSON object"),
    "shapes of another type": (add("shapes", np.ones((COUNT, 2), np.int64)), "has dtype int64, not int32"),
    "sides below 1": (add("shapes", np.zeros((COUNT, 2), np.int32)), "'shapes' has sides below 1"),
    "labels beyond int64": (replace("labels", np.full(COUNT, 2**63, np.uint64)), "beyond what a 64-bit signed integer"),
    "ids in a link": (link_instead("ids"), "'ids' is a link"),
    "names in a link": (link_instead("names"), "'names' is a link"),
    "names elsewhere": (linked_elsewhere("names"), "'names' is a link"),
    "labels elsewhere": (linked_elsewhere("labels"), "'labels' is a link"),
    "selection elsewhere": (linked_elsewhere("selection"), "not a group of this file"),
    "selection that is the file": (lambda file: file.__setitem__("selection", file["/"]), "no dataset 'selection/dim"),
    "heap text": (text_in_the_heap, "'storage' is not of fixed length"),
    "heap classes": (replace("classes", ["a", "b", "c"]), "not a list of names"),
    "fingerprint": (attribute("fingerprint", "xyz"), "no valid 'fingerprint'"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_way_to_lie_is_named(tmp_path: Path, name: str) -> None:
    raw, (change, words) = write_raw(tmp_path / "raw.h5", names=NAMES), CHANGES[name]
    with pytest.raises(DataError, match=words) as caught:
        PackedFile(edited(raw, change))
    assert str(raw) in str(caught.value) and "\n" not in str(caught.value)


@given(offsets=st.lists(st.integers(-5, 2**40) | st.integers(0, 78), min_size=COUNT + 1, max_size=COUNT + 1))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_offsets_that_do_not_rise_within_the_images_are_an_error(tmp_path: Path, offsets: list[int]) -> None:
    path = write_encoded(tmp_path / "o.h5")
    right = [0, *np.cumsum([len(file) for file in FILES])]
    edited(path, replace("offsets", np.array(offsets)))
    rising = offsets[0] == 0 and offsets[-1] == right[-1] and all(a < b for a, b in itertools.pairwise(offsets))
    if rising:
        open_fully(path)
    else:
        with pytest.raises(DataError, match="does not rise from 0"):
            PackedFile(path)


def test_what_is_no_packed_file_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "empty.h5").touch()
    os.mkfifo(tmp_path / "pipe.h5")
    with h5py.File(tmp_path / "mine.h5", "w") as file:
        file["x"], file["y"] = PIXELS, np.arange(COUNT)
    for name, words in {
        "none.h5": "no such file",
        "text.h5": "is not an HDF5 file",
        "empty.h5": "is not an HDF5 file",
        "pipe.h5": "not a regular file",
        "": "is a folder",
        "mine.h5": r"not a packed file \(its datasets: x, y\)",
    }.items():
        with pytest.raises(DataError, match=words):
            PackedFile(tmp_path / name)


# -- a user's own HDF5 ----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW"])
def test_users_own_file_is_read_in_each_layout(tmp_path: Path, layout: str) -> None:
    images = {"NHWC": PIXELS, "NCHW": PIXELS.transpose(0, 3, 1, 2), "NHW": PIXELS[..., 0]}[layout]
    expected = PIXELS if layout != "NHW" else PIXELS[..., :1]
    with h5py.File(tmp_path / "u.h5", "w") as file:
        file["in/x"], file["y"] = images, np.arange(COUNT, dtype=">i4")
    with PackedFile(tmp_path / "u.h5", images="in/x", labels="y") as file:
        assert all(np.array_equal(file.image(row), expected[row]) for row in range(COUNT))
        assert file.labels.dtype.isnative and len(file.fingerprint) == 32
        with pytest.raises(UsageError, match="no digests"):
            damaged_rows(file)


def test_users_own_file_errors_name_the_dataset_and_the_mend(tmp_path: Path) -> None:
    path = tmp_path / "u.h5"
    with h5py.File(path, "w") as file:
        file["x"], file["y"], file["short"], file["float"] = PIXELS, np.arange(COUNT), np.arange(3), PIXELS / 255
        file.create_dataset("packed", data=PIXELS, compression="gzip")
        file.create_dataset("bomb", (COUNT, 2**40), "i8", chunks=(1, 2**20))
    for images, labels, words in (
        ("x", "short", "'short' has 3 rows but 'x' has 12"),
        ("float", "y", "dtype float64, not uint8"),
        ("packed", "y", "chunked or compressed.*fastload pack"),
        ("nope", "y", "no dataset 'nope'"),
        ("x", "bomb", "more than the file can hold"),
    ):
        with pytest.raises(DataError, match=words):
            PackedFile(path, images=images, labels=labels)
    with pytest.raises(UsageError, match="give both"):
        PackedFile(path, images="x")


# -- the system's own reasons ---------------------------------------------------------------------


def test_too_many_open_files_is_said_with_its_mend(raw: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
        with pytest.raises(DataError, match=r"raw\.h5: cannot be read \(Too many open files\): .*ulimit -n"):
            while True:
                held.append(PackedFile(raw))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for file in held:
            file.close()


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EIO, "check the disk"), (errno.ENOMEM, "not enough memory"), (errno.EACCES, "permissions")],
)
def test_what_the_system_refuses_hdf5_is_said_with_its_mend(raw: Path, monkeypatch, number: int, words: str) -> None:
    """HDF5 has its own text around it, as here; at the first read or in the midst of opening."""
    text = f"Unable to synchronously open file (file read failed: time = x, errno = {number}, error message = 'x')"

    def failing(*_: object, **__: object) -> None:
        raise OSError(text)

    monkeypatch.setattr("fastload.packed.hdf5_reading.h5py.File", failing)
    with pytest.raises(DataError, match=f"raw.h5: cannot be read .*{words}") as caught:
        PackedFile(raw)
    assert "pack it again" not in str(caught.value)


def test_an_attribute_beyond_all_bounds_is_not_read(raw: Path) -> None:
    with h5py.File(raw, "r+", libver="v110") as file:
        del file.attrs["source"]
        file.attrs["source"] = np.zeros(1 << 21, np.uint8)
    with pytest.raises(DataError, match="attribute 'source' says 2,097,152 bytes"):
        PackedFile(raw)


def test_a_file_with_holes_cannot_claim_more_than_memory_holds(tmp_path: Path) -> None:
    count = 1 << 28
    with h5py.File(tmp_path / "h.h5", "w", libver="v110") as file:
        for name, value in {"storage": "raw", "source": "{}", "fingerprint": "0" * 32}.items():
            file.attrs[name] = np.bytes_(value)
        file.attrs["fastload_format"] = 1
        early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        for name, kind, shape in (
            ("images", h5py.h5t.STD_U8LE, (count, 1, 1, 1)),
            ("labels", h5py.h5t.STD_U8LE, (count,)),
            ("ids", h5py.h5t.STD_I64LE, (count,)),
        ):
            h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), early)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"dataset 'ids' has shape .* may take 1,073,741,824"):
        PackedFile(tmp_path / "h.h5")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 << 10  # the labels, with room


def test_a_lost_file_s_sample_is_named_by_its_row(tmp_path: Path) -> None:
    with PackedFile(write_raw(tmp_path / "n.h5", names=NAMES)) as file:
        os.truncate(tmp_path / "n.h5", 4096)
        assert file.name_of(8) == "row 8 (id 8)"
