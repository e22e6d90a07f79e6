"""Tell pictures from other files by name, or by the first bytes where the name says nothing."""

from __future__ import annotations

import os

from PIL import features

HEAD = 16
"""How many of a file's first bytes `looks_like_picture` wants."""

_PICTURES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
)
_AVIF = frozenset((".avif",)) if features.check("avif") else frozenset()
PICTURE_SUFFIXES = _PICTURES | _AVIF

# Pictures that Pillow does not read, or reads only a small preview of. A folder of these is a class that would be lost.
_OTHER_PICTURES = """
.avif .heic .heif .hif .jxl .jp2 .j2k .jpx .jpf .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .raw .psd .svg .eps .ico .dcm
.exr .hdr .tga .pcx .sgi .xcf
"""
OTHER_PICTURES = frozenset(_OTHER_PICTURES.split()) - PICTURE_SUFFIXES

# Files of these names are no pictures, and their first bytes need not be asked for.
_PLAIN = """
.txt .csv .tsv .json .jsonl .xml .yaml .yml .md .rst .html .htm .log .pdf .cls .mat .npy .npz .pkl .pickle .h5 .hdf5
.parquet .arrow .feather .xls .xlsx .doc .docx .py .ipynb .m .sh .tar .gz .tgz .bz2 .xz .zst .zip .7z .rar .mp4 .avi
.mov .mkv .webm .mp3 .wav .flac .pt .pth .db .sqlite .md5 .sha1 .sha256 .tfrecord .idx .index
"""
_KNOWN = frozenset(_PLAIN.split()) | OTHER_PICTURES | PICTURE_SUFFIXES

# What systems and programs leave behind, lower case. Of a folder of such a name nothing is looked at.
_SYSTEM = frozenset(
    (
        "__macosx",
        "@eadir",
        "@tmp",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "lost+found",
        "system volume information",
        "$recycle.bin",
        "recycler",
        "recycled",
        "found.000",
        "thumbs.db",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        "icon\r",
        "network trash folder",
        "temporary items",
        "__pycache__",
    )
)


def is_system(name: str) -> bool:
    """Whether a file or folder of this name is hidden (.DS_Store, ._x, .git) or a system's own (@eaDir, Thumbs.db)."""
    return name.startswith(".") or name.lower() in _SYSTEM


def system_part(path: str) -> str | None:
    """Return the path of the outermost system file or folder that a path is or lies in; None where there is none."""
    if not any(is_system(part) for part in path.split("/")):
        return None
    parts = path.split("/")
    first = next(index for index, part in enumerate(parts) if is_system(part))
    return "/".join(parts[: first + 1])


def suffix_of(name: str) -> str:
    """Return a file's suffix, lower case with its dot; "" where it has none."""
    return os.path.splitext(name.rpartition("/")[2])[1].lower()


def needs_a_look(name: str) -> bool:
    """Whether only a file's first bytes can tell if it is a picture: its suffix is unknown, or there is none."""
    return suffix_of(name) not in _KNOWN


def looks_like_picture(head: bytes) -> bool:
    """Whether a file that begins so is a JPEG, PNG, GIF, WebP, BMP or AVIF picture.

    TIFF is left out: raw photographs of cameras begin as TIFF does, and Pillow would read their small preview.
    """
    return (
        head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a"))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[:2] == b"BM" and len(head) >= 10 and head[6:10] == b"\0\0\0\0")
        or (bool(_AVIF) and head[4:12] in (b"ftypavif", b"ftypavis"))
    )
