"""`python -m fastload.bench advise`: the figures by hand, every storage without a subset, honest about the cache."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from packs import noise_images, write_encoded, write_ragged, write_raw
from PIL import Image
from samples import encode, noise

from fastload.bench import advise, data
from fastload.bench.__main__ import main
from fastload.bench.advise import Advice, Measured, SetSize
from fastload.bench.storage import cached_share, evict
from fastload.errors import DataError
from fastload.packed.file import PackedFile

SLOW = Measured(stream=1000, arrivals=1000, pool=1e6, source="from the disk")
SIZE = SetSize("encoded", samples=100_000, stored=10**10, decoded=10**11)


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch):
    monkeypatch.setattr(advise, "ROUND_SECONDS", 0.01)


def advice(measured: Measured = SLOW, size: SetSize = SIZE, held: int = 10_000, step: float = 0.05) -> Advice:
    return Advice("full.h5", size, measured, step, 200, "10GB", held)


def test_a_stream_at_a_quarter_of_the_trainers_rate_fills_a_pool():
    text = advice().text()
    # 200 images each 50 ms are 4,000 a second; 0.9 · 200 · 1,000 / 4,000 = 45 arrive at each of 20 steps a second.
    assert "training takes 4,000 images/s" in text and "45 of the batch's 200 arrive each step" in text
    assert 'TwoPhaseLoader("full.h5", pool="10GB", refill=0.225, batch_size=200, …)' in text
    assert 'pool="10GB" holds 10,000 samples, 10.0% of the set, and is full after 11 s' in text
    assert "do not swap to the stream: a step would take 4 times as long" in text and "warning" not in text


def test_more_than_eight_uses_are_warned_of():
    assert "warning: each sample serves" in advice(step=0.01).text()


def test_a_stream_that_keeps_up_is_streamed():
    text = advice(step=0.2).text()
    assert 'TwoPhaseLoader("full.h5", swap=0, batch_size=200, …)' in text and "save no time" in text


def test_where_augmentation_sets_the_pace_a_stream_that_keeps_up_with_it_is_streamed():
    found = advice(Measured(stream=950, arrivals=950, pool=1000, source=""))
    assert found.regime.feed == "stream" and "augmentation is slower" in found.text()


def test_a_set_that_fits_is_kept():
    assert 'pool="10GB"' in advice(held=100_000).text() and "decodes each image once" in advice(held=100_000).text()
    raw = SetSize("raw", samples=100, stored=10**6, decoded=10**6)
    assert 'TwoPhaseLoader(None, "full.h5", swap=1.0, batch_size=200, …)' in advice(size=raw, held=100).text()


@pytest.mark.parametrize("storage", ["raw", "ragged", "encoded"])
def test_every_storage_is_measured_without_a_subset(storage, tmp_path, capsys):
    pixels, path = [noise(30 + row, 40) for row in range(12)], tmp_path / "full.h5"
    if storage == "raw":
        write_raw(path, noise_images(12), np.arange(12))
    elif storage == "ragged":
        write_ragged(path, pixels, np.arange(12))
    else:
        with data.PackedWriter(path, count=12, labels=np.arange(12), source={}) as out:
            for row, image in enumerate(pixels):
                out.append(row, np.frombuffer(encode(image), np.uint8), shape=image.shape[:2])
    words = ["advise", "--full", str(path), "--step-ms", "5", "--batch-size", "4", "--pool", "8", "--crop", "16"]
    assert main([*words, "--device", "cpu", "--seconds", "0.2"]) == 0
    shown = capsys.readouterr().out
    assert f"12 {storage} images" in shown and f'TwoPhaseLoader("{path}"' in shown


@pytest.mark.parametrize(("cached", "told", "dropped"), [(1.0, False, False), (0.5, False, True), (1.0, True, True)])
def test_a_file_that_is_not_all_in_the_cache_is_read_from_the_disk(few_cifar, monkeypatch, cached, told, dropped):
    evicted = []
    monkeypatch.setattr(advise, "cached_share", lambda path: cached)
    monkeypatch.setattr(advise, "evict", lambda path: evicted.append(path) or 0.0)
    with PackedFile(few_cifar) as file:
        found = advise.measure(file, 32, 24, torch.device("cpu"), seconds=0.01, from_disk=told)
    assert (set(evicted) == {few_cifar}) is dropped
    assert found.source == ("from the disk" if dropped else "from the system's cache, which holds the whole file")
    assert found.stream > 0 and found.pool > 0


def test_a_file_that_is_read_is_in_the_cache(few_cifar):
    evict(few_cifar)
    few_cifar.read_bytes()
    assert cached_share(few_cifar) == 1


def test_the_stand_in_holds_spread_images_as_pillow_decodes_them(tmp_path):
    files = [encode(noise(20 + row, 30), "JPEG") for row in range(9)]
    full = write_encoded(tmp_path / "full.h5", files, np.arange(9))
    most = sum((20 + row) * 30 * 3 for row in range(5))
    with PackedFile(full) as file, PackedFile(data.write_decoded(tmp_path / "some.h5", file, most)) as some:
        rows = some.labels.tolist()
        assert rows[0] == 0 and rows[-1] == 8 and len(rows) in (5, 6)
        for place, row in enumerate(rows):
            assert np.array_equal(some.read_image(place), np.asarray(Image.open(io.BytesIO(files[row]))))


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    files = [encode(noise(20, 30), "JPEG"), b"no image"]
    full = write_encoded(tmp_path / "full.h5", files, np.arange(2))
    with PackedFile(full) as file, pytest.raises(DataError, match=r"sample 1|row 1|1 "):
        data.write_decoded(tmp_path / "some.h5", file, 1 << 20)


def test_what_cannot_be_served_is_one_line(few_cifar, tmp_path, capsys):
    unsized = write_encoded(tmp_path / "full.h5", [encode(noise(20, 30))], np.arange(1))
    assert main(["advise", "--full", str(few_cifar), "--step-ms", "0"]) == 2
    assert main(["advise", "--full", str(few_cifar), "--step-ms", "1", "--pool", "much", "--device", "cpu"]) == 2
    assert main(["advise", "--full", str(unsized), "--step-ms", "1", "--device", "cpu"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and all(line.startswith("error: ") for line in errors)
    assert "does not tell the sizes of its encoded images" in errors[2]
