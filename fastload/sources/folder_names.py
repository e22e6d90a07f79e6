"""What a folder's name says: a split (train, val) or a container of pictures, neither of which is a class."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SPLITS = {
    "train": "train trn training",
    "val": "val valid validation validate validating dev",
    "test": "test tst testing eval evaluation holdout query gallery",
    "unlabeled": "unlabeled unlabelled unlabel extra",
    "pred": "pred predict prediction predictions",
}
_WORDS = {word: split for split, words in _SPLITS.items() for word in words.split()}
_TAILS = ("set", "sets", "data", "dataset", "images", "image", "imgs", "img", "split", "pics", "pictures", "folder")
_PICTURES = ("images", "image", "imgs", "img", "jpg", "jpeg", "jpegs", "jpegimages", "png", "pngs", "pictures", "pics")
_ANNOTATIONS = """
mask masks label labels annotation annotations annot annots anno ann segmentation segmentations seg segs segm segmap
depth depths depthmap depthmaps groundtruth gt trimap trimaps matte mattes saliency heatmap heatmaps labelmap labelmaps
bbox bboxes
"""
_OF_ANNOTATIONS = """
image images img imgs map maps png class object binary semantic instance ground truth data
"""
_PARTS = """
part parts pt batch batches shard shards chunk chunks images image imgs img pics pictures archive archives folder dir
disk disc volume vol split set subset fold patient patients subject subjects case study session scan video videos clip
frame frames seq sequence
"""
_CLASSES = """
class classes category categories label labels cat type grade level stage digit kind group
"""


def split_word(name: str) -> str | None:
    """Return which split a folder's name says it is ("train" of `seg_train`, `Training`, `train2017`), or None.

    The answer is one of train, val, test, unlabeled, pred.
    """
    for token in _tokens(name):
        for tail in ("", *_TAILS):
            if token.endswith(tail) and (split := _WORDS.get(token.removesuffix(tail))):
                return split
    return None


def is_box_of_pictures(name: str) -> bool:
    """Whether a folder's name is a word for pictures of any class: images, imgs, JPEGImages."""
    return "".join(_tokens(name)) in _PICTURES


def is_box_of_annotations(name: str) -> bool:
    """Whether a folder's name is a word for what is told of pictures, as pictures: masks, labels, SegmentationClass."""
    tokens = _tokens(name)
    words = set(_ANNOTATIONS.split())
    if "".join(tokens) in words:
        return True
    return not words.isdisjoint(tokens) and words.union(_OF_ANNOTATIONS.split()).issuperset(tokens)


def numbered_alike(names: Sequence[str]) -> str | None:
    """Return what comes before the number in several names that differ in nothing else; None where they differ."""
    found = [re.fullmatch(r"(.*?)[\W_]*\d+", name) for name in names]
    stems = {match[1].lower() for match in found if match}
    return stems.pop() if len(names) > 1 and all(found) and len(stems) == 1 else None


def means_parts(stem: str) -> bool:
    """Whether numbered folders are parts of one set by what comes before the number: images_part_1, batch-02."""
    return not set(_PARTS.split()).isdisjoint(_tokens(stem))


def means_something(stem: str) -> bool:
    """Whether what comes before a number is a word that does not mean class: patient, but not n or class."""
    return len(stem) > 2 and set(_CLASSES.split()).isdisjoint(_tokens(stem))


def _tokens(name: str) -> list[str]:
    """Return a name's words, lower case: seg_train, SegTrain and seg-train2 all are seg, train."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
