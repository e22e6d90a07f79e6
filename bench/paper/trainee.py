"""The paper's classifier in training: one step, and its state to go on from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastload.bench.paper.workplace import AUGMENT, Workplace
from fastload.classifier import accuracy, averaged, paper_classifier, paper_optimizer

LEARNING_RATE = 0.1
"""The paper's, in both phases."""

SCHEDULES = ("constant", "decaying")


def learning_rate(schedule: str, progress: float) -> float:
    """Return the rate of a step: the paper's constant one, or one that falls in a straight line to 0.

    Arguments:
        progress: the share of the training that is behind, of its steps or of its seconds, 0 to 1.
    """
    return LEARNING_RATE if schedule == "constant" else LEARNING_RATE * (1 - progress)


def rehearse(place: Workplace) -> None:
    """Take two steps of a model that is thrown away, once a process: what they set up must not be timed."""
    if place.rehearsed:
        return
    trainee, batch = Trainee(place, 0), place.scale.batch
    images = torch.zeros(batch, 3, *AUGMENT.sides, device=place.device).contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        trainee.step(images, torch.zeros(batch, dtype=torch.int64, device=place.device), LEARNING_RATE)
    place.rehearsed = True


class Trainee:
    """The classifier, its optimizer, and the averaged weights that are tested."""

    def __init__(self, place: Workplace, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.model = paper_classifier(place.classes).to(place.device)
        self.optimizer, self.average = paper_optimizer(self.model, LEARNING_RATE), averaged(self.model)
        self._place = place

    def step(self, images: Tensor, labels: Tensor, rate: float, weights: Tensor | None = None) -> Tensor:
        """Take a step at a learning rate; return the loss of each image, without its weight, [B] on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = cross_entropy(self.model(images), labels, reduction="none")
        loss = losses.mean() if weights is None else (losses * weights).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.average.update_parameters(self.model)
        return losses.detach()

    def accuracy(self) -> float:
        """Return the share of the test set that the averaged weights classify rightly."""
        with self._place.evaluation() as batches:
            return accuracy(self.average, batches)

    def state(self) -> dict[str, Any]:
        """Return what `restore` takes."""
        parts: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer, "average": self.average}
        return {name: part.state_dict() for name, part in parts.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])
