"""Formats that are not sources but are often tried as one: what each is, and how to make a source of it."""

from __future__ import annotations

from pathlib import Path

from fastload.sources.kinds import OTHER_PICTURES, PICTURE_SUFFIXES, looks_like_picture, suffix_of

_ARRAYS = "save images and labels together with numpy.savez, and give that .npz"
_TABLE = "is a table, not images; give the folder of its images, and its labels as class folders"
_UNPACK = "unpack it, and give the folder"
_BY_SUFFIX = {
    ".safetensors": f"holds tensors by name; {_ARRAYS}",
    ".npy": f"holds one array; {_ARRAYS}",
    ".mat": f"is MATLAB's; read it with scipy.io.loadmat, {_ARRAYS}",
    ".csv": _TABLE,
    ".tsv": _TABLE,
    ".xlsx": _TABLE,
    ".json": _TABLE,
    ".jsonl": _TABLE,
    ".txt": "is text, not images; give the folder of the images",
    ".parquet": "is a table; open it with datasets.load_dataset, and give that dataset to fastload.pack in Python",
    ".arrow": "is a table; open it with datasets.load_from_disk, and give that dataset to fastload.pack in Python",
    ".tfrecord": "is TensorFlow's; give its samples as a map-style dataset to fastload.pack in Python",
    ".beton": "is FFCV's; give what it was made from",
    ".rar": f"is a RAR archive; {_UNPACK}",
    ".7z": f"is a 7-Zip archive; {_UNPACK}",
    **dict.fromkeys(
        (".pkl", ".pickle", ".pt", ".pth"), f"is a pickle, which may run code and is not loaded; {_ARRAYS}"
    ),
}
_BY_HEAD = {
    b"Rar!": _BY_SUFFIX[".rar"],
    b"7z\xbc\xaf": _BY_SUFFIX[".7z"],
    b"PAR1": _BY_SUFFIX[".parquet"],
    b"\x93NUMPY": _BY_SUFFIX[".npy"],
    b"MATLAB": _BY_SUFFIX[".mat"],
}
_PACKED = (b"\x1f\x8b", b"\xfd7zXZ", b"BZh", b"\x28\xb5\x2f\xfd")


def what_instead(path: Path) -> str:
    """Return what a file is that is neither a tar nor anything else that is read, and the mend; for after its name."""
    with open(path, "rb") as file:
        head = file.read(16)
    suffix = suffix_of(path.name)
    if looks_like_picture(head) or suffix in PICTURE_SUFFIXES | OTHER_PICTURES:
        return "is one file of one image; give the folder that holds the class folders"
    for magic, text in _BY_HEAD.items():
        if head.startswith(magic):
            return text
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    if head.startswith(_PACKED):
        return "is compressed, but what is in it is no tar; unpack it, and give what it holds"
    return (
        "is no source that fastload knows (not a tar, zip, .npz or HDF5 file, nor a folder); give one of these, with "
        "the images as files in class folders, or as uint8 arrays"
    )
