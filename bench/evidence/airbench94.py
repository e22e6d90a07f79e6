"""airbench94: the net and the recipe of K. Jordan, "94 % on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024.

Written anew after the paper and its reference (github.com/KellerJordan/cifar10-airbench, legacy/airbench94.py), with
four differences: the first layer whitens the patches of the first batch, not of 5,000 images; the rate falls to 0, not
to 0.07 of its highest; the first layer's bias rests after 0.3 of the run, not after three epochs; and the last weights
are tested, not their slow average.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastload.augment import Augment, MeanStd, RandomCrop
from fastload.augment.normalizing import CIFAR10

_WIDTHS = (64, 256, 256)
_MOMENTUM = 0.85
_DECOUPLED = 1024 * (1 + 1 / (1 - _MOMENTUM))
_RATE, _DECAY, _BIASES = 11.5 / _DECOUPLED, 0.0153 * 1024 / _DECOUPLED, 64.0
_SMOOTHING = 0.2
_WARMED_UP, _BEGINS_AT = 0.23, 0.2
_BIAS_RESTS = 0.3
_LOGITS = 1 / 9
_WHITENED_EPSILON = 5e-4
_LOOKAHEAD_STEPS = 5

_GREY = MeanStd((0.2860,), (0.3530,))  # Fashion-MNIST's


def augment_for(side: int, channels: int) -> Augment:
    """Return the augmentation of images of a side: flips that alternate, translations by up to two pixels."""
    normalize = CIFAR10 if channels == 3 else _GREY
    return Augment(side, crop=RandomCrop(pad=2), flip="alternating", normalize=normalize)


class _Norm(nn.BatchNorm2d):
    """Without a scale; its running statistics move by 0.4 a step."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-12, momentum=0.4)
        self.weight.requires_grad = False


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a 3×3 convolution whose first outputs are its inputs, as far as they go."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight.data[:inputs])
    return layer


def _net(classes: int, channels: int) -> nn.Sequential:
    whitened = 2 * channels * 4
    layers: list[nn.Module] = [nn.Conv2d(channels, whitened, 2), nn.GELU()]
    before = whitened
    for width in _WIDTHS:
        layers += [_convolution(before, width), nn.MaxPool2d(2), _Norm(width), nn.GELU()]
        layers += [_convolution(width, width), _Norm(width), nn.GELU()]
        before = width
    return nn.Sequential(*layers, nn.MaxPool2d(3), nn.Flatten(), nn.Linear(before, classes, bias=False))


def _whitening(images: Tensor) -> Tensor:
    """Return filters [2·C·4, C, 2, 2] that whiten the 2×2 patches of images [B, C, h, w], and their negatives."""
    channels = images.shape[1]
    patches = images.float().unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, channels * 4)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / torch.sqrt(values + _WHITENED_EPSILON)).T.flip(0).reshape(-1, channels, 2, 2)
    return torch.cat([filters, -filters])


class Airbench94:
    """The net in training: half precision on a GPU, single on a CPU.

    Arguments:
        classes: of the set.
        channels: of its images.
        device: to train on.
        rate: 1 for the recipe's own learning rate.
    """

    def __init__(self, classes: int, channels: int, device: torch.device, rate: float) -> None:
        self._dtype = torch.float16 if device.type == "cuda" else torch.float32
        net = _net(classes, channels).to(device, self._dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        norms = [layer.float() for layer in net.modules() if isinstance(layer, _Norm)]
        self._net, self._first = net, net[0]
        self._first.weight.requires_grad = False
        nn.init.zeros_(self._first.bias)
        biases = [norm.bias for norm in norms]
        known = {id(bias) for bias in biases}
        others = [one for one in net.parameters() if one.requires_grad and id(one) not in known]
        self._rates = [rate * _RATE * _BIASES, rate * _RATE]
        groups = [
            {"params": parameters, "lr": highest, "weight_decay": _DECAY / highest}
            for parameters, highest in zip((biases, others), self._rates, strict=True)
        ]
        self._optimizer = torch.optim.SGD(groups, lr=_RATE, momentum=_MOMENTUM, nesterov=True)
        self._slow = {name: value.clone() for name, value in net.state_dict().items()}
        self._steps = 0

    def step(self, images: Tensor, labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Take a step, at a share 0…1 of the run; return logits [B, classes] and losses [B]."""
        images = images.to(self._dtype)
        if self._steps == 0:
            self._first.weight.data.copy_(_whitening(images))
        self._net.train()
        self._first.bias.requires_grad_(share < _BIAS_RESTS)
        rising = _BEGINS_AT + (1 - _BEGINS_AT) * share / _WARMED_UP
        factor = rising if share < _WARMED_UP else (1 - share) / (1 - _WARMED_UP)
        for group, highest in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = highest * factor
        logits = self._net(images) * _LOGITS
        losses = F.cross_entropy(logits, labels, label_smoothing=_SMOOTHING, reduction="none")
        self._optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        self._optimizer.step()
        self._steps += 1
        if self._steps % _LOOKAHEAD_STEPS == 0:
            self._look_ahead(0.95**5 * share**3)
        return logits.detach().float(), losses.detach().float()

    def _look_ahead(self, decay: float) -> None:
        """Bring weights and running statistics to their slow average, which moves the faster the lower `decay`."""
        for name, value in self._net.state_dict().items():
            if value.is_floating_point():
                value.copy_(self._slow[name].lerp_(value, 1 - decay))

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of images that were not augmented: of six views, mirrored and moved by a pixel."""
        self._net.eval()
        images = images.to(self._dtype)
        height, width = images.shape[2:]
        padded = F.pad(images, (1,) * 4, "reflect")
        moved = padded[:, :, :height, :width], padded[:, :, 2:, 2:]
        return 0.5 * self._mirrored(images) + 0.25 * sum(
            map(self._mirrored, moved), torch.zeros((), device=images.device)
        )

    def _mirrored(self, images: Tensor) -> Tensor:
        return 0.5 * (self._net(images) + self._net(images.flip(-1))).float()
