"""The paper's classifier: its layers, what decays, and how the averaged weights come about."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastload.classifier import accuracy, averaged, paper_classifier, paper_optimizer


def test_it_takes_24x24x3_through_5x5_convolutions_and_3x3_poolings_to_one_logit_a_class() -> None:
    model = paper_classifier(classes=7)
    assert model(torch.zeros(4, 3, 24, 24)).shape == (4, 7)
    kinds = {kind: [m for m in model.modules() if isinstance(m, kind)] for kind in (nn.Conv2d, nn.MaxPool2d)}
    assert [m.kernel_size for m in kinds[nn.Conv2d]] == [(5, 5), (5, 5)]
    assert [(m.kernel_size, m.stride) for m in kinds[nn.MaxPool2d]] == [(3, 2), (3, 2)]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 2
    assert [m.out_features for m in model.modules() if isinstance(m, nn.Linear)] == [384, 192, 7]


def test_other_channels_fit() -> None:
    assert paper_classifier(classes=2, channels=1)(torch.zeros(2, 1, 24, 24)).shape == (2, 2)


def test_a_step_without_gradients_shrinks_the_fully_connected_weights_by_lr_times_decay_and_nothing_else() -> None:
    model = paper_classifier(classes=3)
    before = copy.deepcopy(model)
    optimizer = paper_optimizer(model)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed = {f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    assert len(decayed) == 3
    for (name, new), old in zip(model.named_parameters(), before.parameters(), strict=True):
        expected = old * (1 - 0.1 * 0.004) if name in decayed else old
        torch.testing.assert_close(new, expected, msg=name)


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_the_average_follows_tensorflows_schedule_for_weights_and_batch_norm_statistics(steps: int) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    average = averaged(model)
    seen: list[dict[str, torch.Tensor]] = []
    for _ in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(3, 1, 5, 5))  # moves the running statistics
        average.update_parameters(model)
        seen.append({name: tensor.double().clone() for name, tensor in model.state_dict().items()})
    for name, got in average.module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert got == steps
            continue
        expected = seen[0][name]
        for update, state in enumerate(seen[1:], start=1):
            share = min(0.9999, (1 + update) / (10 + update))
            expected = share * expected + (1 - share) * state[name]
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6, msg=name)


def test_averaging_leaves_the_trained_model_as_it_is() -> None:
    model = paper_classifier(classes=2)
    before = copy.deepcopy(model.state_dict())
    average = averaged(model)
    for _ in range(3):
        average.update_parameters(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_accuracy_counts_every_image_of_unequal_batches_once_in_evaluation_mode() -> None:
    class Threshold(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert not self.training
            return torch.stack([-images.flatten(1).sum(1), images.flatten(1).sum(1)], 1)

    batches = [
        (torch.tensor([1.0, -1.0, 2.0]).view(3, 1, 1, 1), torch.tensor([1, 0, 0])),
        (torch.tensor([-3.0]).view(1, 1, 1, 1), torch.tensor([0])),
    ]
    assert accuracy(Threshold(), batches) == 3 / 4
