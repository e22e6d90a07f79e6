"""Train the paper's classifier in two phases: first on a subset that stays in memory, then on the full set.

    fastload pack cifar10-jpeg.tar.xz train.h5 --split train
    fastload pack cifar10-jpeg.tar.xz test.h5 --split test
    fastload build-subset train.h5 subset.h5
    python examples/train_cifar10.py train.h5 subset.h5 test.h5 --steps 300 --batch-size 256

The model, its optimizer and the averaged weights are in `fastload/classifier.py`; put your own in their place.
"""

import argparse
import time

import torch
from torch.nn.functional import cross_entropy

from fastload import Augment, PackedFile, TwoPhaseLoader
from fastload.classifier import accuracy, averaged, paper_classifier, paper_optimizer


def share_or_step(text: str) -> float | int:
    """Read --swap: 0.5 is a share of the steps, 150 is a step."""
    return float(text) if "." in text else int(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the paper's classifier in two phases.")
    parser.add_argument("full", help="the packed training set")
    parser.add_argument("subset", help="the subset that `fastload build-subset` made of it")
    parser.add_argument("test", help="the packed test set")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--swap", type=share_or_step, default=0.5, help="a share of the steps (0.5) or a step (150)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.manual_seed(options.seed)
    with PackedFile(options.full) as full:
        model = paper_classifier(classes=len(full.classes)).to(options.device)
    optimizer = paper_optimizer(model)  # SGD, momentum 0.9, learning rate 0.1, weight decay on Linear weights alone
    average = averaged(model)

    loader = TwoPhaseLoader(
        options.full,
        options.subset,
        batch_size=options.batch_size,
        steps=options.steps,
        swap=options.swap,
        augment=Augment.paper(24),
        device=options.device,
        memory_format=torch.channels_last,
        seed=options.seed,
    )
    loader.on_swap(lambda loader: print(f"step {loader.step}: swap to the full set"))
    began = time.perf_counter()
    for images, labels in loader:
        loss = cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(model)
        if loader.step % 20 == 0 or loader.step == options.steps:
            rate = loader.stats()[loader.phase]["images_per_second"]
            print(f"step {loader.step}: {loader.phase}, loss {loss.item():.3f}, {rate:,.0f} images/s", flush=True)
    print(f"trained in {time.perf_counter() - began:.1f} s on {options.device}")

    share = accuracy(average, loader.evaluation(options.test))
    print(f"test accuracy of the averaged weights: {share:.2%}")
    loader.close()


if __name__ == "__main__":
    main()
