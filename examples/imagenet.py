"""Train a ResNet on ImageNet by ffcv-imagenet's 16-epoch recipe: progressive resizing, one GPU or several by torchrun.

    fastload pack imagenet/train train.h5 --short-side 256     (or smaller JPEG files: --jpeg --max-side 500)
    fastload pack imagenet/val val.h5 --resize 288
    fastload build-subset train.h5 subset.h5 --strategy random      (for --swap; without it all is streamed)
    torchrun --nproc-per-node 8 examples/imagenet.py train.h5 val.h5 --arch resnet50

The recipe is rn50_16_epochs.yaml of github.com/libffcv/ffcv-imagenet, but for the model's blurred strided convolutions.
Models are torchvision's (pip install torchvision).
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from fastload import Augment, PackedFile, Schedule, TwoPhaseLoader


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a ResNet by ffcv-imagenet's 16-epoch recipe.")
    parser.add_argument("full", help="the packed training set")
    parser.add_argument("test", help="the packed validation set")
    parser.add_argument("--subset", help="what build-subset made of the training set, for --swap")
    parser.add_argument("--swap", type=float, default=0.0, help="share of the run that is on the subset")
    parser.add_argument("--arch", default="resnet18", help="a model of torchvision's, or tiny")
    parser.add_argument("--epochs", type=float, default=16)
    parser.add_argument("--batch-size", type=int, default=128, help="on each rank")
    parser.add_argument("--lr", type=float, default=1.7, help="the greatest learning rate, for the global batch")
    parser.add_argument("--sizes", type=int, nargs=3, default=(160, 192, 256), help="least, greatest and test size")
    parser.add_argument("--checkpoint", help="saved to, and gone on from where it is there")
    parser.add_argument("--save-every", type=int, default=1000, help="steps")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def resnet(arch: str, classes: int) -> nn.Module:
    if arch == "tiny":
        first = nn.Conv2d(3, 16, 7, 4)
        return nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, classes))
    import torchvision

    return getattr(torchvision.models, arch)(num_classes=classes)


def progressive(least: int, greatest: int) -> Schedule:
    """Sizes grow by 32 pixels between epochs 11 and 13 of 16, as ffcv-imagenet's get_resolution has them."""
    recipe, sizes = Augment.imagenet(greatest), [*range(least, greatest, 32), greatest]
    later = {(11 + 2 * (k - 0.5) / (len(sizes) - 1)) / 16: recipe.at(size) for k, size in enumerate(sizes) if k}
    return Schedule({0.0: recipe.at(least)} | later)


def main() -> None:
    options = arguments()
    several, device = "RANK" in os.environ, torch.device(options.device)
    if several:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    least, greatest, test_size = options.sizes
    with PackedFile(options.full) as full:
        model = resnet(options.arch, len(full.classes)).to(device, memory_format=torch.channels_last)
    module = DistributedDataParallel(model) if several else model
    half = torch.float16 if device.type == "cuda" else torch.float32
    loader = TwoPhaseLoader(
        options.full,
        options.subset,
        batch_size=options.batch_size,
        epochs=options.epochs,
        swap=options.swap,
        augment=progressive(least, greatest),
        device=device,
        dtype=half,
        memory_format=torch.channels_last,
    )
    rank = dist.get_rank() if several else 0
    weights, others = ([p for p in model.parameters() if (p.ndim > 1) == many] for many in (True, False))
    groups = [{"params": weights, "weight_decay": 1e-4}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=options.lr, momentum=0.9)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    parts = {"model": model, "optimizer": optimizer, "scaler": scaler, "loader": loader}
    there = options.checkpoint and os.path.exists(options.checkpoint)
    for name, saved in torch.load(options.checkpoint, map_location=device).items() if there else ():
        parts[name].load_state_dict(saved)
    warm, loss = 2 / 16, torch.zeros(())
    for images, labels in loader:
        share = loader.progress
        for group in optimizer.param_groups:
            group["lr"] = options.lr * (share / warm if share < warm else (1 - share) / (1 - warm))
        with torch.autocast(device.type, half, enabled=device.type == "cuda"):
            loss = cross_entropy(module(images), labels, label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if options.checkpoint and rank == 0 and loader.step % options.save_every == 0:
            torch.save({name: part.state_dict() for name, part in parts.items()}, options.checkpoint)
    model.eval().requires_grad_(False)
    right = seen = torch.zeros((), device=device)
    for images, labels in loader.evaluation(options.test, augment=Augment.imagenet(test_size), shard=True):
        both = model(images.float()) + model(images.float().flip(3))
        right, seen = right + (both.argmax(1) == labels).sum(), seen + len(labels)
    if several:
        for count in (right, seen):
            dist.all_reduce(count)
    if rank == 0:
        print(f"accuracy {100 * right.item() / seen.item():.1f} % of {int(seen.item()):,}", end=" ")
        print(f"after {loader.step:,} steps, last loss {loss.item():.6f}")
    loader.close()
    if several:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
