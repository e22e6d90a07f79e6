"""The autoencoder's training: unsupervised, over the full set's stream, resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastload.augment import Augment
from fastload.common.arguments import seed64
from fastload.common.folder_files import FolderFile
from fastload.common.reproducible import reproducible
from fastload.common.tensors import load_tensors, save_tensors
from fastload.embedding.autoencoder import VIEW, Autoencoder
from fastload.errors import UsageError
from fastload.feeds.feed import stream
from fastload.order import AUTOENCODER
from fastload.packed.set import Packed


@dataclass(frozen=True)
class TrainingSettings:
    """How the autoencoder is trained: mean squared error, SGD with momentum, batches of the augmented full set.

    Arguments:
        steps: batches to train on.
        batch_size: images in each.
        learning_rate: of SGD.
        momentum: of SGD; 0 or more and below 1.
        embedding_size: elements of the embedding.
        seed: of the initial weights, the order and the augmentation; 64-bit.

    Raises UsageError for settings out of range, with the offending value.
    """

    steps: int
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    embedding_size: int = 216
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "embedding_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)!r}; it must be at least 1")
        if self.batch_size == 1:
            raise UsageError("batch_size=1; batch normalization needs at least 2 images")
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(f"learning_rate={self.learning_rate!r}; it must be positive")
        if not 0 <= self.momentum < 1:
            raise UsageError(f"momentum={self.momentum!r}; it is 0 or more and below 1")
        seed64(self.seed)

    def state(self) -> dict[str, Any]:
        """Return the settings as JSON-able plain values."""
        return asdict(self)


@dataclass
class Trained:
    """What training gives.

    Arguments:
        model: in evaluation mode, on the CPU.
        losses: of each epoch, the mean of the squared error over its batches; the last covers what was left.
        seconds: of all runs that contributed.
        resumed_at: the step that this run began at.
    """

    model: Autoencoder
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    resumed_at: int = 0


class Trainer:
    """The model, its optimizer, and the position in training: everything that a checkpoint holds.

    Arguments:
        channels: of the images.
        training: the settings.
        device: "cpu" or "cuda:N".
    """

    def __init__(self, channels: int, training: TrainingSettings, device: str) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(training.seed)  # torch.manual_seed would seed the GPUs too
            model = Autoencoder(channels, training.embedding_size)
        # Channels last: 2,800 instead of 2,090 images/s on two cores (oneDNN, batches of 256). On CUDA max-pooling's
        # backward pass adds atomically in that format, and the same seed would not give the same weights.
        self.format = torch.contiguous_format if device.startswith("cuda") else torch.channels_last
        self.model = model.to(device=device, memory_format=self.format).train()  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=training.learning_rate, momentum=training.momentum)
        self.device = device
        self.step = 0
        self.seconds = 0.0
        self.losses: list[float] = []
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.loss_count = 0

    def train_on(self, images: Tensor) -> None:
        """Take one step on images [B, channels, 24, 24]."""
        images = images.to(self.device).contiguous(memory_format=self.format)
        loss = F.mse_loss(self.model(images), images)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.loss_sum += loss.detach()  # on the device: reading each loss would stop a GPU at each step
        self.loss_count += 1
        self.step += 1

    def end_epoch(self) -> None:
        """Note the mean loss of the batches since the last call."""
        loss = self.loss_sum.item() / max(1, self.loss_count)
        if not math.isfinite(loss):
            raise UsageError(
                f"the autoencoder's loss is {loss} at step {self.step:,}: training diverged; choose a smaller "
                "learning_rate=, or another seed="
            )
        self.losses.append(loss)
        self.loss_sum.zero_()
        self.loss_count = 0

    def save(self, path: FolderFile | Path, key: str) -> None:
        """Write a checkpoint; `key` names the settings that it belongs to."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            buffer = self.optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                tensors[f"momentum.{name}"] = buffer
        tensors["loss_sum"] = self.loss_sum
        facts = {
            "key": key,
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
            "loss_count": self.loss_count,
        }
        save_tensors(path, tensors, facts)

    def restore(self, path: FolderFile | Path, key: str) -> bool:
        """Take over a checkpoint made under the same `key`; False, with nothing changed, where there is none."""
        found = load_tensors(path)
        if found is None or found[1].get("key") != key:
            return False
        tensors, facts = found
        parameters = dict(self.model.named_parameters())
        try:
            self.model.load_state_dict(
                {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")}
            )
            for name, tensor in tensors.items():
                if name.startswith("momentum."):
                    parameter = parameters[name[9:]]
                    buffer = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
                    self.optimizer.state[parameter]["momentum_buffer"] = buffer
            self.loss_sum.copy_(tensors["loss_sum"])
            self.step, self.seconds = int(facts["step"]), float(facts["seconds"])
            self.losses, self.loss_count = [float(loss) for loss in facts["losses"]], int(facts["loss_count"])
        except (KeyError, RuntimeError, TypeError, ValueError):
            return False
        return True


def train(
    file: Packed,
    training: TrainingSettings,
    *,
    augment: Augment = VIEW,
    device: str = "cpu",
    engine: str = "auto",
    checkpoint: FolderFile | Path | None = None,
    key: str = "",
    seconds_between: float = 30.0,
    on_step: Callable[[int, float | None], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train the autoencoder on a packed file, going on from a checkpoint where there is one.

    The weights are decided by the file, `augment` and `training` alone: a run that was stopped and resumed gives
    the same bits as one that was not, on the same kind of device.

    Arguments:
        file: the full set.
        training: the settings.
        augment: what the autoencoder sees; its crop must be 24.
        device: "cpu" or "cuda:N".
        engine: as for `fastload.feeds.feed.stream`.
        checkpoint: a file to keep the state in, each `seconds_between` seconds and at epoch ends.
        key: names the data and settings; a checkpoint of another key is not taken over.
        seconds_between: two times that the state is kept.
        on_step: called with the steps done and the last epoch's mean loss, or None before there is one.
        should_stop: asked after each step; True saves a checkpoint and raises KeyboardInterrupt.

    Raises UsageError where training diverges.
    """
    channels = file.channels
    epoch_steps = max(1, math.ceil(len(file) / training.batch_size))
    with reproducible(device):
        trainer = Trainer(channels, training, device)
        resumed = checkpoint is not None and trainer.restore(checkpoint, key)
        first = trainer.step
        if resumed and not math.isfinite(trainer.loss_sum.item()):
            trainer.end_epoch()
        batches = stream(
            file,
            augment,
            batch_size=training.batch_size,
            steps=training.steps,
            first_step=first,
            phase=AUTOENCODER,
            seed=training.seed,
            device=device,
            engine=engine,
        )
        began = saved = time.monotonic()
        before = trainer.seconds
        try:
            for images, *_ in batches if first < training.steps else ():
                trainer.train_on(images)
                now = time.monotonic()
                trainer.seconds = before + now - began
                epoch_done = trainer.step % epoch_steps == 0 or trainer.step == training.steps
                if epoch_done:
                    trainer.end_epoch()
                stop = should_stop()
                if checkpoint is not None and (epoch_done or stop or now - saved >= seconds_between):
                    trainer.save(checkpoint, key)
                    saved = now
                if on_step is not None:
                    on_step(trainer.step, trainer.losses[-1] if trainer.losses else None)
                if stop and trainer.step < training.steps:
                    raise KeyboardInterrupt
        finally:
            close = getattr(batches, "close", None)
            if close is not None:
                close()
    model = trainer.model.cpu().eval()
    return Trained(model, trainer.losses, trainer.seconds, first)
