"""Machine code is kept from process to process, as long as its sources are the same and where there is a place."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from numba.core import config
from places import ROOT

from fastload.kernels import compiling

KERNELS = ROOT / "kernels"
OTHERS = [*(ROOT / "fastload").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]

HELPER = """
from numba.extending import register_jitable

@register_jitable
def step(x):
    return x + 1
"""
CALLER = """
from .compiling import njit
from .helper import step

@njit(nogil=True)
def twice(x):
    return step(step(x))

def adding(k):
    def add(x):
        return x + k
    return njit(nogil=True)(add)
"""
TWICE = """
from fastload.kernels.caller import twice
print(twice(5), twice.stats.cache_hits.total(), twice.stats.cache_path)
"""


@pytest.fixture
def installed(tmp_path):
    """A package with the compiling of the real one, and a function whose helper lies in another file."""
    kernels = tmp_path / "site" / "fastload" / "kernels"
    kernels.mkdir(parents=True)
    (kernels.parent / "__init__.py").write_text("")
    (kernels / "__init__.py").write_text("")
    (kernels / "compiling.py").write_bytes((KERNELS / "compiling.py").read_bytes())
    (kernels / "helper.py").write_text(HELPER)
    (kernels / "caller.py").write_text(CALLER)
    return kernels


def run(program: str, site: Path, **variables: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1", "NUMBA_CACHE_DIR": ""}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=site,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def twice(kernels: Path, **variables: str) -> tuple[int, int, str]:
    """twice(5), how often its code was loaded, and from where."""
    value, hits, path = run(TWICE, kernels.parent.parent, **variables).split(maxsplit=2)
    return int(value), int(hits), path.strip()


def test_code_is_kept_and_an_edit_of_a_helper_in_another_file_is_seen(installed):
    assert twice(installed)[:2] == (7, 0)
    assert twice(installed)[:2] == (7, 1)
    before = (installed / "helper.py").stat()
    (installed / "helper.py").write_text(HELPER.replace("+ 1", "+ 2"))
    os.utime(installed / "helper.py", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert twice(installed)[:2] == (9, 0)
    (installed / "helper.py").write_text(HELPER)
    assert twice(installed)[:2] == (7, 1)


ADDING = """
import sys, time
from numba.core.caching import IndexDataCacheFile
from fastload.kernels.caller import adding

save = IndexDataCacheFile._save_index
def late(self, overloads):
    time.sleep(1)  # so that the other process has read the index too
    save(self, overloads)
IndexDataCacheFile._save_index = late
add = adding(int(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print(add(5), add.stats.cache_hits.total())
"""


def test_two_processes_that_save_the_code_of_two_recipes_at_once_do_not_mix_them(installed):
    site = installed.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1", "NUMBA_CACHE_DIR": ""}

    def added() -> list[list[str]]:
        running = [
            subprocess.Popen(
                [sys.executable, "-c", ADDING, number],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=site,
            )
            for number in ("100", "200")
        ]
        assert [process.stdout.readline() for process in running] == ["ready\n"] * 2
        for process in running:
            process.stdin.write("go\n")
            process.stdin.flush()
        return [process.communicate(timeout=120)[0].split() for process in running]

    assert added() == [["105", "0"], ["205", "0"]]
    assert added() == [["105", "1"], ["205", "1"]]


def blocked(folder: Path) -> str:
    """A folder's name under which nothing can be made, by nobody: a file has it."""
    folder.write_text("")
    return str(folder / "below")


def test_code_goes_to_the_first_place_that_can_be_written_to(installed, tmp_path):
    named, user, temporary = (tmp_path / name for name in ("named", "user", "temporary"))
    temporary.mkdir()
    places = {"XDG_CACHE_HOME": str(user), "TMPDIR": str(temporary)}
    assert Path(twice(installed, NUMBA_CACHE_DIR=str(named), **places)[2]).is_relative_to(named)
    assert Path(twice(installed, **places)[2]).is_relative_to(installed / "__pycache__")
    # An installation that cannot be written to; then without a home either.
    assert twice(installed, NUMBA_CACHE_DIR=blocked(tmp_path / "file"), **places)[0] == 7
    for path in sorted((installed / "__pycache__").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (installed / "__pycache__").rmdir()
    (installed / "__pycache__").write_text("")
    assert Path(twice(installed, **places)[2]).is_relative_to(user)
    places["XDG_CACHE_HOME"] = blocked(tmp_path / "no-home")
    value, _, path = twice(installed, **places)
    assert value == 7 and Path(path).is_relative_to(temporary / f"fastload-{os.getuid()}")
    assert (temporary / f"fastload-{os.getuid()}").stat().st_mode & 0o777 == 0o700
    # A folder that others may write to is none: what it holds would be run.
    (temporary / f"fastload-{os.getuid()}").chmod(0o777)
    assert twice(installed, **places) == (7, 0, "None")


def test_fastload_is_imported_where_nothing_can_be_kept():
    run(
        "from fastload.kernels import compiling\n"
        "for name in ('_named', '_beside', '_of_user', '_temporary'): setattr(compiling, name, lambda: None)\n"
        "import fastload.loop.loader, fastload.subset.build\n"
        "from fastload.kernels.bus_guard import compile_handler\n"
        "from fastload.kernels.file_ranges import read_ranges\n"
        "assert read_ranges.stats.cache_path is None and compile_handler().address\n",
        ROOT,
    )


@pytest.mark.parametrize(("ending", "content"), [("*.nbi", b""), ("*.nbc", b"no pickle")])
def test_a_damaged_cache_is_made_anew(installed, ending, content):
    assert twice(installed)[:2] == (7, 0)
    (found,) = (installed / "__pycache__").rglob(ending)
    found.write_bytes(content)
    assert twice(installed)[:2] == (7, 0)
    assert twice(installed)[:2] == (7, 1)


def test_a_cache_that_cannot_be_written_to_later_stops_nothing(installed):
    program = (
        "import fastload.kernels.caller as caller\n"
        "def full(*_): raise OSError(28, 'No space left on device')\n"
        "caller.twice._cache._cache_file._save_data = full\n"
        "print(caller.twice(5))\n"
    )
    assert run(program, installed.parent.parent) == "7\n"


def test_code_of_other_sources_goes_when_it_was_not_used_for_long(installed):
    path = Path(twice(installed)[2]).parent
    old, recent = path.with_name(path.name[:-16] + "0" * 16), path.with_name(path.name[:-16] + "1" * 16)
    for folder in (old, recent):
        folder.mkdir()
    os.utime(old, (time.time() - 40 * 86_400,) * 2)
    twice(installed)
    assert path.is_dir() and recent.is_dir() and not old.exists()


def test_numbas_own_settings_stay_for_the_programs_other_functions():
    before = config.CACHE_DIR

    @compiling.njit(nogil=True)
    def same(x):
        return x

    assert before == config.CACHE_DIR and same(3) == 3
    assert "NUMBA_CACHE_DIR" not in os.environ or os.environ["NUMBA_CACHE_DIR"] == before


def test_the_files_that_a_file_imports_are_those_that_python_sees():
    for path in [*KERNELS.glob("*.py"), *OTHERS]:
        text = path.read_text("utf-8")
        expected = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                package = node.module or ""
                if node.level == 1 and path.parent == KERNELS:
                    expected.add(package.partition(".")[0])
                elif node.level == 0 and package.startswith("fastload.kernels."):
                    expected.add(package.split(".")[2])
        assert {found.stem for found in compiling.imported_kernels(path, text)} == expected, path


@pytest.mark.parametrize(
    ("kernel", "helper"),
    [
        ("augment_cpu", "finish_cpu"),
        ("augment_cpu", "file_ranges"),
        ("augment_cpu", "philox"),
        ("augment_decoded", "augment"),
        ("augment_cuda", "augment_cuda_pixels"),
        ("augment_cuda", "augment_plan"),
        ("augment_cuda", "philox"),
        ("recipe_cuda", "resample_cuda"),
        ("recipe_cuda", "resampling"),
        ("topk_cpu", "topk"),
        ("topk_cuda", "topk_cuda_rows"),
        ("topk_cuda", "topk"),
    ],
)
def test_an_edit_of_a_kernels_helper_in_any_file_is_seen(tmp_path, monkeypatch, kernel, helper):
    monkeypatch.setattr(compiling, "_KERNELS", tmp_path)
    for path in KERNELS.glob("*.py"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = {name: compiling.source_hash(tmp_path / f"{name}.py") for name in (kernel, "bus_guard")}
    with (tmp_path / f"{helper}.py").open("a") as file:
        file.write("# edited\n")
    after = {name: compiling.source_hash(tmp_path / f"{name}.py") for name in before}
    assert after[kernel] != before[kernel] and after["bus_guard"] == before["bus_guard"]


def test_compiled_functions_are_made_in_one_place_and_share_helpers_in_the_kernels_alone():
    for path in [*KERNELS.glob("*.py"), *OTHERS]:
        imported = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "numba"
            for alias in node.names
        }
        if path.name != "compiling.py":
            assert not imported & {"njit", "jit", "cfunc", "vectorize", "guvectorize"}, path
        if path.parent != KERNELS:  # another file's helper would not be in the hash
            assert not imported & {"register_jitable", "overload", "intrinsic"}, path
