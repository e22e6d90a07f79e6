"""MosaicML Streaming from local MDS shards, in the page cache, set up as its documentation says for speed.

That is: MDS, its fastest format, without compression or hashes; a sample's pixels as bytes, its cheapest encoding; the
default shuffle (`py1e`); `batch_size` told to the dataset; a DataLoader with workers that persist and a `collate_fn`
that augments the whole batch.
"""

from pathlib import Path

import numpy as np
from peer_loading import MADE_AHEAD, Collate, endless, loader_settings
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
from streaming.base.util import clean_stale_shared_memory

CASES = ("stream",)
AHEAD = MADE_AHEAD
LEAVES_OUT: dict[str, str] = {}


def open_batches(case):
    """Write the shards, then yield (images, labels), epoch after epoch."""
    folder = str(Path(case["folder"]) / "mds")
    images, labels = np.load(case["images"], mmap_mode="r"), np.load(case["labels"])
    with MDSWriter(out=folder, columns={"image": "bytes", "label": "int"}) as out:
        for image, label in zip(images, labels, strict=True):
            out.write({"image": image.tobytes(), "label": int(label)})
    clean_stale_shared_memory()  # a run that was killed leaves some, and the next one does not start
    dataset = StreamingDataset(local=folder, shuffle=True, batch_size=case["batch"])
    loader = StreamingDataLoader(
        dataset,
        batch_size=case["batch"],
        collate_fn=Collate(case, images.shape[1:]),
        drop_last=True,
        **loader_settings(case),
    )
    return endless(loader, case)
