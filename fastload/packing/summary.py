"""The summary of `pack`: how many images of which class were stored, what was left out, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fastload.common.text import plural, printable, shortened

_LISTED = 20
_AS_IS = "as in the source"
_SORTED = f'{_AS_IS}; training with shuffle="block" wants order="shuffled"'


@dataclass(frozen=True)
class PackSummary:
    """What `pack` did; `str()` is for people.

    Attributes:
        path: the file written.
        kind: of the source.
        images: how many are in it.
        ignored: files that are no samples.
        counts: images by class name (by label where classes have no names; empty where labels are no classes).
        shape: (H, W, C) of raw images, None for encoded ones.
        storage: "raw" or "encoded".
        order: "source" or "shuffled".
        image_bytes: of all images as stored.
        file_bytes: of the whole file.
        seconds: time taken.
        skipped: the broken images left out, as "name: reason", in sorted order.
        left_out: what the stored images had beside pixels and labels, in words: other keys, channels.
        passed_over: the ignored files by kind, such as {".txt": 2}.
        notes: what people should know of the source.
        unlabelled: whether the images have no labels.
        turned: encoded files in which the orientation was written anew, so that every decoder reads the same.
        whole: encoded files that crops cannot be cut from.
    """

    path: Path
    kind: str
    images: int
    ignored: int
    counts: dict[str, int]
    shape: tuple[int, int, int] | None
    storage: str
    order: str
    image_bytes: int
    file_bytes: int
    seconds: float
    skipped: list[str]
    left_out: list[str] = field(default_factory=list)
    passed_over: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unlabelled: bool = False
    turned: int = 0
    whole: int = 0

    def __str__(self) -> str:
        size = f"{self.file_bytes / 1e6:,.1f} MB"
        each = "×".join(map(str, self.shape)) if self.shape else f"{self.image_bytes / self.images / 1e3:,.1f} kB each"
        lines = [
            f"{self.path}: {plural(self.images, 'image')} from {self.kind}",
            f"  stored   {self.storage}, {each}, {size}",
            f"  classes  {'none: the images have no labels' if self.unlabelled else describe_counts(self.counts)}",
            f"  order    {'shuffled' if self.order == 'shuffled' else _SORTED if len(self.counts) > 1 else _AS_IS}",
        ]
        lines += [f"  left out {text}" for text in self.left_out]
        if self.turned:
            lines.append(f"  turned   {plural(self.turned, 'file')}: decoders read the orientation differently before")
        if self.storage == "encoded":
            cut, whole = self.images - self.whole, f"{self.whole:,} are decoded whole"
            lines.append(f"  cut      {plural(cut, 'file')} can be{f', {whole}' if self.whole else ''}")
        if self.ignored:
            kinds = ", ".join(f"{count:,} {_one(kind, count)}" for kind, count in self.passed_over.items())
            lines.append(f"  ignored  {plural(self.ignored, 'other file')}{f': {kinds}' if kinds else ''}")
        lines += [f"  note     {note}" for note in self.notes]
        if self.skipped:
            lines.append(f"  skipped  {plural(len(self.skipped), 'broken image')}")
            lines += [f"           {text}" for text in self.skipped[:_LISTED]]
            if len(self.skipped) > _LISTED:
                lines.append(f"           … and {len(self.skipped) - _LISTED:,} more")
        rate = self.images / max(self.seconds, 1e-9)
        lines.append(f"  took     {self.seconds:,.1f} s, {rate:,.0f} images/s")
        return "\n".join(shortened(printable(line)) for line in lines)


def describe_counts(counts: dict[str, int]) -> str:
    """Return class counts on one line: each class of a few, the spread of many."""
    if not counts:
        return "none: the labels are not class indices"
    low, high = min(counts.values()), max(counts.values())
    spread = f"{low:,} each" if low == high else f"{low:,} to {high:,} each"
    if len(counts) > 10:
        return f"{len(counts):,}, {spread}"
    if low == high:
        return f"{len(counts):,}, {spread}: " + ", ".join(counts)
    return f"{len(counts):,}: " + ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _one(kind: str, count: int) -> str:
    return kind.replace("images", "image").replace("files", "file") if count == 1 else kind
