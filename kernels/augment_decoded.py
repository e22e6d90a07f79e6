"""The fused augmentation on one CPU thread, for images of any sizes that another library decoded."""

from collections.abc import Callable
from functools import cache

import numpy as np

from .augment_cpu import augment_cut, augment_resized, draw_sample, work_bytes
from .compiling import njit
from .constant_recipe import ConstantRecipe
from .cpu_memory import address_of
from .inlining import LOOSE
from .intrinsics import store_fence
from .recipe import Recipe, moved


@cache
def decoded_kernel(recipe: Recipe) -> Callable[..., None]:
    """Return the function that augments decoded images, one at a time, so that a crop is finished out of the cache.

    Arguments of the function:
        addresses: int64 [b], of uint8 [h, w, C] each: an image, or a part of it that holds the crop.
        sides: int64 [b, 2], H and W of the whole images.
        origins: int64 [b, 2], row and column of the image at which what lies there begins.
        shown: int64 [b, 2], its h and w.
        first: which image of the batch is the first of these.
        ids: int64 [b], of the samples.
        epochs: int64 [b], of the samples.
        seed: of the random parameters, uint64.
        stream: of the random parameters, uint64.
        numbers: `Numbers`.
        norm: (means, scales) for BY_CHANNEL, float32 [channels], on values 0…255.
        out: the whole batch, [n, h·w·c], float32, uint8, or int16 (the bits) for the other kinds.
    """
    recipe = ConstantRecipe(*recipe)
    augment_one = augment_resized if recipe.resample else augment_cut

    def augment_decoded(addresses, sides, origins, shown, first, ids, epochs, seed, stream, numbers, norm, out):
        work = np.empty(0, np.uint8)
        target, by_channel = address_of(out), (address_of(norm[0]), address_of(norm[1]))
        for i in range(addresses.size):
            height, width = shown[i, 0], shown[i, 1]
            size = work_bytes(recipe, numbers, (height, width))
            if size > work.size:
                work = np.empty(size, np.uint8)
            place, flip, color, erased = draw_sample(
                recipe, numbers, np.uint64(ids[i]), np.uint64(epochs[i]), seed, stream, sides[i, 0], sides[i, 1]
            )
            row = width * recipe.channels
            strides = (height * row, row, np.int64(recipe.channels), np.int64(1))
            augment_one(
                recipe,
                numbers,
                by_channel,
                addresses[i],
                np.int64(0),
                strides,
                (height, width),
                (moved(place, origins[i, 0], origins[i, 1]), flip, color, erased),
                address_of(work),
                target,
                np.int64(first + i),
            )
            if work.size == 0:
                return  # never: what is passed by its address must be held until here
        if recipe.streamed:
            store_fence()
        if norm[0].size + norm[1].size + out.size == 0:
            return  # likewise

    return njit(nogil=True, fastmath=LOOSE)(augment_decoded)
