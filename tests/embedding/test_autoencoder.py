"""The autoencoder: its shapes (Fig. 2), that it learns, and that stopping and resuming changes nothing."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from fastload.common.tensors import load_tensors
from fastload.embedding.autoencoder import VIEW, Autoencoder, load_model, save_model
from fastload.embedding.training import Trained, TrainingSettings, train
from fastload.errors import DataError, UsageError
from fastload.feeds.evaluation import EvaluationLoader
from fastload.packed.file import PackedFile


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """OpenMP's threads wait for each other for ever on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(trained: Trained) -> dict[str, torch.Tensor]:
    return trained.model.state_dict()


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def file(few_cifar):
    with PackedFile(few_cifar) as opened:
        yield opened


@pytest.fixture(scope="module")
def trained(file):
    """33 steps of 16: an epoch of 25 on the 400 images, and 8 more."""
    return train(file, TrainingSettings(steps=33, batch_size=16))


def test_the_embedding_is_three_by_three_by_24_and_the_output_has_the_input_s_shape():
    model = Autoencoder().eval()
    images = torch.randn(5, 3, 24, 24)
    assert model.encoder(images).shape == (5, 24, 3, 3)
    assert model.embed(images).shape == (5, 216)
    assert model(images).shape == images.shape


def test_the_layers_are_those_of_fig_2():
    model = Autoencoder()
    kinds = [type(layer).__name__ for block in model.encoder for layer in block]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"] * 3
    assert [type(layer).__name__ for layer in model.decoder] == [
        "ConvTranspose2d",
        "ReLU",
        "ConvTranspose2d",
        "ReLU",
        "ConvTranspose2d",
    ]
    convolutions = [layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    assert all(layer.kernel_size == (5, 5) for layer in convolutions)
    assert [layer.stride for layer in model.decoder[::2]] == [(2, 2)] * 3
    pools = [layer for layer in model.modules() if isinstance(layer, torch.nn.MaxPool2d)]
    assert [(pool.kernel_size, pool.stride) for pool in pools] == [(3, 2)] * 3


@pytest.mark.parametrize("size", [1, 9, 10, 100, 216, 217])
def test_any_embedding_size_can_be_had_and_reaches_the_decoder(size):
    model = Autoencoder(embedding_size=size)
    images = torch.randn(4, 3, 24, 24)
    embeddings = model.embed(images)
    assert embeddings.shape == (4, size)
    assert (embeddings >= 0).all()
    embeddings.retain_grad()
    model.decode(embeddings).square().sum().backward()
    assert (embeddings.grad != 0).any(dim=0).all(), "an element of the embedding is not decoded"


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channel_counts_are_taken(channels):
    assert Autoencoder(channels)(torch.randn(2, channels, 24, 24)).shape == (2, channels, 24, 24)


def test_training_lowers_the_loss_and_leaves_few_dead_dimensions(file):
    trained = train(file, TrainingSettings(steps=100, batch_size=32))
    # Standardized images have variance 1, which is the loss of predicting nothing.
    assert 0.9 < trained.losses[0] < 1.1
    assert trained.losses[-1] < 0.8
    assert all(np.isfinite(trained.losses))
    batches = EvaluationLoader(file, VIEW, batch_size=400)
    embeddings = trained.model.embed(next(iter(batches))[0])
    dead = (embeddings.amax(0) == embeddings.amin(0)).sum().item()
    assert dead <= 21, f"{dead} of 216 dimensions never vary"


def test_losses_are_means_over_epochs_and_the_last_covers_what_was_left(file, trained):
    assert len(file) == 400  # 25 steps an epoch: 25 and 8
    assert len(trained.losses) == 2


def test_the_same_seed_gives_the_same_bits_and_another_does_not(file, trained):
    again = train(file, TrainingSettings(steps=33, batch_size=16))
    assert same_bits(weights(trained), weights(again))
    assert trained.losses == again.losses
    other = train(file, TrainingSettings(steps=2, batch_size=16, seed=1))
    assert not torch.equal(other.model.encoder[0][0].weight, weights(trained)["encoder.0.0.weight"])


def test_training_changes_no_global_generator(file):
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    train(file, TrainingSettings(steps=1, batch_size=16))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()  # noqa: NPY002


@pytest.mark.parametrize("stop", [1, 24, 25, 30])
def test_a_run_stopped_at_any_step_and_resumed_gives_the_bits_of_one_that_was_not(file, trained, tmp_path, stop):
    checkpoint = tmp_path / "training.safetensors"
    settings = TrainingSettings(steps=33, batch_size=16)
    steps = []
    with pytest.raises(KeyboardInterrupt):
        train(
            file,
            settings,
            checkpoint=checkpoint,
            key="k",
            on_step=lambda step, loss: steps.append(step),
            should_stop=lambda: len(steps) == stop - 1,
        )
    assert steps[-1] == stop
    resumed = train(file, settings, checkpoint=checkpoint, key="k")
    assert resumed.resumed_at == stop
    assert same_bits(weights(trained), weights(resumed))
    assert resumed.losses == trained.losses


def test_a_checkpoint_of_other_settings_or_a_damaged_one_is_not_taken_over(file, tmp_path):
    checkpoint = tmp_path / "training.safetensors"
    train(file, TrainingSettings(steps=2, batch_size=16), checkpoint=checkpoint, key="a")
    assert load_tensors(checkpoint)[1]["step"] == 2
    assert train(file, TrainingSettings(steps=2, batch_size=16), checkpoint=checkpoint, key="b").resumed_at == 0
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:-40] + bytes(byte ^ 255 for byte in whole[-40:]))
    assert load_tensors(checkpoint) is None, "a changed weight went unnoticed"
    checkpoint.write_bytes(whole[:100])
    assert load_tensors(checkpoint) is None
    assert train(file, TrainingSettings(steps=2, batch_size=16), checkpoint=checkpoint, key="b").resumed_at == 0


def test_checkpoints_come_at_the_asked_interval(file, tmp_path):
    checkpoint = tmp_path / "training.safetensors"
    seen = []
    train(
        file,
        TrainingSettings(steps=3, batch_size=16),
        checkpoint=checkpoint,
        seconds_between=0.0,
        on_step=lambda step, loss: seen.append(load_tensors(checkpoint)[1]["step"]),
    )
    assert seen == [1, 2, 3]


def test_divergence_is_an_error_that_names_the_learning_rate(file):
    with pytest.raises(UsageError, match=r"loss is (nan|inf).*learning_rate="):
        train(file, TrainingSettings(steps=25, batch_size=16, learning_rate=1e6))


def test_weights_come_back_from_safetensors_bit_for_bit(trained, tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(path, trained.model)
    loaded = load_model(path)
    assert same_bits(loaded.state_dict(), weights(trained))
    images = torch.randn(8, 3, 24, 24)
    assert torch.equal(loaded.embed(images), trained.model.embed(images))
    path.write_bytes(b"\x00" * 64)
    assert load_model(path) is None
    assert load_model(tmp_path / "missing") is None


def test_weights_that_cannot_be_written_are_an_error_with_the_path(trained, tmp_path):
    with pytest.raises(DataError, match=r"missing/model.*cannot be written"):
        save_model(tmp_path / "missing" / "model.safetensors", trained.model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": 1, "batch_size": 1}, "batch_size=1"),
        ({"steps": 1, "learning_rate": 0.0}, "learning_rate=0.0"),
        ({"steps": 1, "momentum": 1.0}, "momentum=1.0"),
        ({"steps": 1, "embedding_size": 0}, "embedding_size=0"),
        ({"steps": 1, "seed": 2**64}, "seed="),
    ],
)
def test_settings_out_of_range_are_errors_with_the_value(settings, message):
    with pytest.raises(UsageError, match=message):
        TrainingSettings(**settings)
