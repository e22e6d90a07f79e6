"""WebDataset from tar shards on the local disk, in the page cache, set up as its documentation says for speed.

That is: a sample's pixels as they are (`.bin`, nothing to decode) and its label (`.cls`) in shards of a few MB that are
read in sequence; shards shuffled, samples through a buffer of 1,000; batched inside the dataset, in the workers, by a
`collation_fn` that augments the whole batch; `WebLoader(batch_size=None)`, workers that persist. An epoch is repeated
inside the workers, which spares their restarts.
"""

import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import webdataset as wds
from peer_loading import MADE_AHEAD, WORKERS, Collate, endless, loader_settings

CASES = ("stream",)
AHEAD = MADE_AHEAD
LEAVES_OUT = {"cifar": "a full shuffle: samples mix in a buffer of 1,000"}

SHARDS = 20
BUFFER = 1000


class CollateBytes(Collate):
    """A list of (pixels, label), both bytes."""

    def __call__(self, samples):
        stored, labels = zip(*samples, strict=True)
        return self.augmented(stored, [int(label) for label in labels])


def open_batches(case):
    """Write the shards, then yield (images, labels), epoch after epoch."""
    shards, shape = _write(case)
    dataset = (
        wds.WebDataset(shards, shardshuffle=len(shards), empty_check=False)
        .shuffle(BUFFER)
        .to_tuple("bin", "cls")
        .batched(case["batch"], collation_fn=CollateBytes(case, shape), partial=False)
        .repeat()
    )
    return endless(wds.WebLoader(dataset, batch_size=None, **loader_settings(case)), case)


def _write(case):
    """Write whole batches to each shard where the rows allow it, or each worker would drop the rest of every epoch."""
    images, labels = np.load(case["images"], mmap_mode="r"), np.load(case["labels"])
    count = max(WORKERS, min(SHARDS, len(images) // case["batch"] // WORKERS * WORKERS))
    paths = [str(Path(case["folder"]) / f"shard-{number:04}.tar") for number in range(count)]
    for path, rows in zip(paths, _parts(len(images), case["batch"], count), strict=True):
        with tarfile.open(path, "w") as tar:
            for row in rows:
                _add(tar, f"{row:08}.bin", images[row].tobytes())
                _add(tar, f"{row:08}.cls", str(int(labels[row])).encode())
    return paths, images.shape[1:]


def _parts(rows, batch, count):
    """Split `rows` into `count` runs of whole batches, as even as can be; what is over goes to the last."""
    ends = [batch * (rows // batch * part // count) for part in range(1, count)] + [rows]
    return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, BytesIO(content))
