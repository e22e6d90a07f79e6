"""The command that an error tells for installing a missing part: right where this fastload came from."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

from fastload import install
from fastload.install import DISTRIBUTION, cuda_extra, install_command

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


class Installed:
    """A distribution as pip leaves it, with the record of where it came from."""

    def __init__(self, record: dict | None) -> None:
        self.record = record

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.record is None else json.dumps(self.record)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def put(record: dict | None) -> None:
        monkeypatch.setattr(install, "_TREE", tmp_path)  # as in site-packages: no pyproject.toml beside the package
        monkeypatch.setattr(install.metadata, "distribution", lambda name: Installed(record))

    return put


def test_in_a_source_tree_the_command_is_for_the_tree() -> None:
    assert shlex.split(install_command("cuda13")) == ["pip", "install", "-e", f"{ROOT}[cuda13]"]
    assert shlex.split(install_command()) == ["pip", "install", "-e", str(ROOT)]


def test_a_tree_whose_path_needs_quoting_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "it's a tree"
    tree.mkdir()
    (tree / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    monkeypatch.setattr(install, "_TREE", tree)
    assert shlex.split(install_command("demo")) == ["pip", "install", "-e", f"{tree}[demo]"]


def test_from_an_index_the_command_names_the_distribution(installed) -> None:
    installed(None)
    assert install_command("cuda13") == "pip install 'torch-fastload[cuda13]'"
    assert install_command() == "pip install torch-fastload"


def test_from_a_folder_or_a_repository_the_command_names_it(installed, tmp_path: Path) -> None:
    installed({"url": ROOT.as_uri(), "dir_info": {}})
    assert shlex.split(install_command("demo")) == ["pip", "install", f"{ROOT}[demo]"]
    installed({"url": (tmp_path / "gone").as_uri(), "dir_info": {}})
    assert install_command("demo") == "pip install 'torch-fastload[demo]'"
    installed({"url": "https://host/fastload.git", "vcs_info": {"vcs": "git", "commit_id": "0"}})
    assert shlex.split(install_command("demo"))[2] == "torch-fastload[demo] @ git+https://host/fastload.git"
    installed({"url": "file:///tmp/torch_fastload-0.1.0-py3-none-any.whl", "archive_info": {}})
    assert install_command("demo") == "pip install 'torch-fastload[demo]'"


@pytest.mark.parametrize("cuda, extra", [("12.8", "cuda12"), ("13.0", "cuda13"), (None, "cuda13")])
def test_the_cuda_extra_is_the_one_for_the_installed_torch(monkeypatch: pytest.MonkeyPatch, cuda, extra) -> None:
    monkeypatch.setattr("torch.version.cuda", cuda)
    assert cuda_extra() == extra and extra in PROJECT["optional-dependencies"]


def test_the_distribution_has_one_name() -> None:
    assert PROJECT["name"] == DISTRIBUTION
    assert any(one.startswith(DISTRIBUTION + "[") for one in PROJECT["optional-dependencies"]["test"])


def test_no_text_of_the_program_names_an_install_command_of_its_own() -> None:
    """`fastload` on PyPI is another program, and a tree is not installed by a name."""
    for folder in ("fastload", "kernels", "bench"):
        for path in (ROOT / folder).rglob("*.py"):
            for line in path.read_text().splitlines():
                assert not re.search(r"pip install [^\n]*\b(torch-)?fastload\b", line) or path.name == "install.py", (
                    f"{path}: {line}"
                )
