"""The augmentation's steps after the crop, on one CPU thread: flip, brightness, contrast, clamp, standardize, store.

For images that another library decoded, resized and cropped; their parameters are given, not drawn.
"""

import numpy as np
from numba import njit

from .augment import LOOSE, augment_one, work_space


@njit(nogil=True, cache=True, fastmath=LOOSE)
def finish_batch(crops, shape, flip, brightness, contrast, clamp, standardize, out, channels_last, kind):
    """Finish a batch of crops.

    Arguments:
        crops: uint8 [b, h · w · c], in NHWC order. shape: (h, w, c). flip: bool [b]. brightness, contrast: float32 [b].
        clamp, standardize: whether, and KEEP, STDDEV or VARIANCE. out: float32 [b, h·w·c], or int16 (the bits) for the
        other kinds, in NCHW or (`channels_last`) NHWC order. kind: FLOAT32, FLOAT16 or BFLOAT16.
    """
    height, width, channels = shape
    none = np.float32(0)
    settings = (
        np.int64(height), np.int64(width), np.int64(1), 0.0, none, none, none, none, np.int64(clamp),
        np.int64(standardize),
    )  # fmt: skip
    strides = (np.int64(height * width * channels), np.int64(width * channels), np.int64(channels), np.int64(1))
    work = work_space(settings, channels)
    data = crops.reshape(crops.size)
    for i in range(flip.size):
        drawn = (np.uint64(0), np.uint64(0), flip[i], brightness[i], contrast[i])
        augment_one(
            data, i * strides[0], drawn, strides, channels, settings, work, out, np.uint64(i), channels_last, kind
        )
