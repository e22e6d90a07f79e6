"""The selection inside the encoder's pass: the same result as from stored embeddings, which nobody stores then."""

from __future__ import annotations

import os
import signal
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import write_raw

from fastload.common.folder_files import FolderFile
from fastload.embedding.embeddings_hash import hash_rows
from fastload.errors import DataError
from fastload.packed.file import PackedFile
from fastload.selection import STRATEGIES, Request, Samples, StrategyRow, select
from fastload.subset import build as subset
from fastload.subset import embed_step, trials
from fastload.subset.listener import Listener
from fastload.subset.report import measure_lists
from fastload.subset.streaming_pass import StreamingPass
from fastload.subset.work_folder import MARK

ROWS = 2500
"""Two and a half of the encoder's chunks."""

MODELS = """
import torch
class Linear(torch.nn.Module):
    def __init__(self, same=False):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        weights = torch.randn(3 * 8 * 8, 1 if same else 12, generator=generator)
        self.weights = torch.nn.Parameter(weights.repeat(1, 12) if same else weights)
    def forward(self, images):
        return images.flatten(1) @ self.weights
def linear():
    return Linear()
def all_dimensions_alike():
    return Linear(same=True)
class Forgetful(torch.nn.Module):
    calls = 0
    def forward(self, images):
        Forgetful.calls += 1
        return images.mean((2, 3)).repeat(1, 4)[:, :1].repeat(1, 12) * Forgetful.calls
"""


@pytest.fixture(autouse=True)
def own_models(tmp_path, monkeypatch):
    (tmp_path / "streaming_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trials, "TRIAL_SECONDS", 0.05)
    yield
    sys.modules.pop("streaming_models", None)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (ROWS, 8, 8, 3), dtype=np.uint8)
    return write_raw(
        tmp_path_factory.mktemp("full") / "full.h5", images, np.arange(ROWS) % 7, ids=rng.permutation(ROWS)
    )


class Watcher(Listener):
    """Sends Ctrl-C once the `nth` time that embedding has come to `row`; keeps what is said."""

    def __init__(self, row=None, nth=1):
        self._row, self._left = row, nth
        self.step, self.how, self.notes, self.told, self.begun = "", {}, [], None, []

    def needs(self, needs):
        self.told = needs

    def note(self, text):
        self.notes.append(text)

    def begin(self, step, total, done=0):
        self.step = step
        self.begun.append((step, done))

    def advance(self, done, detail=""):
        if self.step == "embed" and done == self._row:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGINT)

    def end(self, report):
        self.how[report.step] = report.how
        if report.step == "embed":
            self.detail = report.detail


def build(full, out, **arguments):
    given = {"strategy": "top-activations", "encoder": "streaming_models:linear", "input_size": 8}
    return subset.build_subset(full, out, **(given | {"size": 300, "threads": 1} | arguments))


def files_of(out):
    return {entry.name for entry in out.with_name(out.name + ".work").iterdir()} - {"lock", "state.json", MARK}


# -- from the pass itself to the file --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "amount",
    [
        {"size": 300},
        {"per_dimension": 30},
        {"size": 2400},
        {"size": 300, "balance_classes": True},
        {"per_dimension": 9, "balance_classes": True},
    ],
    ids=str,
)
def test_the_file_and_the_report_are_those_of_stored_embeddings(full, tmp_path, amount):
    passed_by, stored = Watcher(), Watcher()
    one = build(full, tmp_path / "a.h5", size=amount.get("size"), listener=passed_by, **without_size(amount))
    other = build(full, tmp_path / "b.h5", size=amount.get("size"), keep=True, listener=stored, **without_size(amount))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    for name in ("overlap", "dead", "filled", "embeddings_hash", "chosen", "classes"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.embeddings_hash == hash_rows(np.load(tmp_path / "b.h5.work" / "embeddings.npy"))
    assert files_of(tmp_path / "b.h5") == {"embeddings.npy", "selection.safetensors"}


def without_size(amount):
    return {name: value for name, value in amount.items() if name != "size"}


def test_an_interrupted_pass_goes_on_from_its_chunk_and_stores_no_embeddings(full, tmp_path):
    build(full, tmp_path / "whole.h5")
    out = tmp_path / "s.h5"
    for row in (1024, 2048):
        with pytest.raises(KeyboardInterrupt, match="keeps what is done"):
            build(full, out, listener=Watcher(row))
        assert files_of(out) == {"lists.safetensors"}
        assert (tmp_path / "s.h5.work" / "lists.safetensors").stat().st_size < ROWS * 12 * 4
    last = Watcher()
    build(full, out, listener=last)
    assert last.how["embed"] == "resumed at row 2,048" and last.begun[0] == ("embed", 2048)
    assert out.read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_lists_that_are_too_short_are_made_longer_in_another_pass_which_resumes_too(full, tmp_path):
    """All dimensions rank alike, so every list gives each sample: 300 samples need lists of 300, not 2·300/12."""
    alike = {"encoder": "streaming_models:all_dimensions_alike"}
    build(full, tmp_path / "stored.h5", keep=True, **alike)
    heard = Watcher()
    build(full, tmp_path / "a.h5", listener=heard, **alike)
    assert [done for step, done in heard.begun if step == "embed"] == [0, 0, 0, 0]
    assert heard.detail.endswith("4 passes") and len([note for note in heard.notes if "too short" in note]) == 3
    out = tmp_path / "b.h5"
    with pytest.raises(KeyboardInterrupt):
        build(full, out, listener=Watcher(1024, nth=3), **alike)
    heard = Watcher()
    build(full, out, listener=heard, **alike)
    assert [done for step, done in heard.begun if step == "embed"] == [1024, 0], "the third pass goes on, then a fourth"
    assert (tmp_path / "a.h5").read_bytes() == out.read_bytes() == (tmp_path / "stored.h5").read_bytes()


def test_an_encoder_that_gives_other_embeddings_in_its_second_pass_is_an_error(full, tmp_path):
    with pytest.raises(DataError, match="other embeddings in its pass 2 than before; with keep=True they are stored"):
        build(full, tmp_path / "s.h5", encoder="streaming_models:Forgetful")
    assert not (tmp_path / "s.h5").exists()


def test_kept_embeddings_serve_another_size_and_go_with_the_work_folder(full, tmp_path):
    out = tmp_path / "s.h5"
    build(full, out, keep=True)
    heard = Watcher()
    build(full, out, size=100, listener=heard)
    assert heard.how["embed"] == "reused" and not out.with_name("s.h5.work").exists()
    build(full, tmp_path / "fresh.h5", size=100)
    assert out.read_bytes() == (tmp_path / "fresh.h5").read_bytes()


def test_lists_of_another_size_are_not_used_and_a_damaged_state_begins_anew(full, tmp_path):
    out = tmp_path / "s.h5"
    for change, note in (({"size": 100}, "size 300 → 100"), ({}, None)):
        with pytest.raises(KeyboardInterrupt):
            build(full, out, listener=Watcher(1024))
        if note is None:
            (tmp_path / "s.h5.work" / "lists.safetensors").write_bytes(b"\x08" * 400)
        heard = Watcher()
        build(full, out, listener=heard, **change)
        assert heard.how["embed"] == "done" and heard.begun[0] == ("embed", 0)
        assert note is None or any(note in text for text in heard.notes)


@pytest.mark.parametrize("keep", [False, True])
def test_what_was_hashed_by_another_rule_is_embedded_anew_with_a_note(full, tmp_path, monkeypatch, keep):
    out = tmp_path / "s.h5"
    with monkeypatch.context() as before:
        before.setattr(embed_step, "HASH_RULE", "xxh3-128")
        if keep:
            build(full, out, keep=True)
        else:
            with pytest.raises(KeyboardInterrupt):
                build(full, out, listener=Watcher(1024))
    heard = Watcher()
    build(full, out, keep=keep, listener=heard)
    assert heard.how["embed"] == "done" and heard.begun[0] == ("embed", 0)
    assert any(
        "embed and what follows is done anew, since hashed by xxh3-128 → xxh3-128 of the" in note
        for note in heard.notes
    )


def test_a_strategy_that_looks_more_than_once_gets_stored_embeddings(full, tmp_path, monkeypatch):
    found = []

    def twice(embeddings, samples, request):
        found.append(files_of(tmp_path / "s.h5"))
        first, again = (np.concatenate([np.array(rows) for _, rows in embeddings.chunks()]) for _ in range(2))
        assert (first == again).all() and first.shape == (ROWS, 12)
        return select("random", None, samples.sorted_ids, size=request.size, seed=request.seed)

    monkeypatch.setitem(STRATEGIES, "twice", StrategyRow(twice))
    heard = Watcher()
    report = build(full, tmp_path / "s.h5", strategy="twice", listener=heard)
    assert found == [{"embeddings.npy"}] and report.overlap is None and report.filled == 0
    assert heard.told.disk > ROWS * 12 * 4


def test_what_is_needed_on_disk_holds_the_embeddings_only_where_they_are_stored(full, tmp_path):
    passed_by, stored = Watcher(), Watcher()
    build(full, tmp_path / "a.h5", size=12, listener=passed_by)
    build(full, tmp_path / "b.h5", size=12, keep=True, listener=stored)
    lists = 2 * 12 * 12 * (2 + 1)  # twice, 12 bytes an entry, 12 dimensions, lists of 2 and 1 for the report
    assert stored.told.disk - passed_by.told.disk == ROWS * 12 * 4 - lists


def test_a_pass_that_fills_the_disk_is_one_line(full, tmp_path, monkeypatch):
    import errno

    write = FolderFile.write

    def no_room(self, data):
        if self.name == "lists.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, data)

    monkeypatch.setattr(FolderFile, "write", no_room)
    with pytest.raises(DataError, match=r"lists.safetensors: cannot be written .*No space left.*make room there"):
        build(full, tmp_path / "s.h5")


# -- the pass alone --------------------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_neither_chunks_nor_interruptions_change_lists_or_hash(data, tmp_path_factory):
    n, dims = data.draw(st.integers(2, 60)), data.draw(st.integers(1, 5))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    x = rng.integers(-1, 4, (n, dims)).astype(np.float32)
    ids, labels = rng.permutation(3 * n)[:n], rng.integers(0, 3, n)
    balanced = data.draw(st.booleans())
    size = data.draw(st.integers(1, n))
    samples = Samples.of(ids, labels if balanced else None)
    k = -(-size // dims)
    path = tmp_path_factory.mktemp("pass") / "lists.safetensors"

    def opened():
        request = Request(size, threads=data.draw(st.integers(1, 2)))
        return StreamingPass(
            path, "key", n, lambda d: STRATEGIES["top-activations"].streams(samples, request, d, report=k)
        )

    passing = opened()
    while True:
        while not passing.complete:
            first = passing.rows
            last = min(n, first + data.draw(st.integers(1, n)))
            passing.write(first, x[first:last])
            if data.draw(st.booleans()):
                passing.sync()
                passing = opened()
        chosen = passing.strategy.selection()
        if chosen is not None:
            break
        passing.again()
    expected = select("top-activations", x, ids, size=size, labels=labels if balanced else None)
    for name in ("ids", "dimension", "rank", "score"):
        np.testing.assert_array_equal(getattr(chosen, name), getattr(expected, name), err_msg=name)
    assert chosen.report["passes"] == expected.report["passes"] == passing.passes
    assert passing.hexdigest() == hash_rows(x)
    # The report's lists, by sorting: each dimension's k strongest above its minimum, lower ids first among equals.
    order = np.argsort(ids)
    best = [
        [i for i in sorted(order, key=lambda i, c=column: (-c[i], ids[i])) if column[i] > column.min()][:k]
        for column in x.T
    ]
    overlap, dead = measure_lists(passing.strategy.strongest())
    entries = [i for column in best for i in column]
    assert (overlap.k, overlap.entries, overlap.distinct) == (k, len(entries), len(set(entries)))
    assert overlap.most == max((entries.count(i) for i in entries), default=0)
    assert dead == [d for d in range(dims) if x[:, d].min() == x[:, d].max()]


def test_rows_out_of_turn_are_refused():
    samples = Samples.of(np.arange(9))
    lists = STRATEGIES["top-activations"].streams(samples, Request(2), 3)
    lists.update(0, np.zeros((4, 3), np.float32))
    for first in (0, 5):
        with pytest.raises(DataError, match="after 4 of 9"):
            lists.update(first, np.zeros((2, 3), np.float32))


def test_the_chosen_samples_pixels_are_the_full_set_s(full, tmp_path):
    build(full, tmp_path / "s.h5")
    with PackedFile(full) as whole, PackedFile(tmp_path / "s.h5") as chosen:
        row_of = {int(sample): row for row, sample in enumerate(whole.ids)}
        assert len(chosen) == 300
        for row, sample in enumerate(chosen.ids.tolist()):
            assert (chosen.image(row) == whole.image(row_of[sample])).all()
