"""The loader with the DALI engine: the same samples and parameters as fused; encoded files; resume; named errors."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from packs import noise_images, write_encoded, write_pair
from PIL import Image

from fastload import Augment, DataError, TwoPhaseLoader, UsageError
from fastload.augment import CenterCrop, Erase, MeanStd, RandomCrop, Schedule
from fastload.packed.file import PackedFile

pytest.importorskip("nvidia.dali")


def make(full, subset, **changes):
    settings = {
        "batch_size": 16,
        "steps": 8,
        "swap": 3,
        "augment": Augment.paper(24),
        "device": "cpu",
        "with_ids": True,
        "seed": 3,
    }
    return TwoPhaseLoader(full, subset, **(settings | changes))


def run(full, subset, **changes):
    with make(full, subset, **changes) as loader:
        return list(loader)


def png(image):
    stored = io.BytesIO()
    Image.fromarray(image).save(stored, "PNG")
    return stored.getvalue()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def encoded(pair, tmp_path_factory):
    """The raw full set once more, as PNG files: the same pixels after decoding."""
    raw = PackedFile(pair[0])
    files = [png(raw.image(row)) for row in range(len(raw))]
    return write_encoded(tmp_path_factory.mktemp("encoded") / "encoded.h5", files, raw.labels)


@pytest.mark.parametrize("output", [{}, {"dtype": torch.bfloat16, "memory_format": torch.channels_last}])
def test_both_engines_give_the_same_samples_and_nearly_the_same_pixels(pair, output):
    for dali, fused in zip(run(*pair, engine="dali", **output), run(*pair, engine="fused", **output), strict=True):
        assert torch.equal(dali[1], fused[1]) and torch.equal(dali[2], fused[2])
        assert dali[0].dtype == fused[0].dtype and dali[0].stride() == fused[0].stride()
        assert torch.allclose(dali[0].float(), fused[0].float(), atol=0.04 if output else 2e-4)


def test_encoded_files_give_what_raw_ones_give(pair, encoded):
    for one, other in zip(run(encoded, None, swap=0), run(pair[0], None, swap=0), strict=True):
        assert torch.equal(one[2], other[2]) and torch.equal(one[1], other[1])
        assert torch.allclose(one[0], other[0], atol=2e-4)


def test_a_run_moves_between_engines_in_the_middle(pair):
    whole = run(*pair, engine="fused")
    with make(*pair, engine="dali") as loader:
        batches = iter(loader)
        for _ in range(5):
            next(batches)
        state = loader.state_dict()
    with make(*pair, engine="fused") as loader:
        loader.load_state_dict(state)
        rest = list(loader)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(rest, whole[5:], strict=True))


def test_resume_with_dali_is_bit_for_bit(pair, encoded):
    for full, subset, swap in ((pair[0], pair[1], 3), (encoded, None, 0)):
        whole = run(full, subset, swap=swap, engine="dali")
        with make(full, subset, swap=swap, engine="dali") as loader:
            loader.load_state_dict(loader.state_dict() | {"step": 4})
            assert all(torch.equal(a[0], b[0]) for a, b in zip(list(loader), whole[4:], strict=True))


def test_photographs_of_all_sizes_are_resized_and_cropped(imagenet_encoded):
    with TwoPhaseLoader(
        imagenet_encoded,
        batch_size=32,
        steps=4,
        swap=0,
        augment=Augment.paper(96, resize=128),
        device="cpu",
        with_ids=True,
    ) as loader:
        batches = list(loader)
        assert all(batch[0].shape == (32, 3, 96, 96) for batch in batches)
        assert len({int(i) for batch in batches for i in batch[2]}) == 128
        assert all(abs(float(image.mean())) < 1e-4 for batch in batches for image in batch[0])
    with loader.evaluation(imagenet_encoded, batch_size=100) as test:
        assert [len(batch[0]) for batch in test] == [100, 100, 50]


def test_raw_images_are_resized_by_both_engines_alike(tmp_path):
    full, _ = write_pair(tmp_path, count=40, height=20, width=30)
    augment = Augment(24, CenterCrop(resize=32), normalize=MeanStd(0.0, 1 / 255))
    engines = (run(full, None, swap=0, augment=augment, engine=engine) for engine in ("dali", "fused"))
    for dali, fused in zip(*engines, strict=True):
        assert dali[0].shape == (16, 3, 24, 24) and torch.equal(dali[2], fused[2])
        assert (dali[0] - fused[0]).abs().max() <= 1


def test_views_and_schedules_are_those_of_the_fused_engine(pair, encoded):
    stages = Schedule({0: Augment(24, RandomCrop(), flip=0.5), 3: Augment(30, RandomCrop(pad=2), flip=0.5)})
    settings = {"augment": stages, "views": 2, "swap": 0, "steps": 6}
    fused = run(pair[0], None, engine="fused", **settings)
    for dali in (run(pair[0], None, engine="dali", **settings), run(encoded, None, **settings)):
        for step, (one, other) in enumerate(zip(dali, fused, strict=True)):
            assert torch.equal(one[2], other[2]) and len(one[0]) == 2
            assert not torch.equal(*one[0])
            for mine, its in zip(one[0], other[0], strict=True):
                assert mine.shape[-1] == (24 if step < 3 else 30)
                assert torch.allclose(mine, its, atol=1e-6)


def test_levels_of_encoded_files_are_those_of_raw_ones(pair, encoded):
    augment = Augment(24, RandomCrop(pad=4), flip=0.5, erase=Erase(0.5, value=7))
    output = {"augment": augment, "dtype": torch.uint8, "memory_format": torch.channels_last}
    for one, other in zip(run(encoded, None, swap=0, **output), run(pair[0], None, swap=0, **output), strict=True):
        assert one[0].dtype == torch.uint8 and one[0].is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(one[0], other[0]) and torch.equal(one[2], other[2])


def test_a_broken_image_is_named_by_row_and_id(tmp_path):
    files = [png(image) for image in noise_images(20)]
    files[13] = files[13][:50] + bytes(len(files[13]) - 50)
    path = write_encoded(tmp_path / "broken.h5", files, np.zeros(20))
    with (
        make(path, None, swap=0, shuffle=False) as loader,
        pytest.raises(DataError, match=r"broken\.h5: row 13 \(id 13\)"),
    ):
        list(loader)


def test_a_crop_larger_than_one_of_the_images_names_it(tmp_path):
    files = [png(image) for image in noise_images(20)]
    files[7] = png(noise_images(1, 32, 20)[0])
    path = write_encoded(tmp_path / "small.h5", files, np.zeros(20))
    with make(path, None, swap=0, shuffle=False) as loader, pytest.raises(DataError, match=r"row 7 .*resize="):
        list(loader)


def test_the_fused_engine_does_not_decode(encoded):
    with pytest.raises(UsageError, match=r'encoded images.*engine="dali"'):
        make(encoded, None, swap=0, engine="fused")


def test_a_resident_subset_must_be_raw(pair, encoded):
    with pytest.raises(DataError, match="a subset is decoded"):
        make(pair[0], encoded)
