"""Figure 3: inputs, embeddings and reproductions of the autoencoder, side by side, as a picture."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from PIL import Image

from fastload.bench.paper.findings import Findings
from fastload.bench.paper.subsets import encode, saved_model
from fastload.bench.paper.workplace import Workplace
from fastload.embedding.autoencoder import VIEW, Autoencoder
from fastload.feeds.evaluation import EvaluationLoader

_SHOWN, _ZOOM, _GAP = 8, 4, 4
_BATCH = 500


def figure3(place: Workplace) -> Findings:
    """Draw the first test image of each of eight classes, and measure the reproductions of the whole test set."""
    found = Findings(
        "figure3",
        "Figure 3: what the autoencoder sees, embeds and gives back",
        ("autoencoder trained for", "mean squared error, test set", "activations above 0"),
    )
    for length, _ in place.scale.autoencoder:
        encoded = place.attempt(f"figure3, {length}", partial(encode, place, length))
        if encoded is None:
            continue
        model = saved_model(encoded)
        error, active = _measure(place, model)
        found.rows.append((length, f"{error:.3f}", f"{active:.1%}"))
        found.data[length] = {"error": error, "active": active}
        if length == place.scale.autoencoder[-1][0]:
            path = place.state.folder / "figure3.png"
            _picture(place, model).save(path)
            found.data["picture"] = path.name
            found.notes.append(
                f"The picture: inputs (24×24, standardized), their {model.embedding_size} activations as "
                f"{_shape(model.embedding_size)[0]} rows, and the reproductions of the autoencoder trained for {length}"
            )
    found.notes.append("Pixels are standardized for each image, so a reproduction of plain grey has an error of 1.")
    return found


@torch.inference_mode()
def _measure(place: Workplace, model: Autoencoder) -> tuple[float, float]:
    """Return the mean squared error over the test set, and the share of activations that are not 0."""
    squared = active = count = 0.0
    with EvaluationLoader(place.test, VIEW, batch_size=_BATCH) as batches:
        for images, *_ in batches:
            embeddings = model.embed(images)
            squared += float((model.decode(embeddings) - images).square().mean()) * len(images)
            active += float((embeddings > 0).float().mean()) * len(images)
            count += len(images)
    return squared / count, active / count


@torch.inference_mode()
def _picture(place: Workplace, model: Autoencoder) -> Image.Image:
    """Return three rows of squares: inputs, embeddings, reproductions."""
    _, rows = np.unique(place.test_labels, return_index=True)
    wanted = set(rows[:_SHOWN].tolist())
    images = []
    with EvaluationLoader(place.test, VIEW, batch_size=_BATCH) as batches:
        for start, batch in enumerate(batches):
            images += [one for row, one in enumerate(batch[0], start * _BATCH) if row in wanted]
    inputs = torch.stack(images)
    embeddings = model.embed(inputs)
    given = model.decode(embeddings)
    height, width = _shape(model.embedding_size)
    embedded = [
        np.pad(vector.numpy(), (0, height * width - len(vector))).reshape(height, width) for vector in embeddings
    ]
    tiles = [[_colour(one.numpy()) for one in inputs], [_grey(one) for one in embedded]]
    tiles.append([_colour(one.numpy()) for one in given])
    side = 24 * _ZOOM
    canvas = Image.new("RGB", (len(inputs) * (side + _GAP) + _GAP, 3 * (side + _GAP) + _GAP), "white")
    for down, row in enumerate(tiles):
        for along, tile in enumerate(row):
            place_at = (_GAP + along * (side + _GAP), _GAP + down * (side + _GAP))
            canvas.paste(tile.resize((side, side), Image.Resampling.NEAREST), place_at)
    return canvas


def _shape(size: int) -> tuple[int, int]:
    """Return rows and columns of the nearly square picture of an embedding: 12×18 for 216."""
    height = next(rows for rows in range(int(size**0.5), 0, -1) if size % rows == 0)
    return (height, size // height) if height > 1 or size < 4 else _shape(size + 1)


def _colour(image: np.ndarray) -> Image.Image:
    """Return standardized values [C, h, w], -2 to 2, as a picture."""
    values = np.clip((image.transpose(1, 2, 0) + 2) / 4, 0, 1)
    return Image.fromarray((255 * values).astype(np.uint8))


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray((255 * values / max(float(values.max()), 1e-9)).astype(np.uint8))
