"""What is cut for DALI: parts of files in which each crop is where it was, also for the graph that CUDA runs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fastload import Augment, RandomCrop
from fastload.augment.parameters import SampleKeys, stream_number
from fastload.feeds.dali_engine import DaliEngine
from fastload.feeds.dali_pipeline import DaliPipeline
from fastload.feeds.jpeg_cuts import EncodedBatch, read_batch
from fastload.packed.file import PackedFile
from fastload.packed.reader import SampleReader

CPU = torch.device("cpu")
RECIPES = {
    "resized": (Augment.imagenet(64), 1.01 / 255 / 0.224),  # DALI's resize: one level of 255
    "cropped": (Augment(64, crop=RandomCrop(), flip=0.5), 1e-6),
    "padded": (Augment(64, crop=RandomCrop(pad=4), flip=0.5), 1e-6),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_graph_of_cuda_gives_of_cuts_what_a_kernel_gives_of_whole_files(imagenet_encoded: Path, name: str) -> None:
    """Its operators are run on the CPU here."""
    augment, tolerance = RECIPES[name]
    rows = np.arange(24)
    with PackedFile(imagenet_encoded) as file:
        keys = SampleKeys(3, stream_number(1), file.ids[rows], np.full(24, 2))
        batch = read_batch(SampleReader(file), rows, augment, [keys])
        whole = EncodedBatch.of_whole([np.frombuffer(file.read(int(row)), np.uint8) for row in rows])
    sizes = sum(map(len, batch.files)), sum(map(len, whole.files))
    assert (sizes[0] < 0.8 * sizes[1]) == (name != "padded")
    engine = DaliEngine(augment, shape=None, batch_size=24, device=CPU)
    expected, found = torch.empty(24, 3, 64, 64), torch.empty(24, 3, 64, 64)
    engine.make_views(whole, [(keys, expected)])
    engine.make_views(batch, [(keys, found)])
    assert torch.equal(found, expected)
    engine._finish, engine._steps = None, DaliPipeline(engine._graph.build, None)
    engine.make_views(batch, [(keys, found)])
    assert (found - expected).abs().max() <= tolerance
    engine.close()
