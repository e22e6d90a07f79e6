"""The test vectors that docs/determinism.md publishes are what the code and the second implementation give."""

from __future__ import annotations

import json
import re

import numpy as np
import reference
from places import ROOT
from rolling import simulated

from fastload.augment import Augment, Erase, Jitter, PaperColor, RandomResizedCrop
from fastload.augment.parameters import SampleKeys, draw_parameters, stream_number
from fastload.feeds.rolling_order import PoolShape, Rate, RollingOrder
from fastload.kernels.draw_parameters import draw_words
from fastload.order import Order

ROWS, POOLS, BLOCKS, PARAMETERS, RECIPES = (
    json.loads(block) for block in re.findall(r"```json\n(.*?)```", (ROOT / "docs/determinism.md").read_text(), re.S)
)


def test_published_orders():
    assert len(ROWS) == 5
    for vector in ROWS:
        n, seed, phase = vector["n"], vector["seed"], vector["phase"]
        order = Order(n, seed, phase)
        for epoch in (0, 1):
            published = vector[f"epoch{epoch}"]
            assert order.rows(epoch * n, 8)[0].tolist() == published
            assert [reference.row_at(epoch * n + i, n, seed, phase)[0] for i in range(8)] == published


def test_published_orders_of_rolling_pools():
    assert len(POOLS) == 4
    for vector in POOLS:
        shape = PoolShape(*(vector[name] for name in ("full", "subset", "batch", "pool", "first")))
        rates, step = [Rate(*rate) for rate in vector["rates"]], vector["step"]
        rows, epochs = RollingOrder(shape, vector["seed"], rates).rows(step * shape.batch_size, 8)
        assert (rows.tolist(), epochs.tolist()) == (vector["rows"], vector["epochs"])
        if step <= 200:
            (*_, batch) = simulated(shape, rates, vector["seed"], step + 1)
            assert batch[:8].T.tolist() == [vector["rows"], vector["epochs"]]


def block_order(n, seed, phase, block, window, epoch=0):
    """`shuffle="block"` from its definition: lists of rows, cut and permuted."""
    key = (seed & reference.M32, seed >> 32)

    def network(size, second, last):
        words = [w for j in (0, 1) for w in reference.philox((j, second, epoch, phase * 16 + last), key)]
        return [reference.feistel(offset, size, words) for offset in range(size)]

    blocks = [list(range(start, min(start + block, n))) for start in range(0, n, block)]
    placed = [blocks[i] for i in network(len(blocks), 0, 14)]
    rows = []
    for number, start in enumerate(range(0, len(placed), window)):
        inside = [row for one in placed[start : start + window] for row in one]
        rows += [inside[i] for i in network(len(inside), number, 13)]
    return rows


def test_published_block_orders():
    assert len(BLOCKS) == 2
    for vector in BLOCKS:
        published = vector.pop("rows")
        order = Order(**vector, shuffle="block")
        n, block, window = vector["n"], vector["block_rows"], vector["window_blocks"]
        whole = block_order(n, vector["seed"], vector["phase"], block, window)
        assert order.rows(0, n)[0].tolist() == whole
        assert whole[:12] == published


def test_block_order_is_its_definition_for_every_small_shape():
    for n in (1, 2, 7, 30, 31, 64):
        for block in (1, 3, 8, 64):
            for window in (1, 2, 5):
                got = Order(n, 3, 1, "block", block, window).rows(n, n)[0].tolist()
                assert got == block_order(n, 3, 1, block, window, epoch=1)


def test_published_parameters():
    assert len(PARAMETERS) == 4
    augment = Augment.paper(24)
    for vector in PARAMETERS:
        sample, epoch, seed, phase = (vector[name] for name in ("id", "epoch", "seed", "phase"))
        keys = SampleKeys(seed, stream_number(phase), np.array([sample]), np.array([epoch]))
        drawn = draw_parameters(augment, keys, (32, 32))
        assert (drawn.top[0], drawn.left[0]) == (vector["top"], vector["left"])
        assert bool(drawn.flip[0]) is vector["flip"]
        assert f"{drawn.brightness.view(np.uint32)[0]:08x}" == vector["brightness"]
        assert f"{drawn.contrast.view(np.uint32)[0]:08x}" == vector["contrast"]
        again = reference.parameters(sample, epoch, seed, phase)
        assert (drawn.flip[0], drawn.brightness[0], drawn.contrast[0]) == again[2:]


def test_the_contrast_s_span_is_the_difference_that_the_page_writes():
    """Read as one rounding of `high - low`, all four vectors miss in the last bit."""
    (span,) = re.findall(r"`(float32\(float32.*?)`;", (ROOT / "docs/determinism.md").read_text())
    color = Augment.paper(24).color
    assert isinstance(color, PaperColor)
    low, high = color.contrast
    written = eval(span, {"float32": np.float32, "low": low, "high": high})
    for vector in PARAMETERS:
        key = (vector["seed"] & reference.M32, vector["seed"] >> 32)
        counter = (vector["id"] & reference.M32, vector["id"] >> 32, vector["epoch"], vector["phase"] * 16 + 1)
        u = (reference.philox(counter, key)[0] >> 8) * 2.0**-24

        def bits(span, u=u):
            return f"{np.float32(float(np.float32(low)) + u * float(span)).view(np.uint32):08x}"

        assert bits(written) == vector["contrast"]
        assert bits(np.float32(high - low)) != vector["contrast"]


def test_published_parameters_of_the_second_edition():
    assert len(RECIPES) == 4
    augment = Augment(224, crop=RandomResizedCrop(), color=Jitter(0.4, 0.4, 0.4, 0.1), grayscale=0.2, erase=Erase(1.0))
    for vector in RECIPES:
        ids, epochs = np.array([vector["id"]]), np.array([vector["epoch"]])
        stream = stream_number(vector["phase"], vector["view"])
        drawn = draw_parameters(
            augment, SampleKeys(vector["seed"], stream, ids, epochs), (vector["height"], vector["width"])
        )
        assert drawn.places[0, :4].tolist() == vector["part"]
        factors = (drawn.brightness, drawn.contrast, drawn.saturation, drawn.hue)
        assert [f"{factor.view(np.uint32)[0]:08x}" for factor in factors] == vector["jitter"]
        assert bool(drawn.grey[0]) is vector["grey"] and drawn.erased[0].tolist() == vector["erased"]
        words = np.empty((1, 4), np.uint32)
        draw_words(ids, epochs, np.uint64(vector["seed"]), np.uint64(stream), np.uint64(4), words)
        assert words[0].tolist() == vector["mix"]
