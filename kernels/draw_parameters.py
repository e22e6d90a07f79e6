"""The random parameters of a batch, for engines that take them as inputs, and for whoever looks at them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .color_matrix import color_matrix
from .compiling import njit
from .constant_recipe import ConstantRecipe
from .recipe import Recipe, draw_color, draw_erased, draw_flip, draw_place, words


def draw_parameters(recipe: Recipe) -> Callable[..., Any]:
    """Return the function that fills the parameters of a batch, compiled for a recipe.

    Arguments of the function:
        ids: int64 [b], of the samples.
        epochs: int64 [b], of the samples.
        seed: uint64.
        stream: uint64.
        numbers: `Numbers`.
        sides: int64 [b, 2], of the images.
        places: int64 [b, 8], filled, as all that follow: each a `Place`.
        flip: bool [b].
        brightness: float32 [b].
        contrast: float32 [b].
        saturation: float32 [b].
        hue: float32 [b].
        grey: bool [b].
        erased: int64 [b, 4].
    """
    recipe = ConstantRecipe(*recipe)

    @njit(nogil=True)
    def draw(
        ids, epochs, seed, stream, numbers, sides, places, flip, brightness, contrast, saturation, hue, grey, erased
    ):
        for i in range(ids.size):
            sample, epoch = np.uint64(ids[i]), np.uint64(epochs[i])
            place = draw_place(recipe, numbers, sample, epoch, seed, stream, sides[i, 0], sides[i, 1])
            for k in range(8):
                places[i, k] = place[k]
            flip[i] = draw_flip(recipe, numbers, sample, epoch, seed, stream)
            brightness[i], contrast[i], saturation[i], hue[i], grey[i] = draw_color(
                recipe, numbers, sample, epoch, seed, stream
            )
            for k in range(4):
                erased[i, k] = 0
            if recipe.erase:
                box = draw_erased(numbers, sample, epoch, seed, stream)
                for k in range(4):
                    erased[i, k] = box[k]

    return draw


@njit(nogil=True)
def draw_words(ids, epochs, seed, stream, block, out):
    """Fill `out`, uint32 [b, 4], with the words of a block of the samples' parameters.

    Arguments:
        ids: int64 [b], of the samples.
        epochs: int64 [b], of the samples.
        seed: uint64.
        stream: uint64.
        block: uint64.
        out: filled.
    """
    for i in range(ids.size):
        four = words(np.uint64(ids[i]), np.uint64(epochs[i]), seed, stream, block)
        for k in range(4):
            out[i, k] = four[k]


@njit(nogil=True)
def color_matrices(brightness, contrast, saturation, hue, matrices):
    """Fill `matrices`, float32 [b, 9], with `color_matrix` of each sample's parameters, float32 [b]."""
    for i in range(brightness.size):
        matrix = color_matrix(brightness[i], contrast[i], saturation[i], hue[i])
        for k in range(9):
            matrices[i, k] = matrix[k]
