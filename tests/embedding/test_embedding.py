"""Embeddings: rows in file order, streamed and resumable; encoders and files that the user brings."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastload.augment import Augment
from fastload.common.reproducible import torch_threads
from fastload.embedding.autoencoder import VIEW, Autoencoder, model_of, weights_of
from fastload.embedding.embed import embed, embed_chunks
from fastload.embedding.embeddings_hash import EmbeddingsHash, hash_rows
from fastload.embedding.encoder import (
    CHUNK,
    IMAGENET,
    Encoder,
    autoencoder_encoder,
    chunk_rows,
    load_encoder,
    trained_model,
)
from fastload.embedding.stored import RowWriter, saved_shape
from fastload.errors import DataError, UsageError
from fastload.packed.file import PackedFile, PackedWriter


@pytest.fixture(scope="module")
def file(few_cifar):
    with PackedFile(few_cifar) as opened:
        yield opened


@pytest.fixture(scope="module")
def encoder():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return autoencoder_encoder(Autoencoder().to(memory_format=torch.channels_last).eval())


@pytest.fixture
def large(tmp_path, file):
    """2,500 rows, two and a half chunks: the real images over and over."""
    path = tmp_path / "large.h5"
    with PackedWriter(path, shape=(2500, 32, 32, 3), labels=np.zeros(2500, np.int64), source={}) as out:
        for row in range(2500):
            out.write(row, file.image(row % len(file)))
    with PackedFile(path) as opened:
        yield opened


def standardized_centre(image: np.ndarray) -> np.ndarray:
    crop = image[4:28, 4:28].astype(np.float64)
    return ((crop - crop.mean()) / max(crop.std(), 1 / np.sqrt(crop.size))).transpose(2, 0, 1)


def test_row_i_is_the_embedding_of_the_standardized_centre_of_row_i(file, encoder, tmp_path):
    embed(file, encoder, tmp_path / "e.npy")
    found = np.load(tmp_path / "e.npy")
    assert found.shape == (400, 216) and found.dtype == np.float32
    images = np.stack([standardized_centre(file.image(row)) for row in range(400)])
    model = encoder.model.autoencoder
    with torch.inference_mode():
        expected = model.double().embed(torch.from_numpy(images)).numpy()
        model.float()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert (found >= 0).all() and found.std() > 0


def test_an_interrupted_pass_goes_on_and_gives_the_same_bytes(large, encoder, tmp_path):
    whole, parts = tmp_path / "whole.npy", tmp_path / "parts.npy"
    embed(large, encoder, whole)
    rows, saved = [], []
    with pytest.raises(KeyboardInterrupt):
        embed(large, encoder, parts, on_chunk=rows.append, on_saved=saved.append, should_stop=lambda: len(rows) == 1)
    assert rows == saved == [CHUNK]
    embed(large, encoder, parts, first_row=CHUNK, on_chunk=rows.append)
    assert rows == [1024, 2048, 2500]
    assert parts.read_bytes() == whole.read_bytes()


def test_the_encoder_sees_chunks_of_1024_rows(large, tmp_path):
    seen = []

    class Spy(nn.Module):
        def forward(self, images):
            seen.append(tuple(images.shape))
            return images.mean((2, 3))

    embed(large, Encoder(Spy(), VIEW.evaluation(), "spy", ""), tmp_path / "e.npy")
    assert seen == [(1024, 3, 24, 24), (1024, 3, 24, 24), (452, 3, 24, 24)]


def test_shares_of_several_ranks_are_the_chunks_of_one_and_a_rank_may_get_none(large, encoder, tmp_path):
    embed(large, encoder, tmp_path / "e.npy")
    whole = np.load(tmp_path / "e.npy")
    for every in (1, 2, 3, 5):
        for rank in range(every):
            first = rank * CHUNK
            share = list(embed_chunks(large, encoder, device="cpu", engine="auto", first_row=first, every=every))
            starts = range(first, len(whole), every * CHUNK)
            assert len(share) == len(starts)
            for start, values in zip(starts, share, strict=True):
                assert values.tobytes() == whole[start : start + CHUNK].tobytes()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_autoencoder_s_embeddings_do_not_depend_on_torch_s_threads(large, encoder, tmp_path, threads):
    embed(large, encoder, tmp_path / "e.npy")
    with torch_threads(threads):
        embed(large, encoder, tmp_path / "t.npy")
    assert (tmp_path / "e.npy").read_bytes() == (tmp_path / "t.npy").read_bytes()


def test_weights_for_another_process_make_the_same_encoder(encoder):
    model = trained_model(encoder)
    assert autoencoder_encoder(model_of(weights_of(model), 3, 216)).identity == encoder.identity
    assert trained_model(Encoder(nn.Flatten(), VIEW.evaluation(), "own", "")) is None


def test_chunks_depend_on_the_view_alone_and_shrink_with_large_images():
    assert chunk_rows(VIEW) == chunk_rows(Augment.paper(64)) == 1024
    assert chunk_rows(Augment.paper(128)) == 256
    assert chunk_rows(Augment.paper(2000)) == 32


def test_rows_that_were_not_begun_are_not_gone_on_with(file, encoder, tmp_path):
    np.save(tmp_path / "e.npy", np.zeros((7, 3), np.float32))
    with pytest.raises(DataError, match=r"not the embeddings that were begun.*fresh=True"):
        RowWriter(tmp_path / "e.npy", 400, 216, keep=True)


def test_the_hash_covers_shape_and_every_value():
    rows = np.random.default_rng(0).random((100, 6), np.float32)
    changed = rows.copy()
    changed[99, 5] = np.nextafter(changed[99, 5], 2, dtype=np.float32)
    assert len({hash_rows(rows), hash_rows(rows.reshape(50, 12)), hash_rows(changed)}) == 3
    assert hash_rows(rows) == hash_rows(np.asfortranarray(rows))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_the_hash_is_that_of_the_digests_of_64_rows_each_however_the_rows_come_and_whatever_interrupts(data):
    count, columns = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 3))
    rows = np.random.default_rng(count).random((count, columns), np.float32)
    digests = [xxhash.xxh3_128_digest(rows[first : first + 64].tobytes()) for first in range(0, count, 64)]
    expected = xxhash.xxh3_128_hexdigest(f"({count}, {columns})".encode() + b"".join(digests))
    found, taken = EmbeddingsHash(rows.shape), 0
    while taken < count:
        size = data.draw(st.integers(1, 200))
        found.update(rows[taken : taken + size])
        taken += size
        if data.draw(st.booleans()):
            kept, found = found.state(), EmbeddingsHash(rows.shape)
            assert len(kept["rest"]) < 64
            found.restore(kept)
    assert found.hexdigest() == hash_rows(rows) == expected


def test_a_full_disk_is_an_error_that_says_how_much_is_needed(tmp_path):
    """A file size limit stands in for the full disk; in a process of its own, since it cannot be raised again."""
    code = f"""
import resource, signal
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from fastload.embedding.stored import RowWriter
from fastload.errors import DataError
try:
    RowWriter(Path({str(tmp_path / "e.npy")!r}), 1000, 216)
except DataError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert "cannot be written" in done.stdout and "need 1 MB" in done.stdout
    assert not (tmp_path / "e.npy").exists()


def environment() -> dict[str, str]:
    from places import ROOT

    return os.environ | {"PYTHONPATH": str(ROOT)}


# -- encoders ------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_models(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(
        "import torch\n"
        "class Mean(torch.nn.Module):\n"
        "    def forward(self, images):\n"
        "        return images.mean((2, 3))[:, :, None]\n"
        "mean = Mean()\n"
        "def linear():\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 24 * 24, 5))\n"
        "number = 3\n"
        "def broken():\n"
        "    raise RuntimeError('no weights')\n"
        "def text():\n"
        "    return 'model'\n"
    )
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("own_models", None)


def test_an_encoder_is_a_module_or_a_callable_that_makes_one(own_models, file):
    embed(file, load_encoder("own_models:Mean"), own_models / "a.npy")
    embed(file, load_encoder("own_models:mean"), own_models / "b.npy")
    found = np.load(own_models / "a.npy")
    assert found.shape == (400, 3)
    assert (found == np.load(own_models / "b.npy")).all()
    expected = np.stack([standardized_centre(file.image(row)).mean((1, 2)) for row in range(400)])
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_encoder_that_draws_its_weights_draws_them_from_the_seed(own_models):
    first, again = (load_encoder("own_models:linear", seed=4) for _ in range(2))
    assert first.identity == again.identity
    assert load_encoder("own_models:linear", seed=5).identity != first.identity


def test_another_source_text_is_another_encoder(own_models):
    before = load_encoder("own_models:mean").identity
    with open(own_models / "own_models.py", "a") as source:
        source.write("# changed\n")
    assert load_encoder("own_models:mean").identity != before


def test_input_size_is_the_side_of_the_centre_square(own_models, file, tmp_path):
    encoder = load_encoder("own_models:mean", input_size=32)
    embed(file, encoder, tmp_path / "e.npy")
    whole = np.stack([file.image(row).astype(np.float64) for row in range(400)])
    centred = whole - whole.mean((1, 2, 3), keepdims=True)
    expected = (centred / whole.std((1, 2, 3), keepdims=True)).mean((1, 2))
    np.testing.assert_allclose(np.load(tmp_path / "e.npy"), expected, atol=1e-4)


@pytest.mark.parametrize("normalize", ["imagenet", "0.485,0.456,0.406/0.229,0.224,0.225", IMAGENET])
def test_an_encoder_may_see_a_mean_and_standard_deviation_taken_off_each_channel(own_models, file, tmp_path, normalize):
    encoder = load_encoder("own_models:mean", input_size=32, normalize=normalize)
    assert encoder.identity != load_encoder("own_models:mean", input_size=32).identity
    embed(file, encoder, tmp_path / "e.npy")
    whole = np.stack([file.image(row) for row in range(400)]).astype(np.float64) / 255
    np.testing.assert_allclose(
        np.load(tmp_path / "e.npy"), ((whole - IMAGENET[0]) / IMAGENET[1]).mean((1, 2)), atol=1e-4
    )


@pytest.mark.parametrize("normalize", ["cifar", "0.5/0", "1,2/1", (1, 2, 3), True, "nan/1", ("a", "b")])
def test_values_that_normalize_nothing_are_refused(own_models, normalize):
    with pytest.raises(UsageError, match=r'encoder_normalize=.*it is "imagenet", or means'):
        load_encoder("own_models:mean", normalize=normalize)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("own_models", "module:callable"),
        ("no_such_module:f", "cannot be imported"),
        ("own_models:missing", "has no 'missing'"),
        ("own_models:number", "neither a torch module nor a callable"),
        ("own_models:broken", "failed .*no weights"),
        ("own_models:text", "not a torch.nn.Module"),
    ],
)
def test_an_encoder_that_cannot_be_had_is_a_usage_error(own_models, spec, message):
    with pytest.raises(UsageError, match=message):
        load_encoder(spec)


def test_an_encoder_that_fails_on_the_images_is_an_error_with_their_shape(own_models, file):
    encoder = load_encoder("own_models:linear", input_size=32)
    with pytest.raises(UsageError, match=r"own_models:linear': failed .*\[400, 3, 32, 32\].*input_size="):
        embed(file, encoder, own_models / "e.npy")


def test_a_damaged_file_has_no_saved_shape(tmp_path):
    np.save(tmp_path / "e.npy", np.zeros((50, 7), np.float32))
    assert saved_shape(tmp_path / "e.npy") == (50, 7)
    with open(tmp_path / "e.npy", "r+b") as out:
        out.truncate(500)
    assert saved_shape(tmp_path / "e.npy") is None
    assert saved_shape(tmp_path / "missing.npy") is None
