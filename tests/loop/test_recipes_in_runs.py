"""Recipes in runs: schedules, views, Mix and a transform of the user's own, which resume exactly, on 1 and 2 ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from packs import write_pair

from fastload import (
    Augment,
    Jitter,
    Mix,
    RandomResizedCrop,
    Schedule,
    TwoPhaseLoader,
    UsageError,
)
from fastload.augment import MeanStd
from fastload.augment.mixing import draw_blend
from fastload.loop.transform_hook import TransformHook

CROPS = Augment(24, crop=RandomResizedCrop(), flip=0.5, normalize=MeanStd(0.5, 0.25))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("recipes"), count=200, chosen=64)


def make(pair, **changes):
    full, subset = pair
    settings = {
        "batch_size": 16,
        "steps": 12,
        "swap": 5,
        "augment": CROPS,
        "device": "cpu",
        "with_ids": True,
        "seed": 3,
    }
    return TwoPhaseLoader(full, subset, **(settings | changes))


def drawn(loader):
    """Batches as lists of tensors: images (or views), labels, ids."""
    return [[*(b[0] if isinstance(b[0], tuple) else (b[0],)), *b[1:]] for b in loader]


def assert_equal(some, others):
    assert len(some) == len(others) > 0
    for one, other in zip(some, others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


RUNS = {
    "plain": {},
    "jitter": {"augment": Augment(24, crop=RandomResizedCrop(), color=Jitter(0.4, 0.4, 0.4, 0.1), grayscale=0.2)},
    "by phase": {"augment": {"fast": CROPS, "fine-tune": Augment.paper(20)}},
    "schedule": {"augment": Schedule({0.0: CROPS.at(16), 0.25: CROPS.at(20), 0.75: CROPS})},
    "views": {"views": 2},
    "mix": {"mix": Mix(mixup=0.2, cutmix=1.0)},
    "mixed views of a schedule": {
        "views": 3,
        "mix": Mix(cutmix=0.5, probability=0.5),
        "augment": Schedule({0: CROPS.at(16), 7: CROPS}),
    },
    "channels last": {"memory_format": torch.channels_last, "dtype": torch.float16},
    "DALI": {"engine": "dali", "augment": Augment(24, crop=RandomResizedCrop(), color=Jitter(0.4), flip=0.5)},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_resumed_anywhere_goes_on_with_the_same_batches(pair, name):
    whole = drawn(make(pair, **RUNS[name]))
    assert len(whole) == 12
    for stop in (2, 5, 9):
        first = make(pair, **RUNS[name])
        batches = iter(first)
        for _ in range(stop):
            next(batches)
        second = make(pair, prefetch=1, **RUNS[name])
        second.load_state_dict(first.state_dict())
        assert_equal(drawn(second), whole[stop:])
        first.close()
        second.close()


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_draw_the_halves_of_what_one_draws(pair, name):
    whole = drawn(make(pair, **RUNS[name]))
    store = torch.distributed.HashStore()
    halves = [make(pair, batch_size=8, rank=rank, world_size=2, store=store, **RUNS[name]) for rank in range(2)]
    for batch, left, right in zip(whole, *(drawn(half) for half in halves), strict=True):
        for one, a, b in zip(batch, left, right, strict=True):
            assert torch.equal(one, torch.cat([a, b]))


def test_schedules_begin_their_stages_where_they_say(pair):
    sides = [images.shape[-1] for images, *_ in make(pair, **RUNS["schedule"])]
    assert sides == [16] * 3 + [20] * 6 + [24] * 3
    sides = [
        images.shape[-1] for images, *_ in make(pair, augment=Schedule({0: CROPS.at(8), 2: CROPS, 5: CROPS.at(12)}))
    ]
    assert sides == [8] * 2 + [24] * 3 + [12] * 7
    loader = make(pair, **RUNS["by phase"])
    assert [images.shape[-1] for images, *_ in loader] == [24] * 5 + [20] * 7
    plain, scheduled = (drawn(make(pair, augment=one)) for one in (CROPS, Schedule({0: CROPS.at(8), 2: CROPS})))
    assert_equal(plain[2:], scheduled[2:])


def test_views_are_drawn_apart_and_the_first_is_the_one_without_views(pair):
    one, two = drawn(make(pair)), drawn(make(pair, views=2))
    assert_equal([batch[:1] for batch in one], [batch[:1] for batch in two])
    assert all(not torch.equal(batch[0], batch[1]) for batch in two)


def test_mixed_batches_are_blends_of_the_ones_that_are_not(pair):
    mix = Mix(mixup=0.4, cutmix=1.0, classes=10)
    for plain, mixed in zip(drawn(make(pair)), drawn(make(pair, mix=mix)), strict=True):
        images, labels, ids = (x.numpy() for x in plain)
        partner = np.arange(len(ids)) ^ 1
        assert np.array_equal(mixed[2].numpy(), ids)
        blended, weights = mixed[0].numpy(), mixed[1].numpy()
        assert weights.shape == (16, 10) and np.allclose(weights.sum(1), 1, atol=1e-6)
        for i in range(len(ids)):
            own, other = images[i], images[partner[i]]
            share = weights[i, labels[i]] if labels[i] != labels[partner[i]] else None
            mixup = None if share is None else np.allclose(blended[i], share * own + (1 - share) * other, atol=1e-4)
            cut = ((blended[i] == own) | (blended[i] == other)).all()
            assert cut or mixup or share is None
            if cut and not mixup and share is not None:
                taken = (blended[i] != own).any(axis=0)
                rows, columns = np.flatnonzero(taken.any(1)), np.flatnonzero(taken.any(0))
                area = 0 if not len(rows) else (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
                assert abs(share - (1 - area / taken.size)) < 0.09  # an edge of the box may look like the own pixels


def test_shares_of_mixes_are_spread_as_their_distributions_say():
    special = pytest.importorskip("scipy.stats")
    ids, epochs = np.arange(20_000), np.zeros(20_000, np.int64)
    for alpha in (0.2, 1.0, 4.0):
        found = draw_blend(Mix(mixup=alpha), 5, 0, ids, epochs, (32, 32)).share
        for share in (0.02, 0.2, 0.5, 0.9):
            assert abs((found <= special.beta(alpha, alpha).ppf(share)).mean() - share) < 0.012
    both = draw_blend(Mix(mixup=0.2, cutmix=1.0, probability=0.5), 5, 0, ids, epochs, (32, 32))
    assert abs((both.label_share == 1).mean() - 0.5) < 0.03
    assert abs(((both.share == 1) & (both.label_share < 1)).mean() - 0.25) < 0.03


class Noisy(torch.nn.Module):
    def forward(self, images):
        return images + torch.randn_like(images)


def test_a_transform_of_ones_own_draws_the_same_after_a_resume_and_leaves_trainings_draws_alone(pair):
    whole = drawn(make(pair, transform=Noisy(), views=2))
    assert not torch.equal(whole[0][0], drawn(make(pair, views=2))[0][0])
    first = make(pair, transform=Noisy(), views=2)
    batches = iter(first)
    torch.manual_seed(1)
    for _ in range(7):
        next(batches)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    second = make(pair, transform=Noisy(), views=2)
    second.load_state_dict(first.state_dict())
    assert_equal(drawn(second), whole[7:])


def test_kornias_augmentations_resume(pair):
    kornia = pytest.importorskip("kornia.augmentation")
    pipe = torch.nn.Sequential(kornia.RandomRotation(20.0, p=1.0), kornia.RandomErasing(p=0.5))
    whole = drawn(make(pair, transform=pipe))
    second = make(pair, transform=pipe)
    batches = iter(second)
    for _ in range(6):
        next(batches)
    third = make(pair, transform=pipe)
    third.load_state_dict(second.state_dict())
    assert_equal(drawn(third), whole[6:])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"augment": {"fast": CROPS}}, "by phase it is"),
        ({"augment": "imagenet"}, "augment='imagenet'"),
        (
            {"augment": Schedule({0.0: CROPS, 0.5: CROPS.at(30)}), "steps": None, "seconds": 5.0, "swap": 0.5},
            "seconds=",
        ),
        ({"augment": Schedule({0.0: CROPS, 0.01: CROPS.at(30)})}, "same step"),
        ({"augment": Schedule({0: CROPS, 12: CROPS.at(30)})}, "would begin at step 12, and the run ends after 12"),
        ({"augment": Schedule({0.0: CROPS, 0.97: CROPS.at(30)})}, "stage, 0.97, would begin at step 12"),
        ({"mix": 0.2}, "mix=0.2"),
        ({"mix": Mix(mixup=1.0), "batch_size": 15}, "batch_size=15 is odd"),
        ({"mix": Mix(mixup=1.0), "dtype": torch.uint8, "augment": Augment(24)}, "torch.uint8"),
        ({"mix": Mix(mixup=1.0, classes=3)}, "counts 3 classes"),
        ({"views": 0}, "views=0"),
        ({"views": 65}, "views=65"),
        ({"transform": 3}, "transform=3"),
        ({"transform": torch.nn.Dropout}, "transform=<class"),
        ({"dtype": torch.uint8}, "normalize="),
        ({"augment": Augment(24, grayscale=0.1), "dtype": torch.int8}, "dtype="),
    ],
)
def test_what_cannot_be_served_is_refused_by_name_before_the_run(pair, changes, says):
    with pytest.raises(UsageError, match=says):
        make(pair, **changes)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Schedule({0.5: CROPS}), "begin at 0"),
        (lambda: Schedule({0.0: CROPS, 1.0: CROPS}), "share=1.0"),
        (lambda: Schedule({0: CROPS, 0.5: CROPS}), "together"),
        (lambda: Schedule({0: CROPS, 9: CROPS, 4: CROPS}), "each after"),
        (lambda: Schedule({}), "dict"),
        (lambda: Schedule({0: 24}), "augment=24"),
        (lambda: Mix(), "both 0"),
        (lambda: Mix(mixup=-1), "mixup=-1"),
        (lambda: Mix(mixup=1, probability=2), "probability=2"),
    ],
)
def test_schedules_and_mixes_out_of_range_are_named(build, says):
    with pytest.raises(UsageError, match=says):
        build()


def test_a_transform_that_returns_another_shape_is_refused(pair):
    hook = TransformHook(lambda images: images[:, :, :-1], 0, torch.device("cpu"))
    loader = make(pair, transform=hook._transform)
    with pytest.raises(UsageError, match=r"returned \(16, 3, 23, 24\) float32 on cpu for"):
        next(iter(loader))
    with pytest.raises(UsageError, match=r"float64 on cpu for images of \(16, 3, 24, 24\) float32"):
        next(iter(make(pair, transform=torch.Tensor.double)))


def test_a_run_with_a_transform_is_not_resumed_without_it_or_with_other_batches(pair):
    whole = make(pair, transform=torch.Tensor.neg)
    iterator = iter(whole)
    next(iterator)
    state = whole.state_dict()
    store = torch.distributed.HashStore()
    with make(pair) as other, pytest.raises(UsageError, match="transform='of 16 images', this loader has None"):
        other.load_state_dict(state)
    differs = pytest.raises(UsageError, match="transform='of 16 images', this loader has 'of 8 images'")
    with make(pair, transform=torch.Tensor.neg, batch_size=8, rank=0, world_size=2, store=store) as half, differs:
        half.load_state_dict(state)
    whole.close()


def test_states_hold_the_recipe_and_refuse_another(pair):
    state = make(pair, mix=Mix(mixup=0.2)).state_dict()
    for changes in ({}, {"mix": Mix(mixup=0.3)}):
        with pytest.raises(UsageError, match="mix="):
            make(pair, **changes).load_state_dict(state)
    state = make(pair, **RUNS["schedule"]).state_dict()
    with pytest.raises(UsageError, match="augment="):
        make(pair).load_state_dict(state)
    make(pair, **RUNS["schedule"]).load_state_dict(state)


def test_states_of_the_first_edition_are_read(pair):
    new = make(pair, augment=Augment.paper(24))
    state = new.state_dict() | {"fastload_state": 1}
    del state["views"], state["mix"]
    state["augment"] = {
        "crop": [24, 24],
        "resize": None,
        "flip": 0.5,
        "brightness": 63.0,
        "contrast": [0.2, 1.8],
        "clamp": True,
        "standardize": "stddev",
        "centre": False,
    }
    new.load_state_dict(state)
    state["augment"]["flip"] = 0.25
    with pytest.raises(UsageError, match="augment="):
        new.load_state_dict(state)


def test_blends_of_sixteen_bit_images_are_rounded_once(pair):
    images, labels, _ = next(iter(make(pair, dtype=torch.bfloat16)))
    blends, shares, _ = next(iter(make(pair, mix=Mix(mixup=0.4), dtype=torch.bfloat16)))
    share = shares[torch.arange(16), labels][:, None, None, None]
    other = torch.arange(16) ^ 1
    expected = (images.float() * share + images[other].float() * (1 - share)).to(torch.bfloat16)
    apart = labels != labels[other]  # else the share cannot be seen
    assert apart.any() and torch.equal(blends[apart], expected[apart])
