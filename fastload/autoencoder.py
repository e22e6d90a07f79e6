"""The paper's autoencoder (Fig. 2), whose encoder's non-negative activations are the embeddings, and its training."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn

from fastload.arguments import seed64
from fastload.augment import Augment
from fastload.errors import UsageError
from fastload.feeds import stream
from fastload.folder_files import FolderFile
from fastload.order import AUTOENCODER
from fastload.packed_set import Packed
from fastload.reproducible import reproducible
from fastload.tensors import load_tensors, save_tensors

SIDE = 24
VIEW = Augment(crop=SIDE, resize=32)
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


@dataclass(frozen=True)
class Training:
    """How the autoencoder is trained: mean squared error, SGD with momentum, batches of the augmented full set.

    Arguments:
        steps: batches to train on.
        batch_size: images in each.
        learning_rate, momentum: of SGD.
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
    """What training gives: the model in evaluation mode on the CPU, the mean loss of each epoch, and the time.

    `losses` are means of the squared error over an epoch's batches (the last entry covers what was left); `seconds`
    counts all runs that contributed; `resumed_at` is the step that this run began at.
    """

    model: Autoencoder
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    resumed_at: int = 0


class Trainer:
    """The model, its optimizer, and the position in training: everything that a checkpoint holds."""

    def __init__(self, channels: int, training: Training, device: str) -> None:
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
                "--learning-rate, or another --seed"
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
            "key": key, "step": self.step, "seconds": self.seconds, "losses": self.losses,
            "loss_count": self.loss_count,
        }  # fmt: skip
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
    training: Training,
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
        file: the full set, raw or encoded.
        training: the settings.
        augment: what the autoencoder sees; its crop must be 24.
        device, engine: as for `fastload.feeds.stream`.
        checkpoint: a file to keep the state in, each `seconds_between` seconds and at epoch ends.
        key: names the data and settings; a checkpoint of another key is not taken over.
        on_step: called with the steps done and the last epoch's mean loss, or None before there is one.
        should_stop: asked after each step; True saves a checkpoint and raises KeyboardInterrupt.

    Raises UsageError where training diverges.
    """
    channels = file.shape[2] if file.shape is not None else 3
    epoch_steps = max(1, math.ceil(len(file) / training.batch_size))
    with reproducible(device):
        trainer = Trainer(channels, training, device)
        resumed = checkpoint is not None and trainer.restore(checkpoint, key)
        first = trainer.step
        if resumed and not math.isfinite(trainer.loss_sum.item()):
            trainer.end_epoch()
        batches = stream(
            file, augment, batch_size=training.batch_size, steps=training.steps, first_step=first,
            phase=AUTOENCODER, seed=training.seed, device=device, engine=engine,
        )  # fmt: skip
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


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let torch use so many threads; what was set before comes back after.

    On the CPU its rounding may depend on their number, which is why all ranks take rank 0's.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
