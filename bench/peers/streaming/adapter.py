"""MosaicML Streaming from local MDS shards, in the page cache, set up as its documentation says for speed.

That is: MDS, its fastest format, without compression or hashes; a sample's pixels as bytes, its cheapest encoding; the
default shuffle (`py1e`); `batch_size` told to the dataset; a DataLoader with workers that persist and a `collate_fn`
that augments the whole batch.
"""

from pathlib import Path

import numpy as np
import torch
from peer_augmentation import augment_randomly, batch_of_bytes
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
from streaming.base.util import clean_stale_shared_memory

CASES = ("stream",)
WORKERS = 2
PREFETCH = 4
AHEAD = WORKERS * PREFETCH
LEAVES_OUT: dict[str, str] = {}


class Collate:
    """A list of samples as augmented (images [B, C, crop, crop], labels int64 [B])."""

    def __init__(self, shape, crop, dtype):
        self.shape, self.crop, self.dtype = shape, crop, dtype

    def __call__(self, samples):
        images = batch_of_bytes([sample["image"] for sample in samples], self.shape)
        return augment_randomly(images, self.crop, self.dtype), torch.tensor([sample["label"] for sample in samples])


def open_batches(case):
    """Write the shards, then yield (images, labels), epoch after epoch."""
    folder = str(Path(case["folder"]) / "mds")
    images, labels = np.load(case["images"], mmap_mode="r"), np.load(case["labels"])
    with MDSWriter(out=folder, columns={"image": "bytes", "label": "int"}) as out:
        for image, label in zip(images, labels, strict=True):
            out.write({"image": image.tobytes(), "label": int(label)})
    clean_stale_shared_memory()  # a run that was killed leaves some, and the next one does not start
    dataset = StreamingDataset(local=folder, shuffle=True, batch_size=case["batch"])
    on_gpu = case["device"] != "cpu"
    loader = StreamingDataLoader(
        dataset, batch_size=case["batch"], num_workers=WORKERS, prefetch_factor=PREFETCH, persistent_workers=True,
        collate_fn=Collate(images.shape[1:], case["crop"], getattr(torch, case["dtype"])), pin_memory=on_gpu,
        drop_last=True,
    )  # fmt: skip
    return _endless(loader, torch.device(case["device"]))


def _endless(loader, device):
    while True:
        for images, labels in loader:
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
