"""The work folder: only what fastload made is written to and removed, whatever stands under its names."""

from __future__ import annotations

import os
import stat

import numpy as np
import pytest
from packs import noise_images, write_raw

from fastload.common.folder_files import FolderFile, OpenFolder
from fastload.errors import DataError, UsageError
from fastload.subset.build import build_subset
from fastload.subset.work_folder import MARK, WorkFolder


@pytest.fixture
def full(tmp_path):
    path = write_raw(tmp_path / "full.h5", noise_images(60, 8, 8), np.arange(60) % 3)
    np.save(tmp_path / "e.npy", np.random.default_rng(0).random((60, 4), np.float32))
    return path


def build(full, out, **settings):
    given = {"strategy": "top-activations", "size": 10, "embeddings": full.with_name("e.npy"), "threads": 1}
    return build_subset(full, out, **given, **settings)


def contents(folder) -> dict[str, bytes | None]:
    return {
        str(entry.relative_to(folder)): entry.read_bytes() if entry.is_file() else None for entry in folder.rglob("*")
    }


def foreign_folder(place):
    place.mkdir()
    (place / "thesis.txt").write_text("three years")
    (place / "state.json").write_text("{}")
    (place / "lock").write_text("mine")
    (place / "inner").mkdir()
    (place / "inner" / "embeddings.npy").write_text("mine")
    return place


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    "kind", ["folder", "empty folder", "link to a folder", "link to a work folder", "file", "broken"]
)
def test_what_fastload_did_not_make_is_refused_and_left_as_it_is(full, tmp_path, kind, fresh):
    place, other = tmp_path / "s.h5.work", tmp_path / "elsewhere"
    if kind == "folder":
        foreign_folder(place)
    elif kind == "empty folder":
        place.mkdir()
    elif kind == "link to a folder":
        place.symlink_to(foreign_folder(other))
    elif kind == "link to ours":
        build(full, tmp_path / "t.h5", keep=True)
        place.symlink_to(tmp_path / "t.h5.work")
    elif kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to(tmp_path / "nowhere")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"s.h5.work: (was not made by fastload|is a link|is no folder), so"):
        build(full, tmp_path / "s.h5", fresh=fresh)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["state.json", "state.json.partial", "selection.safetensors", "selection.safetensors.partial"]
)
@pytest.mark.parametrize("kind", ["link", "hard link", "fifo", "broken link"])
def test_links_inside_are_never_followed_and_what_they_lead_to_stays(full, tmp_path, name, kind):
    out, victim = tmp_path / "s.h5", tmp_path / "victim"
    build(full, out, keep=True)
    before, work = out.read_bytes(), tmp_path / "s.h5.work"
    victim.write_text("precious" * 1000)
    (work / name).unlink(missing_ok=True)
    if kind == "link":
        (work / name).symlink_to(victim)
    elif kind == "hard link":
        os.link(victim, work / name)
    elif kind == "fifo":
        os.mkfifo(work / name)
    else:
        (work / name).symlink_to(tmp_path / "made")
    build(full, out, keep=True, balance_classes=True)
    build(full, out)
    assert victim.read_text() == "precious" * 1000 and not (tmp_path / "made").exists()
    assert out.read_bytes() == before and not work.exists()


@pytest.mark.parametrize("kind", ["link", "hard link", "fifo", "folder"])
def test_a_lock_that_is_no_plain_file_is_refused(full, tmp_path, kind):
    work, victim = tmp_path / "s.h5.work", tmp_path / "victim"
    build(full, tmp_path / "s.h5", keep=True)
    victim.write_text("precious")
    (work / "lock").unlink()
    if kind == "link":
        (work / "lock").symlink_to(victim)
    elif kind == "hard link":
        os.link(victim, work / "lock")
    elif kind == "fifo":
        os.mkfifo(work / "lock")
    else:
        (work / "lock").mkdir()
    with pytest.raises((UsageError, DataError), match=r"s.h5.work: (holds a 'lock'|cannot be made)"):
        build(full, tmp_path / "s.h5")
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("kind", ["missing", "link", "other words", "fifo"])
def test_a_mark_counts_only_as_fastload_s_own_plain_file(full, tmp_path, kind):
    work = tmp_path / "s.h5.work"
    build(full, tmp_path / "s.h5", keep=True)
    moved = (work / MARK).rename(tmp_path / "mark")
    if kind == "link":
        (work / MARK).symlink_to(moved)
    elif kind == "other words":
        (work / MARK).write_bytes(moved.read_bytes() + b"x")
    elif kind == "fifo":
        os.mkfifo(work / MARK)
    with pytest.raises(UsageError, match="was not made by fastload"):
        build(full, tmp_path / "s.h5")


@pytest.mark.parametrize("settings", [{}, {"fresh": True}])
def test_what_others_put_into_the_work_folder_stays_and_is_named(full, tmp_path, settings):
    work, notes = tmp_path / "s.h5.work", []
    build(full, tmp_path / "s.h5", keep=True)
    (work / "notes.txt").write_text("mine")
    (work / "embeddings.npy").mkdir()
    (work / "embeddings.npy" / "deep").write_text("mine")

    from fastload.subset.listener import Listener

    class Noting(Listener):
        def note(self, text):
            notes.append(text)

    for _ in range(2):  # the mark stays too, so the next run is served
        build(full, tmp_path / "s.h5", listener=Noting(), **settings)
        assert contents(work).keys() == {"notes.txt", "embeddings.npy", "embeddings.npy/deep", MARK, "lock"}
        assert "holds what is not fastload's (embeddings.npy, notes.txt), so it stays" in notes.pop()


def test_a_new_work_folder_has_the_usual_rights_and_goes_with_its_last_step(tmp_path):
    mask = os.umask(0o027)
    try:
        with WorkFolder(tmp_path / "s.h5") as work:
            assert stat.S_IMODE(work.path.stat().st_mode) == 0o750
            assert [entry.name for entry in tmp_path.iterdir()] == ["s.h5.work"]
    finally:
        os.umask(mask)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_removed_while_it_is_opened_is_made_anew(tmp_path, monkeypatch):
    opened = FolderFile.open_or_create
    removed = []

    def remove_first(self):
        if not removed:
            removed.append(self.folder.path)
            with WorkFolder(tmp_path / "s.h5"):  # takes the lock, and leaves nothing
                pass
        return opened(self)

    monkeypatch.setattr(FolderFile, "open_or_create", remove_first)
    with WorkFolder(tmp_path / "s.h5") as work:
        assert removed and (work.path / MARK).exists()


def test_a_write_is_whole_or_not_at_all(tmp_path, monkeypatch):
    file = OpenFolder(tmp_path).file("x")
    file.write(b"old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        file.write(b"new" * 1000)
    assert file.read() == b"old" and [entry.name for entry in tmp_path.iterdir()] == ["x"]
