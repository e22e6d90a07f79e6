"""`fastload verify`: what is sound passes, whatever made it; what was changed is named, by dataset and id."""

from __future__ import annotations

import io
import shutil

import h5py
import numpy as np
import pytest
from packs import noise_images, write_encoded, write_format_1, write_raw
from PIL import Image

from fastload import Augment, DataError, TwoPhaseLoader, UsageError, pack
from fastload.command.cli import main
from fastload.command.verify import verify_file
from fastload.packed.file import PackedFile, SelectionTable
from fastload.selection import STRATEGIES
from fastload.subset import build as subset

COUNT = 120


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A full set with classes, and embeddings for it with ties and zeros."""
    folder = tmp_path_factory.mktemp("made")
    labels = np.random.default_rng(3).integers(0, 4, COUNT)
    full = write_raw(folder / "full.h5", noise_images(COUNT, 16, 16), labels, classes=["a", "b", "c", "d"])
    np.save(folder / "e.npy", np.random.default_rng(4).integers(-3, 6, (COUNT, 5)).clip(0).astype(np.float32))
    return full, folder / "e.npy"


def build(made, out, **settings):
    settings = {"strategy": "top-activations", "embeddings": made[1], "size": 40, "threads": 1} | settings
    subset.build_subset(settings.pop("full", made[0]), out, **settings)
    return out


@pytest.fixture
def chosen(made, tmp_path_factory):
    """A subset beside its full set, in a folder with a short name: a long one would be cut out of the message."""
    folder = tmp_path_factory.mktemp("s")
    shutil.copy(made[0], folder / "full.h5")
    return build(made, folder / "subset.h5")


def change(path, name, row, value):
    with h5py.File(path, "r+") as file:
        file[name][row] = value


def one_and_the_one_before(path):
    """Return a row of a subset, and that of the next stronger sample that the same dimension gave."""
    table = PackedFile(path).selection
    dimension = int(np.bincount(table.dimension[table.dimension >= 0]).argmax())
    rows = np.flatnonzero(table.dimension == dimension)
    rows = rows[np.argsort(table.rank[rows])]
    return int(rows[1]), int(rows[0])


def set_attribute(path, name, value):
    with h5py.File(path, "r+") as file:
        file["selection"].attrs[name] = value


def refused(capsys, words, *arguments):
    """Exit code 1 and one line with `words`, which are also among what is listed."""
    assert main(["verify", *map(str, arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and words in captured.err, captured.err
    return captured


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("amount", [{"size": 40}, {"size": COUNT}, {"size": None, "per_dimension": 6}])
def test_whatever_a_strategy_chose_passes(made, tmp_path, strategy, balanced, amount):
    row = STRATEGIES[strategy]
    if "per_dimension" in amount and not row.per_dimension:
        pytest.skip(f"{strategy} serves no per_dimension")
    if row.needs_scores:
        np.save(tmp_path / "scores.npy", np.load(made[1])[:, 0])
        amount = amount | {"scores_from": tmp_path / "scores.npy"}
    if not row.needs_embeddings:
        amount = amount | {"embeddings": None}
    out = build(made, tmp_path / "s.h5", strategy=strategy, balance_classes=balanced, **amount)
    report = verify_file(out, full=made[0], progress=False)
    assert report.ok and report.full == made[0], report.problems


def test_the_full_set_in_its_folder_is_found_by_fingerprint_and_said(chosen, capsys):
    (chosen.parent / "a.h5").write_bytes(b"no HDF5 at all")
    write_raw(chosen.parent / "b.h5", noise_images(9), np.arange(9))
    assert main(["verify", str(chosen)]) == 0
    assert f"each sample is that of {chosen.parent / 'full.h5'}" in capsys.readouterr().out
    (chosen.parent / "full.h5").unlink()
    assert main(["verify", str(chosen)]) == 0
    assert "not compared with its full set (--full" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("dataset", "value", "words"),
    [
        ("score", np.nan, "'selection/score' has 1 of 40 values not finite (ids {id})"),
        ("dimension", -2, "'selection/dimension' has 1 of 40 values below -1"),
        ("rank", -1, "'selection/rank' has 1 of 40 values below 0 (ids {id})"),
        ("score", 1e9, "scores that rise with the rank within one dimension"),
    ],
)
def test_a_changed_selection_is_named(chosen, capsys, dataset, value, words):
    row, _ = one_and_the_one_before(chosen)
    words = words.format(id=PackedFile(chosen).ids[row])
    change(chosen, f"selection/{dataset}", row, value)
    found = refused(capsys, words, chosen, "--quiet")
    assert words in found.out and "build it again with `fastload build-subset`" in found.err


def test_a_rank_given_twice_is_an_error_within_a_dimension_and_not_between_two(chosen, capsys):
    row, before = one_and_the_one_before(chosen)
    with PackedFile(chosen) as file:
        assert len(np.unique(file.selection.rank)) < len(file)  # equal ranks of several dimensions are right
        rank = file.selection.rank[before]
    change(chosen, "selection/rank", row, rank)
    refused(capsys, "1 rank given twice within one dimension", chosen)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("settings", '{"size": 41}', "say 41 samples, and it has 40"),
        ("settings", '{"per_dimension": 1}', "not among the 1 strongest of a dimension"),
        ("settings", "size 40", "'settings' of 'selection' is no JSON object"),
        ("full_fingerprint", "none", "no valid attribute 'full_fingerprint'"),
        ("strategy", "random", "though samples were chosen at random"),
    ],
)
def test_a_changed_setting_is_named(chosen, capsys, name, value, words):
    set_attribute(chosen, name, np.bytes_(value.encode()))
    refused(capsys, words, chosen)


def test_labels_that_are_no_number_of_a_class_are_named_and_other_labels_are_left_alone(tmp_path, capsys):
    images = noise_images(6, 8, 8)
    wrong = write_raw(tmp_path / "w.h5", images, np.array([0, 1, 2, -1, 1, 0]), classes=["a", "b"])
    refused(capsys, "2 labels outside 0 to 1, the numbers of its classes (ids 2, 3)", wrong)
    for labels, classes in (
        (np.array([0, 1, 2, -1, 1, 0]), []),
        (np.linspace(-5, 5, 6), ["a"]),
        (np.full((6, 2), 7), ["a", "b"]),
    ):
        assert verify_file(write_raw(tmp_path / "r.h5", images, labels, classes=classes), progress=False).ok


def rewritten(path, **changes):
    """Write a subset anew, consistent in itself, with other images, labels, ids or classes."""
    with PackedFile(path) as file:
        images = np.stack([file.read_image(row) for row in range(len(file))])
        values = {"images": images, "labels": file.labels.copy(), "ids": file.ids.copy(), "classes": file.classes}
        table = file.selection
    for name, edit in changes.items():
        values[name] = edit(values[name])
    attributes = {**table.attributes, "seed": np.uint64(0)}
    table = SelectionTable(table.dimension, table.rank, table.score, attributes)
    write_raw(path, values["images"], values["labels"], ids=values["ids"], classes=values["classes"], selection=table)


def first_changed(values, by):
    values[0] = by(values[0])
    return values


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": lambda values: first_changed(values, lambda image: image ^ 1)}, "1 image other than in"),
        ({"labels": lambda values: first_changed(values, lambda label: (label + 1) % 4)}, "1 label other than in"),
        ({"labels": lambda values: values.astype(np.int16)}, "labels int16[] where"),
        ({"ids": lambda values: first_changed(values, lambda _: 5000)}, "1 id not in"),
        ({"ids": lambda values: values + 5000}, "40 ids not in"),
        ({"classes": lambda values: [*values[:3], "e"]}, "other classes than"),
        ({"images": lambda values: values[:, :8]}, "images of 8×16×3, which no --resize makes"),
    ],
)
def test_a_subset_whose_samples_are_not_the_full_set_s_is_refused_though_it_is_whole(chosen, capsys, changes, words):
    full = chosen.parent / "full.h5"
    rewritten(chosen, **changes)
    refused(capsys, words, chosen, "--full", full)
    refused(capsys, words, chosen)  # found in its folder
    full.unlink()
    assert main(["verify", str(chosen)]) == 0  # which only the full set can tell


def test_another_full_set_and_options_without_use_are_refused(chosen, tmp_path, capsys):
    other = write_raw(tmp_path / "other.h5", noise_images(COUNT, 16, 16, seed=1), np.zeros(COUNT, np.int64))
    refused(capsys, "was built from another full set", chosen, "--full", other)
    with pytest.raises(UsageError, match="is not a subset"):
        verify_file(other, full=chosen)
    with pytest.raises(UsageError, match="is a subset itself"):
        verify_file(chosen, full=chosen)
    with pytest.raises(UsageError, match="--full"):
        verify_file(chosen, images="x", labels="y")
    with pytest.raises(DataError, match=r"none\.h5: no such file"):
        verify_file(chosen, full=tmp_path / "none.h5")


def test_resized_decoded_sharded_and_own_full_sets_are_compared_too(made, tmp_path):
    rng = np.random.default_rng(0)
    files = []
    for _ in range(COUNT):  # smooth, as photographs are
        image = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)).resize((20, 16), Image.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG")
        files.append(buffer.getvalue())
    encoded = write_encoded(tmp_path / "encoded.h5", files, np.arange(COUNT) % 4)
    with h5py.File(tmp_path / "own.h5", "w") as file:
        file["x"] = noise_images(COUNT, 16, 16).transpose(0, 3, 1, 2)
        file["y"] = np.arange(COUNT) % 4
    half = COUNT // 2
    shards = []
    for number, rows in enumerate((slice(0, half), slice(half, COUNT))):
        pixels = noise_images(COUNT, 16, 16)[rows]
        shards.append(write_raw(tmp_path / f"shard-{number}.h5", pixels, np.arange(half) % 4))
    own = {"images": "x", "labels": "y"}
    for full, settings, names in (
        (made[0], {"resize": 8}, {}),
        (encoded, {}, {}),
        (encoded, {"resize": 12}, {}),
        (tmp_path / "own.h5", own, own),
        (shards, {}, {}),
        (str(tmp_path / "shard-*.h5"), {}, {}),
    ):
        out = build(made, tmp_path / "s.h5", full=full, **settings)
        assert verify_file(out, full=full, progress=False, **names).problems == []
        with h5py.File(out) as file:
            name = file["selection"].attrs["full_fingerprint"]
        rewritten(out, images=lambda values: first_changed(values, lambda image: 255 - image))
        assert len(verify_file(out, full=full, progress=False, **names).problems) == 1, (full, name)


def test_a_packed_again_subset_is_an_ordinary_file(chosen, tmp_path):
    pack(chosen, tmp_path / "again.h5", progress=False)
    report = verify_file(tmp_path / "again.h5", progress=False)
    assert report.ok and report.full is None and not report.subset


# -- what the checksum covers ----------------------------------------------------------------------


@pytest.fixture
def named(tmp_path):
    """An encoded file with all that a file may hold."""
    files = [bytes([row]) * (row + 1) for row in range(6)]
    names, shapes = [f"c/{row}.png" for row in range(6)], np.full((6, 2), 9, np.int32)
    labels, more = np.arange(6) % 2, {"classes": ["ab", "cd"], "ids": np.arange(6) * 2}
    return write_encoded(tmp_path / "named.h5", files, labels, names=names, shapes=shapes, **more)


@pytest.mark.parametrize(
    ("dataset", "row", "value"),
    [
        ("ids", 3, 7),
        ("classes", 1, b"ce"),
        ("shapes", 2, [9, 8]),
        ("names", 5, ord("X")),
        ("name_offsets", 1, 6),
        ("offsets", 1, 2),
    ],
)
def test_a_change_of_what_no_digest_covers_is_found(named, capsys, dataset, row, value):
    assert main(["verify", str(named)]) == 0
    assert "all 6 samples and all that it says of them are as they were written" in capsys.readouterr().out
    change(named, dataset, row, value)
    refused(capsys, "are not what was written", named)


@pytest.mark.parametrize("name", ["source", "created_with", "checksum"])
def test_a_changed_attribute_is_found(named, capsys, name):
    with h5py.File(named, "r+") as file:
        text = file.attrs[name]
        file.attrs.modify(name, text.replace(b"test", b"best").replace(b"fastload", b"lastload").replace(b"1", b"2"))
        assert file.attrs[name] != text
    refused(capsys, "are not what was written", named)


def test_a_changed_shape_of_the_same_bytes_is_found(tmp_path, capsys):
    path = write_raw(tmp_path / "r.h5", noise_images(6, 8, 16), np.arange(6))
    with h5py.File(path, "r+") as file:
        del file["images"]
        turned = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        turned.set_layout(h5py.h5d.CONTIGUOUS)
        turned.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        space = h5py.h5s.create_simple((6, 16, 8, 3))
        h5py.h5d.create(file.id, b"images", h5py.h5t.STD_U8LE, space, turned)
        file["images"][...] = noise_images(6, 8, 16).reshape(6, 16, 8, 3)
    assert verify_file(path, progress=False).fingerprint_matches
    refused(capsys, "are not what was written", path)


def test_a_change_of_a_subset_s_selection_is_found_where_no_strategy_tells(chosen, capsys):
    change(chosen, "selection/score", 0, np.nextafter(PackedFile(chosen).selection.score[0], np.float32(9)))
    refused(capsys, "are not what was written", chosen)


def test_of_a_file_of_format_1_it_is_said_what_was_not_covered(tmp_path, capsys):
    path = write_format_1(tmp_path / "1.h5", noise_images(5, 4, 4), np.arange(5))
    report = verify_file(path, progress=False)
    assert report.ok and report.checksum_matches is None
    assert main(["verify", str(path)]) == 0
    assert "has no checksum, so a change of ids, class names or selection would not show" in capsys.readouterr().out
    change(path, "labels", 0, 4)
    refused(capsys, "the labels (or the fingerprint) are not those that were written", path)


STRANGE = {
    "strategy": np.arange(3),
    "settings": 5,
    "full_fingerprint": np.zeros(2),
    "seed": np.bytes_(b"one"),
    "embeddings": 1.5,
    "whatever": np.arange(2),
}


@pytest.mark.parametrize("name", STRANGE)
def test_an_attribute_of_another_type_is_named_by_verify_inspect_and_the_loader(chosen, capsys, name):
    set_attribute(chosen, name, STRANGE[name])
    words = f"attribute '{name}' of 'selection' is "
    refused(capsys, words, chosen)
    assert main(["inspect", str(chosen)]) == 1 and words in capsys.readouterr().err
    with pytest.raises(DataError, match=words):
        TwoPhaseLoader(chosen.parent / "full.h5", chosen, batch_size=4, steps=4, augment=Augment.paper(8), device="cpu")


@pytest.mark.parametrize("value", [np.arange(3), 5, np.bytes_(b"\xff\xfe"), h5py.Empty("f")])
def test_a_neighbour_with_strange_attributes_is_passed_over(chosen, value):
    shutil.copy(chosen.parent / "full.h5", chosen.parent / "a.h5")
    with h5py.File(chosen.parent / "a.h5", "r+") as file:
        del file.attrs["fingerprint"]
        file.attrs["fingerprint"] = value
    report = verify_file(chosen, progress=False)
    assert report.ok and report.full == chosen.parent / "full.h5"
