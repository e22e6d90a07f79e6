"""The code of docs/embeddings.md gives embeddings that build-subset takes, whatever order the full set stands in."""

from __future__ import annotations

import re

import h5py
import numpy as np
from packs import noise_images, write_raw
from places import ROOT

from fastload.packed.file import PackedFile
from fastload.subset.build import build_subset

PAGE = (ROOT / "docs/embeddings.md").read_text()


def test_the_page_s_embeddings_are_each_sample_s_own_in_a_shuffled_set(tmp_path, monkeypatch):
    ids = np.random.default_rng(0).permutation(300)
    images = noise_images(300, 8, 8)
    write_raw(tmp_path / "full.h5", images, np.arange(300) % 3, ids=ids)
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(compile(block, "docs/embeddings.md", "exec"), {})
    with h5py.File("embeddings.h5") as file:
        pooled = (images.reshape(300, 4, 2, 4, 2, 3) / 255).mean((2, 4)).transpose(0, 3, 1, 2).reshape(300, -1)
        np.testing.assert_allclose(file["vectors"][()], pooled, atol=1e-5)
        assert file["ids"][()].tolist() == ids.tolist()
    own = {"strategy": "top-activations", "embeddings": "embeddings.h5:vectors"}
    build_subset("full.h5", "s.h5", **own, size=1, threads=1)
    with PackedFile("s.h5") as chosen:
        assert chosen.ids[0] == ids[pooled[:, 0].argmax()]
        assert chosen.selection.attributes["embedding_order"] == "by the ids of embeddings.h5:ids"
