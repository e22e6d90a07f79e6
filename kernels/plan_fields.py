"""What every plan of a CUDA kernel holds, whatever its recipe: where a feed's images lie, and what is drawn from."""

import numpy as np


def shared_fields(strides, seed, stream, *, images=0, ids=0, labels=0, label_bytes=0, n=0, shuffled=False):
    """Return a plan's fields by name; the resident kernels need the keywords.

    Arguments:
        strides: (image, row, column, channel) in bytes, interleaved or planar.
        seed: of the random parameters, below 2^64.
        stream: of the random parameters; its lower 16 bits are the order's phase.
        images: address of all of the set's images, one after the other.
        ids: address of their ids, int64 [n].
        labels: address of their labels, n rows of `label_bytes`.
        label_bytes: of a label.
        n: how many images there are.
        shuffled: whether rows come permuted.
    """
    image, down, right, across = strides
    return {
        "IMAGE": image,
        "DOWN": down,
        "RIGHT": right,
        "ACROSS": across,
        "SEED": np.uint64(seed).view(np.int64),
        "STREAM": stream,
        "IMAGES": images,
        "IDS": ids,
        "LABELS": labels,
        "LABEL_BYTES": label_bytes,
        "ROWS": n,
        "SHUFFLED": shuffled,
    }
