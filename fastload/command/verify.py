"""`fastload verify`: whether a packed file is whole, its parts agree, and a subset is of the full set it names."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastload.common.arguments import flag
from fastload.common.processors import processors
from fastload.common.progress import progress_bar
from fastload.common.text import plural, printable
from fastload.errors import DataError, UsageError
from fastload.kernels.jpeg_cut import stored_sides
from fastload.packed.file import PackedFile, checksum, digest, fingerprint
from fastload.packed.jpeg_index import Cut
from fastload.packed.labels import label_faults
from fastload.packed.metadata import full_set_fingerprint
from fastload.packed.set import Packed, PathsLike, open_packed
from fastload.packing.fit import Fit
from fastload.packing.jpeg_transcode import fits_index
from fastload.packing.subset_pixels import SubsetImages, decode_rows, subset_images
from fastload.selection import STRATEGIES

_NEAR = 1.0
"""Mean difference in levels up to which a decoded or resized image is the same: decoders' versions differ a little."""


@dataclass(frozen=True)
class VerifyReport:
    """What `verify_file` found; `str()` is for people.

    Attributes:
        path: the file.
        images: how many it holds.
        subset: whether it is one.
        damaged: (row, id, class) of each sample whose bytes do not have their digest.
        fingerprint_matches: whether images and labels together are what was written.
        checksum_matches: whether all the rest is: ids, names, shapes, offsets, classes, selection, source; None for a
            file of format 1, which has no checksum.
        duplicate_ids: how many ids stand in more than one row.
        problems: what else is wrong, a sentence's part each: labels, selection, and how it differs from the full set.
        full: the full set that a subset was compared with, None where there was none.
    """

    path: Path
    images: int
    subset: bool
    damaged: list[tuple[int, int, str]]
    fingerprint_matches: bool
    checksum_matches: bool | None
    duplicate_ids: int
    problems: list[str]
    full: Path | None

    def __str__(self) -> str:
        if not self.ok:
            rows = [f"row {row}  id {identity}  class {printable(name)}" for row, identity, name in self.damaged]
            return "\n".join(rows + self.problems)
        whole = " and all that it says of them" if self.checksum_matches else ""
        text = f"{self.path}: all {self.images:,} samples{whole} are as they were written"
        if self.checksum_matches is None:
            text = (
                f"{self.path}: all {self.images:,} images and labels are as they were written; a file of format 1 has "
                "no checksum, so a change of ids, class names or selection would not show (pack it again to have one)"
            )
        if self.full is not None:
            return f"{text}, and each sample is that of {self.full}"
        return f"{text}; not compared with its full set (--full FULL.h5 does)" if self.subset else text

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        intact = self.fingerprint_matches and self.checksum_matches is not False
        return intact and not self.damaged and not self.duplicate_ids and not self.problems

    def raise_if_damaged(self) -> None:
        """Raise DataError, saying what is wrong, unless all is well."""
        if self.ok:
            return
        found = list(self.problems)
        if self.duplicate_ids:
            found.insert(0, f"{plural(self.duplicate_ids, 'id')} in more than one row")
        if self.checksum_matches is False:
            found.insert(
                0, "ids, names, shapes, offsets, selection or source (or the checksum) are not what was written"
            )
        if self.damaged and self.fingerprint_matches:
            found.insert(0, f"{plural(len(self.damaged), 'digest')} damaged, though images and labels are intact")
        elif self.damaged:
            found.insert(0, f"{len(self.damaged):,} of {plural(self.images, 'sample')} damaged")
        elif not self.fingerprint_matches:
            found.insert(0, "the labels (or the fingerprint) are not those that were written, though every image is")
        mend = "build it again with `fastload build-subset`" if self.subset else "pack it again"
        raise DataError(f"{self.path}: {'; '.join(found)}; {mend}")


def verify_file(
    path: str | os.PathLike[str],
    *,
    full: PathsLike | None = None,
    images: str | None = None,
    labels: str | None = None,
    progress: bool = True,
) -> VerifyReport:
    """Read a packed file's every byte and compare digests, fingerprint and checksum; look whether its parts agree.

    Arguments:
        path: a packed file or a subset.
        full: the full set that a subset was built from: a path, a pattern or a list. By default the packed file in the
            subset's folder that has the fingerprint which the subset names, where there is one.
        images: the images' dataset, where `full` is an HDF5 file of your own.
        labels: the labels' dataset there.

    Raises DataError where a file cannot be opened or read, UsageError where it has no digests, or is no subset and
    `full` is given.
    """
    progress = flag("progress", progress)
    with PackedFile(path) as file:
        if file.digests is None:
            raise UsageError(f"{path}: is not a packed file and has no digests to verify")
        if full is not None and file.selection is None:
            raise UsageError(f"{path}: is not a subset, so there is nothing to compare with --full; leave it out")
        if full is None and (images is not None or labels is not None):
            raise UsageError("--images and --labels name the datasets of --full, your own HDF5 file; give it too")
        damaged, unfit = [], []
        with progress_bar("verifying", len(file), quiet=not progress) as advance:
            for row in range(len(file)):
                data = file.read(row)
                if digest(data) != int(file.digests[row]):
                    damaged.append((row, int(file.ids[row]), _class_of(file, row)))
                elif not _is_cut_rightly(file, row, data):
                    unfit.append(row)
                advance(1)
        with progress_bar("fingerprint", None, quiet=not progress):
            matches = fingerprint(file) == file.fingerprint
            rest_matches = None if file.checksum is None else checksum(file) == file.checksum
        duplicates = len(file.ids) - len(np.unique(file.ids))
        problems = _label_problems(file) + _index_problems(file, unfit)
        if file.selection is not None:
            problems += _selection_problems(file)
            full = _beside(file) if full is None else full
        compared = None
        if full is not None:
            with open_packed(full, images=images, labels=labels) as whole:
                compared = whole.path
                problems += _differences(file, whole)
        subset = file.selection is not None
        return VerifyReport(
            file.path, len(file), subset, damaged, matches, rest_matches, duplicates, problems, compared
        )


def _class_of(file: PackedFile, row: int) -> str:
    if file.labels is None:
        return "none"
    label = file.labels[row]
    if label.ndim == 0 and label.dtype.kind in "iub" and 0 <= label < len(file.classes):
        return file.classes[int(label)]
    return str(label.tolist())


def _some(values: np.ndarray) -> str:
    """Return the first few of many, as text."""
    return ", ".join(str(value) for value in values[:5].tolist()) + (", …" if len(values) > 5 else "")


def _label_problems(file: PackedFile) -> list[str]:
    """Return what `pack` would not have taken either."""
    if file.labels is None:
        return []
    return [
        f"{plural(len(fault.rows), 'label')} {fault.reason} (ids {_some(file.ids[fault.rows])}): mend "
        "the source's labels or class names"
        for fault in label_faults(file.labels, file.classes)
    ]


def _is_cut_rightly(file: PackedFile, row: int, data: bytes) -> bool:
    """Whether a file is stored whole, or can be cut as the index says."""
    if file.jpeg is None or file.shapes is None or not file.jpeg.cuts[row].any():
        return True
    cut = Cut(*file.jpeg.cuts[row].tolist())
    height, width = file.shapes[row].tolist()
    sides = stored_sides(height, width, cut.orientation)
    return fits_index(data, cut, sides, file.jpeg.segments(row))


def _index_problems(file: PackedFile, unfit: list[int]) -> list[str]:
    if not unfit:
        return []
    ids = _some(file.ids[unfit])
    return [f"'jpeg' and 'segments' do not say how {plural(len(unfit), 'file')} can be cut (ids {ids})"]


def _selection_problems(file: PackedFile) -> list[str]:
    """Return what in `selection/` no strategy can have given; lengths and types were checked when it was opened."""
    table = file.selection
    assert table is not None
    dimension, rank, score = table.dimension, table.rank, table.score
    found = []
    for name, wrong, what in (
        ("score", ~np.isfinite(score), "not finite"),
        ("dimension", dimension < -1, "below -1, which stands for none"),
        ("rank", rank < 0, "below 0"),
    ):
        if wrong.any():
            count = f"{int(wrong.sum()):,} of {len(wrong):,}"
            found.append(f"'selection/{name}' has {count} values {what} (ids {_some(file.ids[wrong])})")
    if file.storage == "encoded":
        found.append("images are encoded, and a subset's are raw or ragged")
    named = table.attributes.get("full_fingerprint")
    if not isinstance(named, str) or not re.fullmatch("[0-9a-f]{32}", named):
        found.append("'selection' has no valid attribute 'full_fingerprint'")
    settings = _settings(table.attributes.get("settings"))
    if settings is None:
        return [*found, "the attribute 'settings' of 'selection' is no JSON object"]
    size, most = settings.get("size"), settings.get("per_dimension")
    if isinstance(size, int) and size != len(file):
        found.append(f"its settings say {size:,} samples, and it has {len(file):,}")
    if isinstance(most, int) and (
        (rank[dimension >= 0] >= most).any() or int((dimension < 0).sum()) > _included(settings)
    ):
        found.append(f"'selection' holds samples that are not among the {most:,} strongest of a dimension")
    if (strategy := STRATEGIES.get(str(table.attributes.get("strategy")))) is not None:
        found += _list_problems(file, bool(settings.get("balance_classes")), falling=strategy.per_dimension)
    return found


def _included(settings: dict[str, Any]) -> int:
    found = settings.get("included")
    return found if isinstance(found, int) else 0


def _settings(text: Any) -> dict[str, Any] | None:
    try:
        settings = {} if text is None else json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None
    return settings if isinstance(settings, dict) else None


def _list_problems(file: PackedFile, balanced: bool, falling: bool) -> list[str]:
    """A list (a dimension's, of a class where classes are balanced) has one sample a rank, and `falling` scores."""
    table = file.selection
    assert table is not None
    if table.attributes["strategy"] == "random" and (table.dimension >= 0).any():
        return ["'selection/dimension' names dimensions, though samples were chosen at random"]
    by_class = balanced and file.labels is not None and file.labels.ndim == 1
    group = file.labels if by_class and file.labels is not None else np.zeros(len(file), np.int64)
    order = np.lexsort((table.rank, group, table.dimension))
    dimension, group = table.dimension[order], group[order]
    rank, score, ids = table.rank[order], table.score[order], file.ids[order]
    same = (dimension[1:] == dimension[:-1]) & (group[1:] == group[:-1])
    found = []
    twice = np.flatnonzero(same & (rank[1:] == rank[:-1])) + 1
    if len(twice):
        found.append(
            f"{plural(len(twice), 'rank')} given twice within one dimension of 'selection' (ids {_some(ids[twice])})"
        )
    rising = np.flatnonzero(same & (score[1:] > score[:-1])) + 1
    if falling and len(rising):
        found.append(f"scores that rise with the rank within one dimension of 'selection' (ids {_some(ids[rising])})")
    return found


def _beside(file: PackedFile) -> Path | None:
    """Return the packed file in the subset's folder that has the full set's fingerprint."""
    assert file.selection is not None
    named = file.selection.attributes.get("full_fingerprint")
    for path in sorted(file.path.absolute().parent.glob("*.h5")):
        if named is not None and full_set_fingerprint(path) == named:
            return path
    return None


def _differences(file: PackedFile, full: Packed) -> list[str]:
    """Return in what a subset is not made of the samples of `full`."""
    assert file.selection is not None
    if full.selection is not None:
        raise UsageError(f"--full {full.path}: is a subset itself; name the full set that {file.path} was built from")
    named = file.selection.attributes.get("full_fingerprint")
    if named != full.fingerprint:
        return [
            f"was built from another full set (fingerprint {str(named)[:12]}…) than {full.path} "
            f"({full.fingerprint[:12]}…): name the right one with --full"
        ]
    order = np.argsort(full.ids, kind="stable")
    place = np.searchsorted(full.ids, file.ids, sorter=order)
    rows = order[np.minimum(place, len(order) - 1)]
    strange = full.ids[rows] != file.ids
    found = []
    if strange.any():
        found.append(f"{plural(int(strange.sum()), 'id')} not in {full.path} ({_some(file.ids[strange])})")
    if file.classes != full.classes:
        found.append(f"other classes than {full.path} has")
    mine = np.flatnonzero(~strange)
    if not len(mine):
        return found
    rows = rows[mine]
    if full.labels is None or file.labels is None:
        if (full.labels is None) != (file.labels is None):
            found.append(f"labels only in {file.path if full.labels is None else full.path}")
        return found + _image_differences(file, full, mine, rows)
    theirs, ours = full.labels[rows], file.labels[mine]
    if theirs.shape != ours.shape or theirs.dtype != ours.dtype:
        found.append(f"labels {ours.dtype}{list(ours.shape[1:])} where {full.path} has {theirs.dtype}")
    else:
        wrong = (theirs.view(np.uint8).reshape(len(mine), -1) != ours.view(np.uint8).reshape(len(mine), -1)).any(axis=1)
        if wrong.any():
            found.append(
                f"{plural(int(wrong.sum()), 'label')} other than in {full.path} (ids {_some(file.ids[mine][wrong])})"
            )
    return found + _image_differences(file, full, mine, rows)


def _image_differences(file: PackedFile, full: Packed, mine: np.ndarray, rows: np.ndarray) -> list[str]:
    """Return how images differ from those in these rows of the full set, as they should have become."""
    if file.storage == "encoded":
        return []
    images = _made_as(file, full, mine, rows)
    if isinstance(images, str):
        return [images]
    assert file.digests is not None
    untouched = images.fit is None and full.storage != "encoded"
    if untouched and full.digests is not None:
        wrong = full.digests[rows] != file.digests[mine]
    else:
        wrong = np.zeros(len(mine), bool)
        near = 0.0 if untouched else _NEAR
        try:
            for index, pixels in decode_rows(full, rows, images, processors()):
                wrong[index] = np.abs(pixels.astype(np.int16) - file.read_image(int(mine[index]))).mean() > near
        except UsageError:  # one of another size
            return [f"images of {_sides(file.shape)}, a size that not all of {full.path} have"]
    if not wrong.any():
        return []
    return [f"{plural(int(wrong.sum()), 'image')} other than in {full.path} (ids {_some(file.ids[mine][wrong])})"]


def _made_as(file: PackedFile, full: Packed, mine: np.ndarray, rows: np.ndarray) -> SubsetImages | str:
    """Return how a subset's images were made of those in these rows of the full set, or why they cannot have been."""
    if full.channels != file.channels:
        return f"images of {plural(file.channels, 'channel')}, where those of {full.path} have {full.channels}"
    if file.shape is not None:
        height, width, channels = file.shape
        if full.shape != file.shape and height != width and full.storage != "encoded":
            return f"images of {_sides(file.shape)}, which no --resize makes of those of {full.path}"
        # Encoded images that are not square were not resized, and all have one size.
        return SubsetImages(
            Fit("resize", height) if height == width and full.shape != file.shape else None, channels, file.shape
        )
    assert file.shapes is not None
    images = subset_images(full, None) if full.storage == "ragged" else None
    if images is None or not _fits(images, file.shapes[mine], rows):
        images = subset_images(full, Fit("short_side", int(file.shapes.min(axis=1).max())))
    if not _fits(images, file.shapes[mine], rows):
        return f"images of sizes that no --short-side makes of those of {full.path}"
    return images


def _fits(images: SubsetImages, shapes: np.ndarray, rows: np.ndarray) -> bool:
    assert images.shapes is not None
    return np.array_equal(images.shapes[rows], shapes)


def _sides(shape: tuple[int, ...] | None) -> str:
    return "×".join(map(str, shape or ()))
