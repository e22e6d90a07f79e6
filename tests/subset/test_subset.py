"""build_subset: what it chooses and writes, what is reused and what is done again, and what it refuses."""

from __future__ import annotations

import io
import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packs import write_encoded, write_raw
from PIL import Image

from fastload.common.text import duration_text
from fastload.errors import DataError, UsageError
from fastload.packed.file import PackedFile, damaged_rows, fingerprint
from fastload.subset import build as subset
from fastload.subset import estimate, trials
from fastload.subset.estimate import Estimate
from fastload.subset.listener import STEPS, Listener
from fastload.subset.size import parse_size
from fastload.subset.work_folder import WorkFolder

SIZES = {"epochs": 1, "batch_size": 32}


def build_subset(*arguments, **settings):
    """The paper's strategy and one thread, unless asked otherwise.

    OpenMP's threads wait for each other for ever on a busy machine.
    """
    return subset.build_subset(*arguments, **({"strategy": "top-activations", "threads": 1} | settings))


class Heard(Listener):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.told: list[Estimate] = []
        self.notes: list[str] = []
        self.how: dict[str, str] = {}

    def needs(self, needs: Estimate) -> None:
        self.told.append(needs)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def end(self, report) -> None:
        self.how[report.step] = report.how


@pytest.fixture(autouse=True)
def short_trials(monkeypatch):
    monkeypatch.setattr(trials, "TRIAL_SECONDS", 0.05)


@pytest.fixture(scope="module")
def vectors():
    """Non-negative embeddings for the 400 images, with ties, a dead dimension and many zeros."""
    values = np.random.default_rng(7).integers(-3, 6, (400, 12)).clip(0).astype(np.float32)
    values[:, 5] = 2
    return values


@pytest.fixture
def own(tmp_path, vectors):
    np.save(tmp_path / "e.npy", vectors)
    return tmp_path / "e.npy"


def brute_force(vectors: np.ndarray, size: int) -> list[tuple[int, int]]:
    """Round the dimensions, each giving its next sample not yet chosen: (id, dimension) in order of choice."""
    lists = [
        [i for i in sorted(range(len(vectors)), key=lambda i: (-column[i], i)) if column[i] > column.min()]
        for column in vectors.astype(np.float64).T
    ]
    chosen: list[tuple[int, int]] = []
    taken: set[int] = set()
    while len(chosen) < size and any(lists):
        for dimension, waiting in enumerate(lists):
            while waiting and waiting[0] in taken:
                waiting.pop(0)
            if waiting and len(chosen) < size:
                taken.add(waiting[0])
                chosen.append((waiting.pop(0), dimension))
    return chosen


# -- what is chosen and written -------------------------------------------------------------------------------------


def test_the_five_steps_give_exactly_the_size_asked_for_with_the_full_set_s_pixels(few_cifar, tmp_path):
    heard = Heard()
    report = build_subset(few_cifar, tmp_path / "s.h5", size="8.64%", listener=heard, **SIZES)
    with PackedFile(few_cifar) as full, PackedFile(tmp_path / "s.h5") as chosen:
        assert len(chosen) == len(set(chosen.ids.tolist())) == report.chosen == 35  # 400 · 8.64% = 34.56
        assert chosen.storage == "raw" and chosen.shape == full.shape and chosen.classes == full.classes
        for row, sample in enumerate(chosen.ids):
            assert (chosen.image(row) == full.image(int(sample))).all()
        assert (chosen.labels == full.labels[chosen.ids]).all()
        assert not damaged_rows(chosen)
        assert chosen.fingerprint == fingerprint(chosen)
        attributes = chosen.selection.attributes
        assert attributes["full_fingerprint"] == full.fingerprint
        assert attributes["strategy"] == "top-activations" and attributes["seed"] == 0
        assert json.loads(attributes["settings"]) == {"size": 35, "per_dimension": None, "balance_classes": False}
        assert len(attributes["embeddings"]) == 32 == len(report.embeddings_hash)
        assert chosen.source == {"kind": "subset", "of": {"kind": "test"}}
    assert [step.step for step in report.steps] == list(heard.how) == list(STEPS)
    assert set(heard.how.values()) == {"done"}
    assert len(report.losses) == 1 and 0 < report.losses[0] < 1.2
    assert not (tmp_path / "s.h5.work").exists()


def test_samples_and_reasons_are_those_of_a_brute_force_search_in_order_of_choice(few_cifar, own, vectors, tmp_path):
    build_subset(few_cifar, tmp_path / "s.h5", size=60, embeddings=own)
    expected = brute_force(vectors, 60)
    with PackedFile(tmp_path / "s.h5") as chosen:
        assert list(zip(chosen.ids.tolist(), chosen.selection.dimension.tolist(), strict=True)) == expected
        for row, (sample, dimension) in enumerate(expected):
            assert chosen.selection.score[row] == vectors[sample, dimension]


def test_rows_are_found_by_id_in_a_shuffled_file(few_cifar, own, vectors, tmp_path):
    order = np.random.default_rng(0).permutation(400)
    with PackedFile(few_cifar) as full:
        pixels = np.stack([full.image(int(row)) for row in order])
        shuffled = write_raw(tmp_path / "x.h5", pixels, full.labels[order], ids=order, classes=full.classes)
    np.save(tmp_path / "shuffled.npy", vectors[order])
    build_subset(few_cifar, tmp_path / "a.h5", size=60, embeddings=own)
    build_subset(shuffled, tmp_path / "b.h5", size=60, embeddings=tmp_path / "shuffled.npy")
    with PackedFile(tmp_path / "a.h5") as a, PackedFile(tmp_path / "b.h5") as b:
        assert (a.ids == b.ids).all() and (a.labels == b.labels).all() and (a.data == b.data).all()


def test_fresh_runs_with_one_seed_give_the_same_bytes_and_another_seed_does_not(few_cifar, tmp_path):
    first, again, other = (tmp_path / name for name in ("a.h5", "b.h5", "c.h5"))
    build_subset(few_cifar, first, size=50, fresh=True, **SIZES)
    build_subset(few_cifar, again, size=50, fresh=True, **SIZES)
    build_subset(few_cifar, other, size=50, fresh=True, seed=1, **SIZES)
    assert first.read_bytes() == again.read_bytes()
    with PackedFile(first) as a, PackedFile(other) as c:
        assert a.selection.attributes["embeddings"] != c.selection.attributes["embeddings"]


def test_a_smaller_size_is_a_prefix_of_a_larger(few_cifar, own, tmp_path):
    for size in (20, 60):
        build_subset(few_cifar, tmp_path / f"{size}.h5", size=size, embeddings=own)
    with PackedFile(tmp_path / "20.h5") as small, PackedFile(tmp_path / "60.h5") as large:
        assert (small.ids == large.ids[:20]).all()


def test_per_dimension_is_the_plain_union_and_its_real_size_is_reported(few_cifar, own, vectors, tmp_path):
    report = build_subset(few_cifar, tmp_path / "s.h5", per_dimension=10, embeddings=own)
    union, entries = set(), []
    for dimension in range(12):
        column = vectors[:, dimension].astype(np.float64)
        best = [i for i in sorted(range(400), key=lambda i: (-column[i], i)) if column[i] > column.min()][:10]
        union |= set(best)
        entries += best
    with PackedFile(tmp_path / "s.h5") as chosen:
        assert set(chosen.ids.tolist()) == union
    assert report.chosen == len(union) == report.per_dimension.sum()
    assert report.overlap.k == 10 and report.overlap.entries == len(entries) == 110
    assert report.overlap.distinct == len(union)
    assert report.overlap.most == max(entries.count(sample) for sample in union)
    assert report.dead == [5] and report.per_dimension[5] == 0
    union_line = dict(report._facts())["union"]
    assert union_line == f"{len(union)} distinct of 120 (10 × 12 dimensions)"


def test_what_no_dimension_has_left_is_filled_and_counted(few_cifar, tmp_path):
    values = np.zeros((400, 2), np.float32)
    values[:30, 0] = values[20:50, 1] = 1
    np.save(tmp_path / "e.npy", values)
    report = build_subset(few_cifar, tmp_path / "s.h5", size=80, embeddings=tmp_path / "e.npy")
    assert report.filled == 30 and report.per_dimension.sum() == 50 and report.chosen == 80
    with PackedFile(tmp_path / "s.h5") as chosen:
        assert set(chosen.ids[:50].tolist()) == set(range(50))
        assert (chosen.selection.dimension[50:] == -1).all()


def test_random_needs_no_embeddings_and_the_seed_decides(few_cifar, tmp_path):
    heard = Heard()
    report = build_subset(few_cifar, tmp_path / "a.h5", strategy="random", size=50, listener=heard)
    build_subset(few_cifar, tmp_path / "b.h5", strategy="random", size=50, seed=1)
    assert heard.how["train"] == heard.how["embed"] == "not needed"
    assert report.overlap is None and len(report.per_dimension) == 0
    with PackedFile(tmp_path / "a.h5") as a, PackedFile(tmp_path / "b.h5") as b:
        assert len(set(a.ids.tolist())) == 50 and set(a.ids.tolist()) != set(b.ids.tolist())
        assert a.selection.attributes["embeddings"] == ""


@pytest.mark.parametrize("strategy", ["top-activations", "random"])
def test_balanced_classes_have_equal_shares_and_the_report_counts_them(few_cifar, own, tmp_path, strategy):
    embeddings = {"embeddings": own} if strategy != "random" else {}
    report = build_subset(few_cifar, tmp_path / "s.h5", strategy=strategy, size=50, balance_classes=True, **embeddings)
    with PackedFile(tmp_path / "s.h5") as chosen:
        assert np.bincount(chosen.labels).tolist() == [5] * 10
        assert report.classes == [(name, 5, 40) for name in chosen.classes]


def test_an_encoded_set_gives_a_raw_subset_of_the_decoded_pixels(few_cifar, few_cifar_files, own, tmp_path):
    files, labels, _ = few_cifar_files
    encoded = write_encoded(tmp_path / "full.h5", files, np.array(labels))
    build_subset(encoded, tmp_path / "s.h5", size=30, embeddings=own)
    with PackedFile(few_cifar) as raw, PackedFile(tmp_path / "s.h5") as chosen:
        assert chosen.shape == (32, 32, 3)
        for row, sample in enumerate(chosen.ids):
            assert (chosen.image(row) == raw.image(int(sample))).all()


def jpeg(height: int, width: int, shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (shade, shade, shade)).save(out, "JPEG", quality=95)
    return out.getvalue()


def test_images_of_different_sizes_need_resize_and_get_it(tmp_path):
    sizes = [(40, 60), (60, 40), (50, 50), (80, 48)]
    files = [jpeg(*sizes[i % 4], shade=10 * i) for i in range(20)]
    full = write_encoded(tmp_path / "full.h5", files, np.arange(20))
    with pytest.raises(UsageError, match=r"different sizes \(.* is 40×60, .* is 60×40\).*resize=S"):
        build_subset(full, tmp_path / "s.h5", strategy="random", size=5)
    assert not (tmp_path / "s.h5").exists() and not (tmp_path / "s.h5.work").exists()
    build_subset(full, tmp_path / "s.h5", strategy="random", size=5, resize=36)
    with PackedFile(tmp_path / "s.h5") as chosen:
        assert chosen.shape == (36, 36, 3)
        for row, sample in enumerate(chosen.ids):
            assert abs(chosen.image(row).mean() - 10 * sample) < 2


def test_a_raw_set_is_resized_too_with_its_own_channels(tmp_path):
    images = np.full((6, 20, 30, 1), 7, np.uint8)
    images[3] = 90
    full = write_raw(tmp_path / "full.h5", images, np.arange(6))
    build_subset(full, tmp_path / "s.h5", strategy="random", size=6, resize=10)
    with PackedFile(tmp_path / "s.h5") as chosen:
        assert chosen.shape == (10, 10, 1)
        assert [int(chosen.image(row).max()) for row in range(6)] == [90 if i == 3 else 7 for i in chosen.ids]


def test_a_user_s_own_hdf5_file_is_taken(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 32, 32), dtype=np.uint8)
    with h5py.File(tmp_path / "mine.h5", "w") as out:
        out["x"], out["y"] = images, np.arange(40) % 4
    report = build_subset(tmp_path / "mine.h5", tmp_path / "s.h5", images="x", labels="y", size=10, **SIZES)
    assert report.chosen == 10
    with PackedFile(tmp_path / "s.h5") as chosen:
        for row, sample in enumerate(chosen.ids):
            assert (chosen.image(row) == images[sample].transpose(1, 2, 0)).all()


def test_large_photographs_are_reduced_for_the_autoencoder_and_written_at_resize(imagenet_tar, tmp_path):
    pytest.importorskip("nvidia.dali")
    import tarfile

    files = []
    with tarfile.open(imagenet_tar) as archive:
        for member in archive:
            if member.isfile() and len(files) < 24:
                files.append(archive.extractfile(member).read())
    full = write_encoded(tmp_path / "full.h5", files, np.arange(len(files)))
    report = build_subset(full, tmp_path / "s.h5", size=6, resize=64, epochs=1, batch_size=8)
    assert report.losses and np.isfinite(report.losses).all()
    with PackedFile(tmp_path / "s.h5") as chosen:
        assert chosen.shape == (64, 64, 3) and len(chosen) == 6


def test_labels_of_any_shape_are_carried_over(tmp_path, few_cifar, own):
    with PackedFile(few_cifar) as full:
        pixels = np.stack([full.image(row) for row in range(400)])
    labels = np.random.default_rng(0).random((400, 3)).astype(np.float32)
    path = write_raw(tmp_path / "full.h5", pixels, labels)
    report = build_subset(path, tmp_path / "s.h5", size=20, embeddings=own)
    assert report.classes == []
    with PackedFile(tmp_path / "s.h5") as chosen:
        assert (chosen.labels == labels[chosen.ids]).all()
    with pytest.raises(
        UsageError, match=r"balance_classes=True needs .* the labels of .* are float32 of shape \(400, 3\)"
    ):
        build_subset(path, tmp_path / "s.h5", size=20, embeddings=own, balance_classes=True)


# -- what is reused and what is done again ---------------------------------------------------------------------------


@pytest.fixture
def kept(few_cifar, tmp_path):
    out = tmp_path / "s.h5"
    build_subset(few_cifar, out, size=50, keep=True, **SIZES)
    return out


def again(few_cifar, out, **changed) -> Heard:
    heard = Heard()
    build_subset(few_cifar, out, listener=heard, **({"size": 50, "keep": True} | SIZES | changed))
    return heard


def test_with_keep_nothing_is_computed_twice_and_the_file_is_the_same(few_cifar, kept):
    before = kept.read_bytes()
    assert sorted(entry.name for entry in kept.with_name("s.h5.work").iterdir()) == [
        "autoencoder.safetensors",
        "embeddings.npy",
        "lock",
        "made-by-fastload",
        "selection.safetensors",
        "state.json",
    ]
    heard = again(few_cifar, kept)
    assert [heard.how[step] for step in ("train", "embed", "analyse")] == ["reused"] * 3
    assert heard.told[0].reused == ["train", "embed"] and not heard.notes
    assert kept.read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "redone", "named"),
    [
        ({"size": 51}, ["analyse"], "size 50 → 51"),
        ({"balance_classes": True}, ["analyse"], "balance_classes False → True"),
        ({"seed": 1}, ["train", "embed", "analyse"], "seed 0 → 1"),
        ({"embedding_size": 90}, ["train", "embed", "analyse"], "embedding_size 216 → 90"),
        ({"learning_rate": 0.05}, ["train", "embed", "analyse"], "learning_rate 0.1 → 0.05"),
        ({"resize": 16}, [], None),
    ],
)
def test_a_changed_setting_redoes_from_the_first_step_it_affects_and_says_so(few_cifar, kept, changed, redone, named):
    heard = again(few_cifar, kept, **changed)
    steps = ("train", "embed", "analyse")
    assert [step for step in steps if heard.how[step] != "reused"] == redone
    if named is None:
        assert not heard.notes
    else:
        (note,) = heard.notes
        assert note.startswith(f"{redone[0]} and what follows is done anew") and named in note


def test_another_full_set_under_the_same_name_redoes_everything(few_cifar, kept, tmp_path):
    with PackedFile(few_cifar) as full:
        pixels = np.stack([255 - full.image(row) for row in range(400)])
        other = write_raw(tmp_path / "other.h5", pixels, full.labels, classes=full.classes)
    heard = again(other, kept)
    assert heard.how["train"] == heard.how["embed"] == heard.how["analyse"] == "done"
    assert "fingerprint" in heard.notes[0]


def test_fresh_uses_nothing_of_what_was_kept(few_cifar, kept):
    heard = again(few_cifar, kept, fresh=True)
    assert set(heard.how.values()) == {"done"} and not heard.notes


@pytest.mark.parametrize(
    ("name", "redone"),
    [
        ("state.json", ["train", "embed", "analyse"]),
        ("autoencoder.safetensors", ["train"]),
        ("embeddings.npy", ["embed"]),
        ("selection.safetensors", ["analyse"]),
    ],
)
@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_a_damaged_work_file_is_made_again_with_the_same_result(few_cifar, kept, name, redone, damage):
    before = kept.read_bytes()
    path = kept.with_name("s.h5.work") / name
    size = path.stat().st_size
    with open(path, "r+b") as file:
        if damage == "cut":
            file.truncate(size // 2)
        else:
            file.seek(max(0, size // 2))
            file.write(b"\xff\x00\xfe" * min(20, size // 6))
    heard = again(few_cifar, kept)
    assert [step for step in ("train", "embed", "analyse") if heard.how[step] != "reused"] == redone
    assert any(name in note for note in heard.notes), heard.notes
    assert kept.read_bytes() == before


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", '{"format": 1, "steps": {"train": {}}}', '{"format": 9, "steps": {}}', '{"format": 1, "steps": 3}'],
)
def test_a_state_that_is_json_but_not_ours_is_not_believed(few_cifar, kept, text):
    (kept.with_name("s.h5.work") / "state.json").write_text(text)
    heard = again(few_cifar, kept)
    assert heard.how["train"] == "done" and "state.json" in heard.notes[0]


class Stop(Listener):
    """Stops like Ctrl-C when a step has come so far."""

    def __init__(self, step: str, done: int) -> None:
        self._step, self._done, self._now = step, done, ""

    def begin(self, step, total, done=0):
        self._now = step
        self.advance(done)

    def advance(self, done, detail=""):
        if self._now == self._step and done >= self._done:
            raise KeyboardInterrupt


@pytest.mark.parametrize("step", ["train", "embed", "analyse", "filter", "write"])
def test_a_run_stopped_in_any_step_leaves_no_output_and_goes_on_to_the_same_file(few_cifar, tmp_path, step):
    whole, out = tmp_path / "whole.h5", tmp_path / "s.h5"
    build_subset(few_cifar, whole, size=50, **SIZES)
    with pytest.raises(KeyboardInterrupt, match=r"s.h5.work keeps what is done; the same command goes on"):
        build_subset(few_cifar, out, size=50, listener=Stop(step, 0), **SIZES)
    assert not out.exists() and not list(tmp_path.glob(".*partial"))
    heard = Heard()
    build_subset(few_cifar, out, size=50, listener=heard, **SIZES)
    before = STEPS[: STEPS.index(step)]
    assert [name for name in ("train", "embed", "analyse") if heard.how[name] == "reused"] == [
        name for name in before if name in ("train", "embed", "analyse")
    ]
    assert out.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "s.h5.work").exists()


def test_an_old_output_stays_until_the_new_one_is_complete(few_cifar, tmp_path, own):
    out = tmp_path / "s.h5"
    build_subset(few_cifar, out, size=50, embeddings=own)
    before = out.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        build_subset(few_cifar, out, size=60, embeddings=own, listener=Stop("write", 0))
    assert out.read_bytes() == before


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 401}, r"size=401: 401 samples were asked for, but the full set has 400"),
        ({"size": 0}, r"size=0: choose at least 1"),
        ({"size": "many"}, r"size='many': it is a number of samples, or a share"),
        ({"size": "101%"}, r"size='101%': a share"),
        ({"size": 10, "per_dimension": 2}, r"give one of the two"),
        ({"per_dimension": "2"}, r"per_dimension='2'"),
        ({"batch_size": 16.0}, r"batch_size=16.0"),
        ({"learning_rate": "0.1"}, r"learning_rate='0.1'"),
        ({"threads": "1"}, r"threads='1'"),
        ({"seed": 1.5}, r"seed=1.5"),
        ({"encoder": 3}, r"encoder=3"),
        ({"embeddings": 3}, r"embeddings=3"),
        ({"batch_size": 10**9}, r"MB of memory are needed"),
        ({"embedding_size": 10**9}, r"MB of memory are needed"),
        ({"per_dimension": 401}, r"per_dimension=401: .* the 400 samples of"),
        ({"per_dimension": 2, "strategy": "random"}, r'"random".* has no dimensions for per_dimension=2; give size='),
        (
            {"strategy": "best"},
            r"'best' is unknown; choose one of combinations, kmeans, pca, penalized, random, "
            "scores, stratified, top-activations",
        ),
        ({"preset": "fast"}, r"preset='fast': there is one, 'paper'"),
        ({"preset": "paper", "epochs": 2}, r'preset="paper" sets steps and batch size'),
        ({"epochs": 0}, r"epochs=0: it must be positive"),
        ({"batch_size": 0}, r"batch_size=0"),
        ({"embedding_size": 0}, r"embedding_size=0"),
        ({"input_size": 32}, r"input_size= is for encoder="),
        ({"embeddings": "e.npy", "encoder": "a:b"}, r"embeddings= and encoder= exclude each other; give one"),
        ({"embeddings": "e.npy", "epochs": 2}, r"embeddings= takes the autoencoder's place, .* epochs="),
        ({"encoder": "a:b", "learning_rate": 0.1}, r"encoder= takes the autoencoder's place, .* learning_rate="),
        ({"threads": 0}, r"threads=0"),
        ({"seed": -1}, r"seed=-1"),
        ({"resize": 0}, r"resize=0"),
        ({"device": "gpu"}, r"device='gpu' is no device"),
    ],
)
def test_arguments_that_cannot_be_served_are_usage_errors_before_any_work(few_cifar, tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message) as caught:
        build_subset(few_cifar, tmp_path / "s.h5", **arguments)
    assert caught.value.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_cuda_where_there_is_none_is_an_error_that_says_what_is_missing(few_cifar, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    with pytest.raises(UsageError, match=r"device='cuda' was asked for, but"):
        build_subset(few_cifar, tmp_path / "s.h5", device="cuda")


def test_one_image_a_subset_and_the_set_itself_are_refused(few_cifar, own, tmp_path):
    one = write_raw(tmp_path / "one.h5", np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int64))
    with pytest.raises(DataError, match=r"one.h5: has one image"):
        build_subset(one, tmp_path / "s.h5")
    build_subset(few_cifar, tmp_path / "s.h5", size=20, embeddings=own)
    with pytest.raises(UsageError, match=r"is itself a subset \(20 samples chosen by top-activations\)"):
        build_subset(tmp_path / "s.h5", tmp_path / "t.h5", size=5)
    copy = shutil.copy(few_cifar, tmp_path / "copy.h5")
    with pytest.raises(UsageError, match=r"is the full set itself"):
        build_subset(copy, copy, size=5)


def test_a_full_set_is_never_written_over_and_an_earlier_subset_is(few_cifar, own, tmp_path):
    other = tmp_path / "other.h5"
    shutil.copy(few_cifar, other)
    before = other.read_bytes()
    with pytest.raises(UsageError, match=r"other.h5: is there already, a packed file of 400 samples and no subset"):
        build_subset(few_cifar, other, size=5, strategy="random")
    assert other.read_bytes() == before
    build_subset(few_cifar, tmp_path / "s.h5", size=20, embeddings=own)
    build_subset(few_cifar, tmp_path / "s.h5", size=5, strategy="random")
    with PackedFile(tmp_path / "s.h5") as file:
        assert len(file) == 5


def test_nan_in_embeddings_is_an_error_with_the_count_and_the_first_ids(few_cifar, vectors, tmp_path):
    bad = vectors.copy()
    bad[[17, 60, 300], [0, 3, 11]] = np.nan, np.inf, np.nan
    np.save(tmp_path / "e.npy", bad)
    with pytest.raises(DataError, match=r'NaN or infinity in 3 of 400 samples: .*exclude="17,60,300"$'):
        build_subset(few_cifar, tmp_path / "s.h5", size=20, embeddings=tmp_path / "e.npy")
    assert not (tmp_path / "s.h5").exists()


def test_a_damaged_sample_is_not_copied_into_the_subset(few_cifar, own, tmp_path):
    full = shutil.copy(few_cifar, tmp_path / "full.h5")
    build_subset(full, tmp_path / "good.h5", size=20, embeddings=own)
    with PackedFile(tmp_path / "good.h5") as good:
        victim = int(good.ids[3])
    with h5py.File(full, "r") as raw:
        offset = raw["images"].id.get_offset() + victim * 3072
    with open(full, "r+b") as out:
        out.seek(offset)
        out.write(b"\xaa\x55\xaa\x55")
    with pytest.raises(DataError, match=rf"1 of the chosen samples are damaged \(ids {victim}.*fastload verify"):
        build_subset(full, tmp_path / "s.h5", size=20, embeddings=own)
    assert not (tmp_path / "s.h5").exists()


def test_a_broken_image_is_named(few_cifar_files, own, tmp_path):
    files, labels, _ = few_cifar_files
    broken = [data[:200] if row == 123 else data for row, data in enumerate(files)]
    full = write_encoded(tmp_path / "full.h5", broken, np.array(labels))
    with pytest.raises(DataError, match=r"full.h5: row 123 \(id 123\) cannot be decoded"):
        build_subset(full, tmp_path / "s.h5", strategy="random", size=400)


def test_a_second_process_on_the_same_output_is_refused_with_its_number(few_cifar, tmp_path):
    out = tmp_path / "s.h5"
    refused = pytest.raises(UsageError, match=r"another build-subset \(process \d+\) is at work on .*s.h5")
    with WorkFolder(out), refused:
        build_subset(few_cifar, out, strategy="random", size=5)
    assert not (tmp_path / "s.h5.work").exists()
    build_subset(few_cifar, out, strategy="random", size=5)


def test_what_does_not_fit_is_refused_before_it_starts_and_the_needs_are_told(few_cifar, tmp_path, monkeypatch):
    heard = Heard()
    build_subset(few_cifar, tmp_path / "s.h5", listener=heard, size=50, **SIZES)
    (told,) = heard.told
    assert set(told.seconds) == {"train", "embed", "analyse", "write"} and told.seconds["train"] > 0
    assert told.disk > 400 * 216 * 4 + 50 * 3072 and told.disk_free > 0
    assert told.memory_available is None or told.memory_available > 0
    # The last block's activations alone, twice.
    assert told.memory > 2 * 32 * (32 * 24 * 24) * 4
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": told.disk - 1}))
    with pytest.raises(DataError, match=r"MB free, but the subset and its work folder need about \d+ MB"):
        build_subset(few_cifar, tmp_path / "t.h5", size=50, **SIZES)
    monkeypatch.undo()
    monkeypatch.setattr(estimate, "available_memory", lambda: 1 << 20)
    with pytest.raises(UsageError, match=r"about \d+ MB of memory are needed, but 1 MB are available.*batch_size="):
        build_subset(few_cifar, tmp_path / "t.h5", size=50, **SIZES)
    assert not (tmp_path / "t.h5").exists() and not (tmp_path / "t.h5.work").exists()


def test_memory_needed_grows_with_the_batch_and_refuses_the_device_s_too():
    told = Estimate(disk=1, disk_free=2, device_memory=3 << 20, device_memory_free=2 << 20, memory_available=None)
    with pytest.raises(UsageError, match=r"3 MB of the device's memory are needed, but 2 MB are free"):
        told.check(None)


# -- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "count", "expected"),
    [
        ("8.64%", 50_000, 4320),
        (4320, 50_000, 4320),
        ("4320", 50_000, 4320),
        ("4,320", 50_000, 4320),
        (0.0864, 50_000, 4320),
        ("100%", 7, 7),
        ("0.01%", 7, 1),
        ("50%", 5, 3),
        (1.0, 9, 9),
        (1, 9, 1),
    ],
)
def test_sizes_are_numbers_or_shares(size, count, expected):
    assert parse_size(size, count) == expected


@given(st.integers(1, 10**7), st.integers(1, 10_000))
def test_a_share_in_hundredths_of_a_percent_rounds_exactly(count, hundredths):
    # Halves go up, in integers: floor(count · hundredths / 10,000 + 1/2).
    expected = max(1, (2 * count * hundredths + 10_000) // 20_000)
    assert parse_size(f"{hundredths / 100:.2f}%", count) == expected


def test_durations_read_as_people_say_them():
    assert [duration_text(s) for s in (0.04, 9.94, 9.97, 59.6, 200, 7500)] == [
        "0.0 s",
        "9.9 s",
        "10 s",
        "1 min 00 s",
        "3 min 20 s",
        "2 h 05 min",
    ]
