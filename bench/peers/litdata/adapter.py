"""LitData from chunks on the local disk, in the page cache, set up as its documentation says for speed.

That is: samples optimized once into chunks of 64 MB, a sample's pixels as bytes; each decoded by itself
(`batch_decode=1`, its own choice for images; the 256 that it chooses for bytes were half as fast); a local folder,
whose chunks it maps in place; `StreamingDataLoader` with workers that persist and a `collate_fn` that augments the
whole batch.
"""

import os
from pathlib import Path

os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")  # it would ask the package registry

import litdata
import numpy as np
from peer_loading import MADE_AHEAD, Collate, endless, loader_settings

CASES = ("stream",)
AHEAD = MADE_AHEAD
LEAVES_OUT = {"cifar": "a full shuffle: samples mix within their chunk of 64 MB, in blocks of 256"}

CHUNK = "64MB"
DECODED_TOGETHER = 1


class Sample:
    """Makes of a row's number what is stored of it."""

    def __init__(self, case):
        self.images, self.labels = np.load(case["images"], mmap_mode="r"), np.load(case["labels"])

    def __call__(self, row):
        return {"image": self.images[row].tobytes(), "label": int(self.labels[row])}


def open_batches(case):
    """Write the chunks, then yield (images, labels), epoch after epoch."""
    folder = str(Path(case["folder"]) / "litdata")
    sample = Sample(case)
    litdata.optimize(
        fn=sample,
        inputs=list(range(len(sample.images))),
        output_dir=folder,
        chunk_bytes=CHUNK,
        num_workers=1,
        start_method="fork",
        verbose=False,
    )
    dataset = litdata.StreamingDataset(folder, shuffle=True, drop_last=True, batch_decode=DECODED_TOGETHER)
    loader = litdata.StreamingDataLoader(
        dataset,
        batch_size=case["batch"],
        collate_fn=Collate(case, sample.images.shape[1:]),
        drop_last=True,
        **loader_settings(case),
    )
    return endless(loader, case)
