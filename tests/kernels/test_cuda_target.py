"""Numba's CUDA target is found where it can be, and where it cannot be imported the CPU's work goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from fastload.kernels import cuda_target


def run(program: str, *folders: Path) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*folders, ROOT]))}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_numba_cuda_is_imported_beside_a_numpy_that_has_no_row_stack():
    pytest.importorskip("numba_cuda")
    run(
        "import numpy as np\n"
        "usual = np.__getattr__\n"
        "def without(name):\n"
        "    if name == 'row_stack':\n        raise AttributeError(name)\n"
        "    return usual(name)\n"
        "vars(np).pop('row_stack', None)\n"
        "np.__getattr__ = without\n"
        "from fastload.kernels.cuda_target import cuda, PROBLEM\n"
        "assert cuda is not None, PROBLEM\n"
        "import numba.cuda.np.arrayobj\n"
        "assert 'row_stack' not in vars(np)\n"
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [("raise AttributeError('no row_stack')", "AttributeError: no row_stack"), ("import not_there", "not_there")],
)
def test_a_numba_cuda_that_cannot_be_imported_stops_only_what_needs_it(tmp_path, body, reason):
    (tmp_path / "numba_cuda.py").write_text(body + "\n")
    (tmp_path / "_numba_cuda_redirector.py").write_text("")
    said = run(
        "from fastload import TwoPhaseLoader, UsageError\n"
        "from fastload.selection.topk import TopK\n"
        "try:\n    TopK(2, 1, device='cuda')\n"
        "except UsageError as error:\n    print(error)\n",
        tmp_path,
    )
    assert reason in said and "pip install" in said and len(said.splitlines()) == 1


def toolkit(folder: Path) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "nvvm" / "libdevice").mkdir(parents=True)
    compiler = folder / "bin" / "nvcc"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    return compiler


def test_the_toolkit_of_the_compiler_on_the_path_is_named_where_nothing_names_one(tmp_path, monkeypatch):
    compiler = toolkit(tmp_path / "cuda")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").symlink_to(compiler)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("CUDA_HOME", "")
    monkeypatch.delenv("CUDA_PATH", raising=False)
    cuda_target._name_toolkit()
    assert os.environ["CUDA_HOME"] == str(tmp_path / "cuda")


@pytest.mark.parametrize("name", ["CUDA_HOME", "CUDA_PATH"])
def test_a_toolkit_that_the_user_names_stays(tmp_path, monkeypatch, name):
    monkeypatch.setenv("PATH", str(toolkit(tmp_path / "cuda").parent))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv(name, "/mine")
    cuda_target._name_toolkit()
    assert os.environ.get("CUDA_HOME", "/mine") == "/mine"
