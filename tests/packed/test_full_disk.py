"""A disk that fills, or fails, at any moment of writing leaves the old file or a whole new one, and no crash."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from full_disk_program import CASES
from packs import noise_images, write_raw
from places import ROOT

from fastload.command.verify import verify_file
from fastload.common.replacing import Replacement, replace_file
from fastload.errors import DataError
from fastload.packed.file import PackedFile, PackedWriter

ALONE = ["unshare", "--user", "--map-root-user", "--mount"]


def may_mount(folder: Path) -> bool:
    try:
        done = subprocess.run([*ALONE, "mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, timeout=20)
    except OSError:
        return False
    return done.returncode == 0


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> dict[str, tuple[int, int]]:
    """How many steps of each case failed, and how many gave a file."""
    folder, scratch = tmp_path_factory.mktemp("disk"), tmp_path_factory.mktemp("scratch")
    if not may_mount(folder):
        pytest.skip("no tmpfs may be mounted here, not even in a namespace of its own")
    program = [sys.executable, ROOT / "tests" / "full_disk_program.py", folder, scratch]
    found = subprocess.run(
        [*ALONE, *program], capture_output=True, text=True, timeout=240, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert (found.returncode, found.stderr) == (0, ""), (found.returncode, found.stdout, found.stderr[-3000:])
    return {case: (int(failed), int(done)) for case, failed, done in map(str.split, found.stdout.splitlines())}


@pytest.mark.parametrize("case", CASES)
def test_a_disk_that_fills_at_any_step_leaves_the_old_file_or_a_whole_new_one(filled, case: str) -> None:
    failed, done = filled[case]
    assert failed > 3 and done > 3


def write(path: Path) -> Path:
    images = noise_images(4, 2, 2)
    return write_raw(path, images, np.arange(4), names=["a", "b", "c", "d"], classes=["x", "y", "z", "w"])


def test_a_disk_that_fails_at_any_call_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.h5")
    before = path.read_bytes()
    calls = {"pwrite": os.pwrite, "fsync": os.fsync, "posix_fallocate": os.posix_fallocate, "replace": os.replace}
    for name, real in calls.items():
        for bad in range(1000):
            seen = iter(range(1000))

            def failing(*arguments, seen=seen, bad=bad, real=real):
                if next(seen) == bad:
                    raise OSError(errno.EIO, "Input/output error")
                return real(*arguments)

            with monkeypatch.context() as patched:
                patched.setattr(os, name, failing)
                try:
                    write(path)
                except DataError as error:
                    assert "cannot be written (Input/output error)" in str(error)
                    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.h5"]
                else:
                    break  # it was not called so often
        assert bad > 0, f"{name} was never called"


def test_what_the_disk_says_it_has_written_and_has_not_is_found_before_the_rename(tmp_path: Path, monkeypatch) -> None:
    path = write(tmp_path / "x.h5")
    before, real, found = path.read_bytes(), os.pwrite, 0
    for bad in range(4, 1000):  # the images come first, and are read again for the fingerprint
        seen = iter(range(1000))

        def lying(descriptor: int, data, position: int, seen=seen, bad=bad) -> int:
            return len(data) if next(seen) == bad else real(descriptor, data, position)

        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", lying)
            try:
                write(path)
            except DataError as error:
                assert "reads back otherwise" in str(error) or "ends at byte" in str(error)
                assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.h5"]
                found += 1
            else:
                assert verify_file(path, progress=False).ok  # zeros were meant, or there was no such call
        if next(seen) <= bad:
            break
    assert found > 10


# -- what is replaced ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o666])
def test_a_replaced_file_passes_its_mode_on(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "x.h5")
    path.chmod(mode)
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    replace_file(path, b"anything")
    assert stat.S_IMODE(path.stat().st_mode) == mode and path.read_bytes() == b"anything"


def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert stat.S_IMODE(write(tmp_path / "x.h5").stat().st_mode) == 0o640
    finally:
        os.umask(before)


def test_what_a_link_leads_to_is_replaced_with_its_mode(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    path = write(tmp_path / "there" / "x.h5")
    path.chmod(0o600)
    (tmp_path / "link.h5").symlink_to(path)
    write(tmp_path / "link.h5")
    assert (tmp_path / "link.h5").is_symlink() and stat.S_IMODE(path.stat().st_mode) == 0o600


def test_only_a_dead_writer_s_own_regular_files_are_removed(tmp_path: Path) -> None:
    """A FIFO would be waited for, and what a link leads to, a folder, or another's file is nobody's to remove."""
    orphan = tmp_path / ".x.h5.0123abcd.partial"
    orphan.write_bytes(b"dead")
    os.mkfifo(tmp_path / ".x.h5.aaaaaaaa.partial")
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / ".x.h5.bbbbbbbb.partial").symlink_to(tmp_path / "precious")
    (tmp_path / ".x.h5.cccccccc.partial").mkdir()
    (tmp_path / ".x.h5.dddddddd.partial").hardlink_to(tmp_path / "precious")
    (tmp_path / ".x.h5.my-notes.partial").write_bytes(b"mine")
    (tmp_path / ".x.h5.x.partial").write_bytes(b"mine")
    kept = set(os.listdir(tmp_path)) - {orphan.name}
    write(tmp_path / "x.h5")
    assert set(os.listdir(tmp_path)) == kept | {"x.h5"} and (tmp_path / "precious").read_bytes() == b"precious"


def test_two_writers_of_one_name_do_not_disturb_each_other(tmp_path: Path) -> None:
    first = PackedWriter(tmp_path / "x.h5", shape=(1, 1, 1, 1), source={}).__enter__()
    first.write(0, b"1")
    second = PackedWriter(tmp_path / "x.h5", shape=(1, 1, 1, 1), source={}).__enter__()
    second.write(0, b"2")
    second.__exit__(None, None, None)
    assert PackedFile(tmp_path / "x.h5").read(0) == b"2"
    first.__exit__(None, None, None)
    assert PackedFile(tmp_path / "x.h5").read(0) == b"1" and os.listdir(tmp_path) == ["x.h5"]


def test_a_writer_whose_new_file_is_taken_for_an_orphan_makes_another(tmp_path: Path, monkeypatch) -> None:
    real, taken = os.open, []

    def stolen(path, *arguments, **more):
        descriptor = real(path, *arguments, **more)
        if str(path).endswith(".partial") and not taken:
            taken.append(path)
            os.unlink(path)  # a neighbour, before the lock is on it
        return descriptor

    monkeypatch.setattr(os, "open", stolen)
    replacement = Replacement(tmp_path / "x")
    replacement.write(0, b"x")
    replacement.publish()
    assert taken and (tmp_path / "x").read_bytes() == b"x"
