"""The paper's classifier, its optimizer, and the averaging of its weights: what the demo and the example train."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

SIDE = 24
WEIGHT_DECAY = 0.004
AVERAGE_DECAY = 0.9999


def paper_classifier(classes: int, channels: int = 3) -> nn.Sequential:
    """Return the classifier of the paper's section 4, after TensorFlow's CIFAR-10 tutorial, float32.

    Two blocks of 5×5 convolution (64 channels), 3×3 max-pooling of stride 2, batch normalization and ReLU, then
    fully connected layers of 384, 192 and `classes`. It takes images [B, channels, 24, 24] and gives logits
    [B, classes]. Its weights come from torch's global generator; they are in channels-last format, so feed it
    images of `memory_format=torch.channels_last` (measured in training on two cores: 2,190 images/s, not 1,350).
    """
    grid = SIDE // 4
    model = nn.Sequential(
        *_block(channels, 64),
        *_block(64, 64),
        nn.Flatten(),
        nn.Linear(64 * grid * grid, 384),
        nn.ReLU(),
        nn.Linear(384, 192),
        nn.ReLU(),
        nn.Linear(192, classes),
    )
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 5, padding=2, bias=False)  # the normalization has a bias
    # Pooled first, there is a quarter to normalize: 1.4 times the images/s of pooling last (two cores).
    return convolution, nn.MaxPool2d(3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()


def paper_optimizer(model: nn.Module, learning_rate: float = 0.1, momentum: float = 0.9) -> torch.optim.SGD:
    """Return SGD with momentum; weight decay 0.004 on the fully connected layers' weights alone."""
    decayed = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]
    known = {id(weight) for weight in decayed}
    others = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum)


def averaged(model: nn.Module) -> AveragedModel:
    """Return the model whose weights are the moving average of `model`'s: call `update_parameters(model)` each step.

    The n-th update (n from 0) keeps the share min(0.9999, (1 + n) / (10 + n)) of the average, so that a short run
    does not test its first weights. Batch normalization's running mean and variance are averaged with the weights
    that they belong to.
    """
    return AveragedModel(model, avg_fn=_average, use_buffers=True)


def _average(average: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
    if not average.is_floating_point():
        return current  # a count of batches
    share = torch.clamp((1 + torch.as_tensor(updates)) / (10 + torch.as_tensor(updates)), max=AVERAGE_DECAY)
    return current + (average - current) * share.to(average.device, average.dtype)


@torch.inference_mode()
def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> float:
    """Return the share of (images, labels) batches that the model, put in evaluation mode, classifies rightly."""
    model.eval()
    right = total = 0
    for images, labels in batches:
        right += int((model(images).argmax(1) == labels).sum())
        total += len(labels)
    return right / total
