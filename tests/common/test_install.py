"""The command that an error tells for installing a missing part: right where this fastload came from."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from places import ROOT

from fastload.common import install
from fastload.common.device import LEAST_DRIVERS
from fastload.common.install import DISTRIBUTION, cuda_install_command, install_command

README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


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


@pytest.mark.parametrize(
    "torch, cuda, command",
    [
        ("2.4.0", "12.1", install_command("cuda12")),
        ("2.10.0+cu128", "12.8", install_command("cuda12")),
        ("2.9.1+cpu", None, install_command("cuda12")),
        ("2.11.0", "13.0", install_command("cuda13")),
        ("2.13.0+cpu", None, install_command("cuda13")),
        ("2.12.0+cu129", "12.9", "pip install nvidia-dali-cuda120 'numba-cuda[cu12]'"),
    ],
)
def test_the_cuda_parts_are_those_for_the_installed_torch(
    monkeypatch: pytest.MonkeyPatch, torch, cuda, command
) -> None:
    monkeypatch.setattr("torch.__version__", torch)
    monkeypatch.setattr("torch.version.cuda", cuda)
    assert cuda_install_command() == command


def test_each_cuda_extra_holds_to_the_torches_that_are_built_for_it() -> None:
    assert "torch<2.11" in EXTRAS["cuda12"] and "torch>=2.11" in EXTRAS["cuda13"]
    named = [one.split(">=")[0] for one in EXTRAS["cuda12"] if not one.startswith("torch")]
    assert named == ["nvidia-dali-cuda120", "numba-cuda[cu12]"]  # those that cuda_install_command names by themselves


def test_the_readme_s_table_of_drivers_is_the_one_that_errors_go_by() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in README.splitlines() if line.startswith("|")]
    for cuda, least in LEAST_DRIVERS.items():
        row = next(row for row in rows if row[2:] and row[2] == f"CUDA {cuda}")
        assert row[0] == f"{least} or newer" and f"`cuda{cuda}`" in row[3]


def test_the_readme_installs_extras_that_exist_and_by_no_name_that_is_not_ours() -> None:
    extras = {one for found in re.findall(r"'\.\[([\w,-]+)\]'", README) for one in found.split(",")}
    assert {"cuda13", "demo"} <= extras <= set(EXTRAS)
    assert "fastload[" not in README.replace(f"{DISTRIBUTION}[", "")


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


# -- requirements ----------------------------------------------------------------------------------------------------


def tool(name: str) -> ModuleType:
    """A program of tools/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def loaded_by(path: Path) -> set[str]:
    """The names of the packages and modules that a file imports when it is loaded."""
    names: list[str] = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.append(node.module or "")
    return {name.partition(".")[0] for name in names}


def with_helpers(tests: Iterable[Path]) -> set[Path]:
    """Test files, and the modules beside them that they import."""
    found, left = set(), list(tests)
    while left:
        path = left.pop()
        found.add(path)
        helpers = {ROOT / "tests" / f"{name}.py" for name in loaded_by(path)}
        left += [helper for helper in helpers - found if helper.exists()]
    return found


def imported(paths: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """The packages of others that modules import when they are loaded."""
    for path in paths:
        for package in sorted(loaded_by(path) - {"fastload"} - sys.stdlib_module_names):
            if not (ROOT / "tests" / f"{package}.py").exists():
                yield package, path


def distributions(requirements: Iterable[str]) -> set[str]:
    return {re.match(r"[\w.-]+", one)[0].lower() for one in requirements}  # type: ignore[index]


def named_by(package: str) -> set[str]:
    return {one.lower() for one in all_packages().get(package, [package])}


all_packages = cache(metadata.packages_distributions)


def test_every_package_that_a_module_loads_at_once_is_a_dependency() -> None:
    allowed = distributions(PROJECT["dependencies"])
    for package, path in imported([*(ROOT / "fastload").rglob("*.py"), *(ROOT / "kernels").glob("*.py")]):
        assert named_by(package) & allowed, f"{path} imports {package}"


def test_what_gpu_check_imports_first_is_all_that_its_tests_and_parts_load() -> None:
    """Or it would take its short way, without installing, and fail in the middle."""
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text()]
    files = [*(ROOT / "bench").glob("*.py"), *(ROOT / "kernels").glob("*.py"), *with_helpers(tests)]
    wanted = {package for package, _ in imported(files)}
    assert {"PIL", "hypothesis", "numba", "pytest", "torch"} <= wanted
    program = (
        "import sys; from fastload.bench import gpu_check; gpu_check.import_all(); "
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    wanted |= {named.partition(">")[0].replace("pillow", "PIL") for named in PROJECT["dependencies"]} | {"numba_cuda"}
    assert wanted <= set(done.stdout.split()) | {"typer"}  # the command's own


def test_the_constraints_leave_nvidia_s_packages_to_those_that_ask_for_them() -> None:
    pins = [line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    assert [one for one in pins if one.startswith(("cuda-", "nvidia-"))] == ["nvidia-dali-cuda130"]
    assert distributions(PROJECT["dependencies"]) <= {one.lower() for one in pins}


# -- tools/check_resolves.py, which `make lint` runs -----------------------------------------------------------------


def answers(monkeypatch: pytest.MonkeyPatch, probe: int, cases: int) -> ModuleType:
    """The tool with a registry that answers as uv's exit codes say: 0, 1 (does not resolve), 2 (no answer)."""
    check = tool("check_resolves")

    def resolve(arguments: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
        code = probe if arguments == ["-"] else cases
        return subprocess.CompletedProcess(arguments, code, "", "error: an answer\n  cause: the last line")

    monkeypatch.setattr(check, "_resolve", resolve)
    return check


def test_without_a_registry_the_check_is_skipped_and_says_so(monkeypatch, capsys) -> None:
    assert answers(monkeypatch, probe=2, cases=2).main() == 0
    assert capsys.readouterr().out == ("check_resolves: skipped, no package registry answers (cause: the last line)\n")


def test_what_does_not_resolve_fails_with_uv_s_words(monkeypatch, capsys) -> None:
    check = answers(monkeypatch, probe=0, cases=1)
    assert check.main() == 1
    told = capsys.readouterr().out
    assert told.count("does not resolve") == len(check.CASES)
    assert "[cuda13,test] with constraints.txt, Python 3.12, aarch64: does not resolve\nerror: an answer" in told


def test_a_registry_that_stops_answering_is_no_failure(monkeypatch, capsys) -> None:
    assert answers(monkeypatch, probe=0, cases=2).main() == 0
    assert "skipped, the registry did not answer" in capsys.readouterr().out


def test_all_pythons_that_the_project_names_are_checked() -> None:
    named = {one.rpartition(" ")[2] for one in PROJECT["classifiers"] if re.fullmatch(r".*:: 3\.\d+", one)}
    assert named and named <= set(tool("check_resolves").PYTHONS)
