"""The resident set: the file's bytes in memory that ends with a whole word, with the labels and ids."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch
from packs import noise_images, write_raw

from fastload import Augment, DataError
from fastload.common import memory
from fastload.feeds.batch import Output, label_tensor
from fastload.feeds.feed import open_feed
from fastload.feeds.resident_set import ResidentSet, whole_words
from fastload.order import Order
from fastload.packed.file import PackedFile
from fastload.packed.reader import SampleReader

CPU = torch.device("cpu")


def resident_of(path, **names) -> ResidentSet:
    """The resident set of a file that is closed by now."""
    with PackedFile(path, **names) as file:
        labels = None if file.labels is None else label_tensor(file.labels)
        return ResidentSet(file, SampleReader(file), labels, CPU)


@pytest.mark.parametrize("count", range(1, 6))
def test_it_ends_with_a_whole_word_of_its_own(tmp_path, count):
    images = noise_images(count, 3, 3)
    found = resident_of(write_raw(tmp_path / "full.h5", images, np.arange(count)))
    assert found.images.data_ptr() % 4 == 0 and len(found.images) == whole_words(27 * count) >= 27 * count
    assert len(found.images) % 4 == 0 and len(found.images) - 27 * count < 4
    assert np.array_equal(found.images[: 27 * count].numpy(), images.reshape(-1))


def test_it_has_the_real_images_labels_and_ids_of_the_file(few_cifar):
    found, rows = resident_of(few_cifar), np.array([399, 0, 7, 7])
    with PackedFile(few_cifar) as file:
        assert np.array_equal(found.images.numpy(), np.stack([file.image(row) for row in range(400)]).reshape(-1))
        assert np.array_equal(found.rows(rows).numpy(), np.stack([file.image(row) for row in rows]))
        assert np.array_equal(found.labels[:, 0].numpy(), file.labels) and np.array_equal(found.ids.numpy(), file.ids)


def test_images_stored_plane_by_plane_come_out_with_their_channels_last(tmp_path):
    images = noise_images(5, 6, 7)
    with h5py.File(tmp_path / "own.h5", "w") as file:
        file["x"], file["y"] = images.transpose(0, 3, 1, 2), np.zeros((5, 2, 3), np.float32)
    found = resident_of(tmp_path / "own.h5", images="x", labels="y")
    assert np.array_equal(found.images[: images.size].numpy(), images.transpose(0, 3, 1, 2).reshape(-1))
    given = found.rows(np.array([4, 1]))
    assert given.is_contiguous() and np.array_equal(given.numpy(), images[[4, 1]])
    assert found.labels.shape == (5, 6)


def test_a_set_without_labels_has_none_a_sample(tmp_path):
    found = resident_of(write_raw(tmp_path / "full.h5", noise_images(4), None))
    assert found.labels.shape == (4, 0) and found.ids.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("engine", ["fused", "dali"])
def test_a_set_that_the_device_cannot_hold_is_refused_by_name(few_cifar, monkeypatch, engine):
    if engine == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    size = 400 * 32 * 32 * 3
    with PackedFile(few_cifar) as file:
        monkeypatch.setattr(memory, "free_memory", lambda device: size - 1)
        with pytest.raises(DataError, match=rf"{few_cifar}: needs 1 MB of cpu memory"):
            open_feed(file, Augment.paper(24), Order(400), Output(8, CPU), engine=engine, resident=True)
        monkeypatch.setattr(memory, "free_memory", lambda device: size)
        open_feed(file, Augment.paper(24), Order(400), Output(8, CPU), engine=engine, resident=True).close()
