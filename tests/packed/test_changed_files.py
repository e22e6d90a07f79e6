"""A file that is written over while it is in use is an error at the next batch, however it is read; one that is only
renamed, removed or replaced is read on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from packs import noise_images, write_raw

from fastload import Augment, DataError, TwoPhaseLoader
from fastload.command.verify import verify_file
from fastload.feeds.evaluation import EvaluationLoader
from fastload.feeds.feed import stream
from fastload.packed.file import PackedFile, damaged_rows
from fastload.packed.guarded_map import GuardedMap
from fastload.packed.reader import SampleReader
from fastload.packed.set import open_packed

COUNT = 96
AUGMENT = Augment.paper(24)


def written(path: Path, seed: int = 0) -> Path:
    return write_raw(path, noise_images(COUNT, seed=seed), np.arange(COUNT) % 10)


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A packed file, and beside it another of the same size."""
    written(tmp_path / "other.h5", seed=1)
    return written(tmp_path / "full.h5")


def other(path: Path) -> Path:
    return path.parent / "other.h5"


def copied(path: Path) -> None:
    shutil.copyfile(other(path), path)


def copied_and_its_time_set_back(path: Path) -> None:
    before = path.stat()
    shutil.copyfile(other(path), path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def truncated_and_regrown(path: Path) -> None:
    size = path.stat().st_size
    os.truncate(path, 4096)
    os.truncate(path, size)


def some_images_written_over(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(4096 + 10 * 3072)
        file.write(bytes(30 * 3072))


CHANGES = [copied, copied_and_its_time_set_back, truncated_and_regrown, some_images_written_over]


def renamed(path: Path) -> None:
    path.rename(path.parent / "moved.h5")


def removed(path: Path) -> None:
    path.unlink()


def replaced(path: Path) -> None:
    os.replace(other(path), path)


def packed_anew(path: Path) -> None:
    written(path, seed=2)


def given_another_mode(path: Path) -> None:
    path.chmod(0o600)


def linked(path: Path) -> None:
    path.with_name("link.h5").hardlink_to(path)


HARMLESS = [renamed, removed, replaced, packed_anew, given_another_mode, linked]


def loader(full: Path, **changes: object) -> TwoPhaseLoader:
    settings = {"batch_size": 16, "steps": 400, "swap": 0, "augment": AUGMENT, "device": "cpu", "resident_budget": 0}
    return TwoPhaseLoader(full, **(settings | changes))


def from_loader(full: Path, change, **changes: object) -> None:
    with loader(full, prefetch=1, **changes) as batches:
        for step, _ in enumerate(batches):
            if step == 1:
                change(full)
            if step == 30:
                return


def from_the_map(full: Path, change) -> None:
    from_loader(full, change, engine="fused")


def with_pread(full: Path, change) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(GuardedMap, "open", lambda place: None)
        from_loader(full, change, engine="fused")


def with_dali(full: Path, change) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from_loader(full, change, engine="dali")


def by_a_plain_stream(full: Path, change) -> None:
    with PackedFile(full) as file:
        for step, _ in enumerate(stream(file, AUGMENT, batch_size=8, steps=40, phase=2)):
            if step == 1:
                change(full)


def for_evaluation(full: Path, change) -> None:
    with EvaluationLoader(full, AUGMENT, batch_size=8) as batches:
        for _ in range(3):
            for step, _ in enumerate(batches):
                if step == 1 and change is not None:
                    change(full)
                    change = None


def sample_by_sample(full: Path, change) -> None:
    with PackedFile(full) as file:
        file.read(3)
        change(full)
        file.read(3)


def of_a_set(full: Path, change) -> None:
    written(full.parent / "second.h5")
    with open_packed([full.parent / "second.h5", full]) as file:
        reader = SampleReader(file)
        out = np.empty(2 * 3072, np.uint8)
        reader.read(np.array([0, COUNT + 1]), out)
        change(full)
        reader.read(np.array([0, 1]), out)
        reader.close()


def into_memory(full: Path, change) -> None:
    with PackedFile(full) as file:
        reader = SampleReader(file)
        change(full)
        reader.read_all(np.empty(file.nbytes, np.uint8))
        reader.close()


def when_resuming(full: Path, change) -> None:
    with loader(full) as batches:
        state = batches.state_dict()
        change(full)
        batches.load_state_dict(state)


def to_verify(full: Path, change) -> None:
    with PackedFile(full) as file:
        change(full)
        damaged_rows(file)


WAYS = [
    from_the_map,
    with_pread,
    with_dali,
    by_a_plain_stream,
    for_evaluation,
    sample_by_sample,
    of_a_set,
    into_memory,
    when_resuming,
    to_verify,
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_written_over_is_an_error(full: Path, way, change) -> None:
    with pytest.raises(DataError, match=r"full\.h5: .*(was changed while it was in use|no longer be read)"):
        way(full, change)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("change", HARMLESS)
def test_a_file_that_is_renamed_removed_or_replaced_is_read_on(full: Path, way, change) -> None:
    way(full, change)


def test_a_user_s_own_file_is_watched_too(tmp_path: Path) -> None:
    path = written(tmp_path / "full.h5")
    written(tmp_path / "other.h5", seed=1)
    with PackedFile(path, images="images", labels="labels") as file:
        file.read(0)
        given_another_mode(path)
        assert file.read(0) == noise_images(COUNT)[0].tobytes()
        copied_and_its_time_set_back(path)
        with pytest.raises(DataError, match="was changed while it was in use"):
            file.read(0)


def test_of_many_files_all_are_looked_at_once_a_second(tmp_path: Path, monkeypatch) -> None:
    images = noise_images(20, 4, 4)
    for row in range(20):
        write_raw(tmp_path / f"{row:02}.h5", images[row : row + 1], np.arange(1), ids=np.array([row]))
    now = [100.0]
    monkeypatch.setattr("fastload.packed.watching.time.monotonic", lambda: now[0])
    with open_packed(f"{tmp_path}/*.h5") as file:
        reader, out = SampleReader(file), np.empty(48, np.uint8)
        reader.read(np.array([0]), out)
        some = tmp_path / "07.h5"
        os.truncate(some, 4096)
        reader.read(np.array([0]), out)  # within the same second
        now[0] += 1.01
        with pytest.raises(DataError, match=r"07\.h5: was changed"):
            reader.read(np.array([0]), out)
        reader.close()


def test_a_change_costs_nothing_where_there_is_none(full: Path) -> None:
    """A batch's check is one fstat: no sample is read again."""
    with PackedFile(full) as file:
        calls = []
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("fastload.packed.watching.digest", lambda data: calls.append(data))
            for _ in range(5):
                file.check_unchanged()
        assert not calls


def test_verify_says_so_too(full: Path, monkeypatch) -> None:
    read, done = PackedFile.read, []

    def change_after_ten(self, row):
        if row == 10 and not done:
            done.append(copied(full))
        return read(self, row)

    monkeypatch.setattr(PackedFile, "read", change_after_ten)
    with pytest.raises(DataError, match="was changed while it was in use"):
        verify_file(full, progress=False)
