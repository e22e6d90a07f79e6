"""The paper's autoencoder (Fig. 2), whose encoder's non-negative activations are the embeddings, and its training."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn

from fastload.augment import Augment
from fastload.common.folder_files import FolderFile
from fastload.common.tensors import load_tensors, save_tensors

SIDE = 24
VIEW = Augment.paper(SIDE, resize=32)
"""What the autoencoder sees: 24×24 pixels of images whose shorter side is first brought to 32."""

GRID = 3 * 3
"""Positions of the last block's output: 24 pixels halved three times."""

WIDTHS = (32, 32)
"""Channels of the first two blocks: 2,800 images/s in training on two cores, so five epochs of CIFAR-10 take under
two minutes; the third block has ceil(embedding size / 9)."""


class Autoencoder(nn.Module):
    """The autoencoder of Fig. 2 in "Faster Training by Selecting Samples Using Embeddings".

    Encoder: three times 5×5 convolution, batch normalization, ReLU, 3×3 max-pooling of stride 2. Decoder: three
    5×5 transposed convolutions of stride 2, with ReLU between. Images are float32 [B, channels, 24, 24].

    Arguments:
        channels: of the images.
        embedding_size: elements of the embedding, 216 in the paper (3×3×24). The last block has
            ceil(embedding_size / 9) channels; the first embedding_size of its outputs, channel by channel, are the
            embedding, and the decoder takes zeros for the rest.
    """

    def __init__(self, channels: int = 3, embedding_size: int = 216) -> None:
        super().__init__()
        self.channels, self.embedding_size = channels, embedding_size
        self.last = math.ceil(embedding_size / GRID)
        widths = (channels, *WIDTHS, self.last)
        self.encoder = nn.Sequential(*(_block(a, b) for a, b in pairwise(widths)))
        down = widths[::-1]
        ups = [nn.ConvTranspose2d(a, b, 5, 2, 2, 1) for a, b in pairwise(down)]
        self.decoder = nn.Sequential(ups[0], nn.ReLU(), ups[1], nn.ReLU(), ups[2])

    def embed(self, images: Tensor) -> Tensor:
        """Return the embeddings, float32 [B, embedding_size], none negative, of images [B, channels, 24, 24]."""
        return self.encoder(images).flatten(1)[:, : self.embedding_size]

    def decode(self, embeddings: Tensor) -> Tensor:
        """Return images [B, channels, 24, 24] from embeddings [B, embedding_size]."""
        padded = F.pad(embeddings, (0, self.last * GRID - self.embedding_size))
        return self.decoder(padded.unflatten(1, (self.last, 3, 3)))

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.embed(images))


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 5, padding=2, bias=False),  # the normalization has a bias
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


def weights_of(model: Autoencoder) -> bytes:
    """Return the weights as safetensors, for another process."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()})


def model_of(weights: bytes, channels: int, embedding_size: int) -> Autoencoder:
    """Return the model of `weights_of`, in evaluation mode on the CPU."""
    model = Autoencoder(channels, embedding_size)
    model.load_state_dict(load(weights))
    return model.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def save_model(path: FolderFile | Path, model: Autoencoder) -> None:
    """Write the weights as safetensors."""
    facts = {"channels": model.channels, "embedding_size": model.embedding_size}
    save_tensors(path, model.state_dict(), facts)


def load_model(path: FolderFile | Path) -> Autoencoder | None:
    """Return the model that `save_model` wrote, in evaluation mode on the CPU; None where it cannot be read."""
    found = load_tensors(path)
    if found is None:
        return None
    try:
        model = Autoencoder(int(found[1]["channels"]), int(found[1]["embedding_size"]))
        model.load_state_dict(found[0])
    except (KeyError, RuntimeError, TypeError, ValueError):
        return None
    return model.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
