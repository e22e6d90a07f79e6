"""Open folders and files: their descriptors are given back once, when closed or when nobody holds them any more."""

from __future__ import annotations

import os

import pytest

from fastload.common.folder_files import FolderFile, OpenFolder
from fastload.embedding.matrix_file import UnchangedFile


def opened(path):
    """How many descriptors of this process lead to a path."""
    links = [f"/proc/self/fd/{one}" for one in os.listdir("/proc/self/fd")]
    return sum(os.path.exists(link) and os.path.samefile(link, path) for link in links)


def test_a_folder_is_given_back_once_when_it_is_closed(tmp_path):
    folder = OpenFolder(tmp_path)
    file = folder.file("x")
    assert opened(tmp_path) == 1 and not file.exists()
    number = folder.descriptor
    folder.close()
    assert opened(tmp_path) == 0 and folder.descriptor == -1
    other = os.open(tmp_path, os.O_RDONLY)  # the number is given again
    folder.close()
    del folder
    assert other == number and opened(tmp_path) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.exists()
    os.close(other)


def test_a_folder_stays_open_for_as_long_as_a_file_of_it_is_held(tmp_path):
    file = FolderFile.of(tmp_path / "x")
    file.write(b"content")
    assert opened(tmp_path) == 1 and file.read() == b"content"
    del file
    assert opened(tmp_path) == 0


def test_a_file_that_is_to_stay_unchanged_is_open_until_it_is_dropped(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"content")
    file = UnchangedFile(str(path), os.open(path, os.O_RDONLY))
    file.check()
    assert opened(path) == 1
    del file
    assert opened(path) == 0
