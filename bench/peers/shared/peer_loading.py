"""What rivals on torch's DataLoader have in common: its settings, a batch of their samples, epoch after epoch."""

import torch
from peer_augmentation import augment_randomly, batch_of_bytes

WORKERS = 2
PREFETCH = 4
MADE_AHEAD = WORKERS * PREFETCH
"""Batches that may stand ready while nobody looks."""


def loader_settings(case):
    """Return what torch's documentation advises: workers that persist, batches ahead, pinned memory on CUDA."""
    return {
        "num_workers": WORKERS,
        "prefetch_factor": PREFETCH,
        "persistent_workers": True,
        "pin_memory": case["device"] != "cpu",
    }


class Collate:
    """A list of samples, dicts of bytes and a number, as augmented (images [B, C, crop, crop], labels int64 [B])."""

    def __init__(self, case, shape):
        self.shape, self.crop, self.dtype = shape, case["crop"], getattr(torch, case["dtype"])

    def __call__(self, samples):
        return self.augmented([sample["image"] for sample in samples], [sample["label"] for sample in samples])

    def augmented(self, stored, labels):
        """Return the batch of images' bytes and labels, one by one."""
        images = batch_of_bytes(stored, self.shape)
        return augment_randomly(images, self.crop, self.dtype), torch.tensor(labels)


def endless(loader, case):
    """Yield (images, labels) on the device, epoch after epoch."""
    device = torch.device(case["device"])
    while True:
        for images, labels in loader:
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
