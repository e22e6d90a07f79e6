"""What is trained: nets with their augmentation, optimizer and schedule, each behind the same few names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel

from fastload.augment import Augment
from fastload.bench.evidence import airbench94
from fastload.classifier import SIDE, averaged, paper_classifier, paper_optimizer


class Trainee(Protocol):
    """A net in training."""

    def step(self, images: Tensor, labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Take a step, at a share 0…1 of the run; return logits [B, classes] and losses [B], on the device."""

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits [B, classes] that count, of images that were not augmented."""


@dataclass(frozen=True)
class Recipe:
    """How a net is trained.

    Arguments:
        name: for the tables.
        augment_for: gives the augmentation of its training images, by their shorter side and channels.
        begin: makes a trainee, given classes, channels, a device, the highest learning rate, and a seed, after which
            its weights are drawn.
    """

    name: str
    augment_for: Callable[[int, int], Augment]
    begin: Callable[[int, int, torch.device, float, int], Trainee]


class _Plain:
    """A net and its optimizer, at a rate that falls in a straight line to 0.

    Arguments:
        net: in training.
        optimizer: of its weights.
        rate: the highest.
        warm_up: the share of the run over which the rate rises first; 0 for none.
        tested: the net whose logits count, an average of the first; that one itself by default.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        rate: float,
        warm_up: float = 0.0,
        tested: AveragedModel | None = None,
    ) -> None:
        self._net, self._optimizer, self._rate, self._warm_up, self._average = net, optimizer, rate, warm_up, tested

    def step(self, images: Tensor, labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
        risen = min(1.0, (share + 1e-3) / self._warm_up) if self._warm_up else 1.0
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * (1 - share) * risen
        logits = self._net(images)
        losses = cross_entropy(logits, labels, reduction="none")
        self._optimizer.zero_grad()
        losses.mean().backward()
        self._optimizer.step()
        if self._average is not None:
            self._average.update_parameters(self._net)
        return logits.detach(), losses.detach()

    def logits(self, images: Tensor) -> Tensor:
        return (self._average or self._net).eval()(images)


def _small(classes: int, channels: int, device: torch.device, rate: float, seed: int) -> Trainee:
    """Three convolutions of 16, 32 and 64 channels: what two processors can train several hundred times."""

    def block(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=1, bias=False)
        pool = [] if stride > 1 else [nn.MaxPool2d(2)]
        return [convolution, *pool, nn.BatchNorm2d(outputs), nn.ReLU()]

    with _seeded(seed):
        layers = [*block(channels, 16, 4, 2), *block(16, 32, 3, 1), *block(32, 64, 3, 1)]
        net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (SIDE // 8) ** 2, classes))
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    sgd = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    return _Plain(net, sgd, rate, warm_up=0.05)


def _papers(classes: int, channels: int, device: torch.device, rate: float, seed: int) -> Trainee:
    """The paper's classifier and optimizer; its averaged weights are tested."""
    with _seeded(seed):
        net = paper_classifier(classes, channels).to(device)
    return _Plain(net, paper_optimizer(net, rate), rate, tested=averaged(net))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw weights from a seed; what is drawn elsewhere does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _airbench94(classes: int, channels: int, device: torch.device, rate: float, seed: int) -> Trainee:
    with _seeded(seed):
        return airbench94.Airbench94(classes, channels, device, rate)


def _papers_augment(side: int, channels: int) -> Augment:
    return Augment.paper(SIDE)


RECIPES = {
    "small": Recipe("a net of three convolutions", _papers_augment, _small),
    "paper": Recipe("the paper's classifier", _papers_augment, _papers),
    "airbench94": Recipe("airbench94's net and recipe", airbench94.augment_for, _airbench94),
}
