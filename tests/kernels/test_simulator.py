"""The CUDA augmentation kernels and the host's code around them, in Numba's simulator; the top-k's: test_topk."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from places import ROOT


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("augment_in_simulator.py", "as the reference in the simulator"),
        ("recipes_in_simulator.py", "as the CPU engine in the simulator"),
        ("place_in_simulator.py", "placed in the simulator"),
    ],
)
def test_the_cuda_kernels_and_feeds_give_what_they_must_in_the_simulator(program, said):
    pytest.importorskip("numba_cuda", reason="numba-cuda, which has the simulator, is not installed")
    environment = os.environ | {
        "NUMBA_ENABLE_CUDASIM": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    ran = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "simulator" / program)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert said in ran.stdout
