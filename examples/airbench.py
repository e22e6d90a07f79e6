"""Train on CIFAR-10 by airbench94's augmentations, everything resident on the device, float16 there.

    fastload pack cifar10-jpeg.tar.xz train.h5 --split train
    fastload pack cifar10-jpeg.tar.xz test.h5 --split test
    python examples/airbench.py train.h5 test.h5 --epochs 8

The augmentations are those of K. Jordan, "94 % on CIFAR-10 in 3.29 seconds on a single GPU", 2024: flips that
alternate, and translations by up to two pixels, padded by reflection. The net is a plain one of its widths, not its
tuned one.
"""

import argparse
import time

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fastload import Augment, MeanStd, PackedFile, RandomCrop, TwoPhaseLoader

CIFAR10 = MeanStd((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train on CIFAR-10 by airbench94's augmentations.")
    parser.add_argument("full", help="the packed training set")
    parser.add_argument("test", help="the packed test set")
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def net(width: int, classes: int) -> nn.Sequential:
    """Three groups of two convolutions each; the first halves the sides."""
    layers: list[nn.Module] = [nn.Conv2d(3, 24, 2), nn.GELU()]
    before = 24
    for channels in (width, 4 * width, 4 * width):
        layers += [nn.Conv2d(before, channels, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(channels), nn.GELU()]
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.GELU()]
        before = channels
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def main() -> None:
    options = arguments()
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    with PackedFile(options.full) as full:
        size, classes = full.nbytes, len(full.classes)
    model = net(options.width, classes).to(device, memory_format=torch.channels_last)
    half = torch.float16 if device.type == "cuda" else torch.float32
    loader = TwoPhaseLoader(
        options.full,
        batch_size=options.batch_size,
        epochs=options.epochs,
        swap=0,
        augment=Augment(32, crop=RandomCrop(pad=2), flip="alternating", normalize=CIFAR10),
        resident_budget=size,
        device=device,
        dtype=half,
        memory_format=torch.channels_last,
        seed=options.seed,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.85, weight_decay=5e-4, nesterov=True)
    began = time.perf_counter()
    for images, labels in loader:
        share = loader.progress
        optimizer.param_groups[0]["lr"] = 0.2 * (share / 0.23 if share < 0.23 else (1 - share) / 0.77)
        with torch.autocast(device.type, half, enabled=device.type == "cuda"):
            loss = cross_entropy(model(images), labels, label_smoothing=0.2)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    taken = time.perf_counter() - began
    model.eval()
    right = seen = 0
    with torch.no_grad():
        for images, labels in loader.evaluation(options.test):
            both = model(images.float()) + model(images.float().flip(3))  # mirrored test images too
            right, seen = right + int((both.argmax(1) == labels).sum()), seen + len(labels)
    print(f"accuracy {100 * right / seen:.1f} % after {loader.step:,} steps, {taken:.1f} s of training")
    loader.close()


if __name__ == "__main__":
    main()
