"""Which folders are classes: every row of the table in docs/sources.md, and what holds for any tree."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT
from samples import encode, noise, put, tar, zipped
from typer.main import get_command

from fastload.command.cli import app
from fastload.command.options import OptionNames
from fastload.errors import DataError, FastloadError, UsageError
from fastload.sources import open_source
from fastload.sources.folder_names import is_box_of_annotations, split_word
from fastload.sources.kinds import PICTURE_SUFFIXES, suffix_of
from fastload.sources.layout import Layout, find_classes, find_pictures
from fastload.sources.members import Member

PAGE = ROOT / "docs" / "sources.md"
AS_PACK_SAYS_IT = OptionNames.of(get_command(app), ["pack"])


def expanded(text: str) -> list[str]:
    """The words of a text with braces, as a shell would make them."""
    pieces = [piece[1:-1].split(",") if piece.startswith("{") else [piece] for piece in re.split(r"(\{.*?\})", text)]
    return ["".join(words) for words in itertools.product(*pieces)]


def listing(*texts: str) -> list[Member]:
    """Members of these paths; one that ends in a slash is an empty folder."""
    return [
        Member(path.rstrip("/"), 1, "folder" if path.endswith("/") else "file", "", suffix_of(path) in PICTURE_SUFFIXES)
        for text in texts
        for path in expanded(text)
    ]


def classes_of(layout: Layout) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {name: [] for name in layout.classes}
    for name, label in zip(layout.pictures, layout.labels, strict=True):
        found[layout.classes[label]].append(name)
    return found


def rows() -> list[tuple[str, str, str]]:
    table = PAGE.read_text("utf-8").split("| what is there |")[1].split("\n\n")[0].splitlines()[2:]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table]  # type: ignore[misc]


@pytest.mark.parametrize("there, options, result", rows(), ids=[f"{there} {options}" for there, options, _ in rows()])
def test_a_row_of_the_page_says_what_becomes_of_a_layout(there: str, options: str, result: str) -> None:
    members = listing(*re.findall(r"`([^`]+)`", there))
    words = options.strip("`").split()
    split = words[words.index("--split") + 1] if "--split" in words else None
    level = int(words[words.index("--class-level") + 1]) if "--class-level" in words else None
    kind, _, told = result.partition(": ")
    for prefix in ("", "tree/") if any("/" in member.name for member in members) else ("",):
        if prefix and level is not None:
            level += 1
        inside = [member._replace(name=prefix + member.name) for member in members]
        if kind == "error":
            with pytest.raises(FastloadError) as caught:
                find_classes("here", inside, split=split, level=level)
            said = AS_PACK_SAYS_IT(str(caught.value))
            assert told in (said.replace(prefix, "") if prefix else said)
            assert len(said) < 400
        elif told == "none":
            layout = find_pictures("here", inside, split=split)
            assert layout.classes == [] and len(layout.pictures) == len(members)
        else:
            layout = find_classes("here", inside, split=split, level=level)
            assert layout.classes == re.findall(r"`([^`]+)`", told.partition("(")[0])


def test_the_table_shows_every_kind_of_outcome() -> None:
    kinds = Counter(result.partition(":")[0] for _, _, result in rows())
    assert kinds["classes"] > 15 and kinds["error"] > 15 and set(kinds) == {"classes", "error"}


@pytest.mark.parametrize(
    "there, options, result", [row for row in rows() if row[2].startswith("classes") and "`" in row[2]]
)
def test_folder_tar_and_zip_agree_on_every_layout(tmp_path: Path, there: str, options: str, result: str) -> None:
    paths = [path for text in re.findall(r"`([^`]+)`", there) for path in expanded(text)]
    files = {path: b"" if path.endswith("/") else encode(noise()) for path in paths}
    words = options.strip("`").split()
    split = words[words.index("--split") + 1] if "--split" in words else None
    level = int(words[words.index("--class-level") + 1]) if "--class-level" in words else None
    places = put(tmp_path / "f", files), tar(tmp_path / "t.tar", files), zipped(tmp_path / "z.zip", files)
    found = [open_source(place, split=split, class_level=level) for place in places]
    for source in found:
        assert (list(source.names), source.classes) == (list(found[0].names), found[0].classes)
        assert source.labels.tolist() == found[0].labels.tolist() and source.passed_over == found[0].passed_over
        assert dict(source.read()) == dict(found[0].read())


@pytest.mark.parametrize(
    "name, split",
    [
        ("train", "train"),
        ("Training", "train"),
        ("seg_train", "train"),
        ("train2017", "train"),
        ("TRAIN", "train"),
        ("training_set", "train"),
        ("asl_alphabet_train", "train"),
        ("trainset", "train"),
        ("TrainImages", "train"),
        ("bounding_box_test", "test"),
        ("test1", "test"),
        ("val", "val"),
        ("valid", "val"),
        ("validation_data", "val"),
        ("dev", "val"),
        ("unlabeled", "unlabeled"),
        ("seg_pred", "pred"),
        ("cats", None),
        ("latest", None),
        ("strain", None),
        ("interval", None),
        ("001.ak47", None),
        ("invalid", None),
        ("", None),
    ],
)
def test_the_word_for_a_split_is_found_in_names_and_nowhere_else(name: str, split: str | None) -> None:
    assert split_word(name) == split


def test_splits_are_found_by_path_name_and_word() -> None:
    members = listing("w/seg_{train,test}/seg_train/{a,b}/{0,1}.jpg", "w/seg_pred/0.jpg")
    for split in ("seg_train", "train", "w/seg_train", "SEG_TRAIN", "Training", "seg_train/seg_train"):
        assert find_classes("here", members, split=split).classes == ["a", "b"]
    with pytest.raises(
        UsageError, match=r"has no split 'dev'; its folders are seg_pred \(1 image\), seg_test \(4 images\)"
    ):
        find_classes("here", members, split="dev")
    nested = listing("{color,gray}/{train,val}/{a,b}/0.jpg")
    with pytest.raises(UsageError, match=r"'color' holds several splits: color/train \(2 images\), color/val"):
        find_classes("here", nested, split="color")
    assert find_classes("here", nested, split="color/val").classes == ["a", "b"]
    both = listing("{test,Test}/{a,b}/0.jpg")
    assert find_classes("here", both, split="Test").pictures == ["Test/a/0.jpg", "Test/b/0.jpg"]


def test_an_error_names_the_option_that_helps_and_it_does() -> None:
    members = listing("PlantVillage/{Potato,Tomato}/0.jpg", "PlantVillage/PlantVillage/{Potato,Tomato}/0.jpg")
    with pytest.raises(UsageError, match=r'name it with split="PlantVillage/PlantVillage"$'):
        find_classes("here", members)
    assert find_classes("here", members, split="PlantVillage/PlantVillage").classes == ["Potato", "Tomato"]
    deep = listing("w/a/{abbey,airport}/0.jpg", "w/b/{bar,bank}/0.jpg")
    with pytest.raises(UsageError, match=r"class_level=2 for a, b, or 3 for abbey, airport, bank, bar"):
        find_classes("here", deep)
    assert find_classes("here", deep, level=2).classes == ["a", "b"]


def test_a_class_level_says_which_folder_of_a_path_is_the_class() -> None:
    members = listing("w/{x,y}/{a,b}/{0,1}.jpg", "w/x/c/")
    layout = find_classes("here", members, level=3)
    assert {name: len(pictures) for name, pictures in classes_of(layout).items()} == {"a": 4, "b": 4, "c": 0}
    assert find_classes("here", members, level=2).classes == ["x", "y"]
    assert find_classes("here", members, split="x", level=3).pictures[:1] == ["w/x/a/0.jpg"]
    with pytest.raises(DataError, match=r"'w/x/a/0\.jpg' stands above class_level=4"):
        find_classes("here", members, level=4)
    with pytest.raises(UsageError, match="class_level=0"):
        find_classes("here", members, level=0)
    with pytest.raises(UsageError, match="several splits"):
        find_classes("here", listing("{train,val}/{a,b}/0.jpg"), level=2)


def test_what_is_passed_over_is_counted_by_kind_but_for_other_splits() -> None:
    members = listing("train/{a,b}/{0,1}.jpg", "val/{a,b}/0.jpg", "val/x.txt", "train/a/{x,y}.txt", "train/b/z.heic")
    members += listing("train/.DS_Store", "@eaDir/{0,1}.jpg", "docs/figure.png", "train/LICENSE")
    assert find_classes("here", members, split="train").passed_over == {
        ".txt": 2,
        "system files": 2,
        ".heic": 1,
        "images elsewhere": 1,
        "no suffix": 1,
    }


def test_names_are_without_the_folders_around_everything(tmp_path: Path) -> None:
    files = {name: encode(noise()) for text in ("{a,b}/0.png", "a/deep/1.png") for name in expanded(text)}
    for prefix in ("", "w/", "w/x/"):
        path = tar(tmp_path / "t.tar", {prefix + name: data for name, data in files.items()})
        assert list(open_source(path).names) == ["a/0.png", "a/deep/1.png", "b/0.png"]
        assert list(open_source(path, unlabelled=True).names) == ["a/0.png", "a/deep/1.png", "b/0.png"]


def test_a_tree_too_deep_is_refused() -> None:
    with pytest.raises(DataError, match="more than 100 folders deep"):
        find_classes("here", listing("a/" * 5000 + "0.jpg"))


NAMES = st.sampled_from(["a", "b", "train", "val", "images", "part_1", "part_2", "0", "00001", "c.txt", "x.csv", "é"])
FILES = st.sampled_from(["0.jpg", "1.jpg", "2.png", "0.json", "x.txt", "y.heic", "Thumbs.db", ".z", "labels.csv", ""])


@settings(max_examples=400, deadline=None)
@given(paths=st.lists(st.tuples(st.lists(NAMES, max_size=4), FILES), min_size=1, max_size=12), data=st.data())
def test_any_tree_is_classes_of_all_its_images_or_one_line(
    paths: list[tuple[list[str], str]], data: st.DataObject
) -> None:
    """No image is in two classes, none is lost without being counted, and the order of the listing says nothing."""
    names = {"/".join([*folders, file]) for folders, file in paths if folders or file}
    members = listing(*sorted(names))
    split = data.draw(st.sampled_from([None, "train", "val"]))
    try:
        layout = find_classes("here", members, split=split)
    except FastloadError as error:
        assert str(error).startswith("here: ") and "\n" not in str(error)
        with pytest.raises(type(error), match=re.escape(str(error))):
            find_classes("here", data.draw(st.permutations(members)), split=split)
        return
    assert find_classes("here", data.draw(st.permutations(members)), split=split) == layout
    assert len(set(layout.pictures)) == len(layout.pictures) == len(layout.labels)
    assert layout.labels == sorted(layout.labels) and layout.classes == sorted(set(layout.classes))
    pictures = {member.name for member in members if member.picture}
    assert set(layout.pictures) <= pictures
    if split is None:
        visible = {name for name in pictures if not re.search(r"(^|/)(\.|thumbs)", name, re.IGNORECASE)}
        assert len(visible) == len(layout.pictures) + layout.passed_over.get("images elsewhere", 0)


ANNOTATIONS = ["mask", "MASKS", "labels", "SegmentationClass", "ground_truth", "GT", "depth_maps", "mask_images"]
OTHERS = ["masked", "face_mask", "images", "small", "depths_of_winter", "labelled", "cat", "2", "segway"]


@pytest.mark.parametrize("name", ANNOTATIONS + OTHERS)
def test_folders_named_for_annotations_are_told_by_whole_words(name: str) -> None:
    assert is_box_of_annotations(name) is (name in ANNOTATIONS)
