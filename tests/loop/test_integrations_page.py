"""Every Python block of docs/integrations.md runs, on small files."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch
from packs import write_pair
from places import ROOT

PAGE = (ROOT / "docs/integrations.md").read_text()
SMALL = {
    "10_000": "20",
    "3_000": "7",
    "1024": "8",
    "500": "5",
    '"cuda"': '"cpu"',
    "max_epochs=20": "max_epochs=4",
    "every=50": "every=2",
}
NEEDS = {
    "Lightning": ["lightning"],
    "Accelerate": ["accelerate"],
    "What the loader says": ["torch.utils.tensorboard"],
}


def sections():
    """Return {heading: its Python blocks, small}; the page's beginning is ""."""
    found = {}
    for section in re.split(r"^## ", "\n" + PAGE, flags=re.M):
        blocks = re.findall(r"^( *)```python\n(.*?)^\1```", section, re.S | re.M)
        code = [textwrap.dedent(block) for _, block in blocks]
        for large, small in SMALL.items():
            code = [re.sub(rf"(?<![\w]){re.escape(large)}(?![\w])", small, block) for block in code]
        found[section.partition("\n")[0] if not section.startswith("\n") else ""] = code
    return found


SECTIONS = sections()


class WandbRun:
    """What Weights & Biases' run does here, since it is not installed: it takes names of steps, and numbers."""

    def __init__(self):
        self.steps, self.logged = {}, {}

    def define_metric(self, name, *, step_metric):
        self.steps[name] = step_metric

    def log(self, values):
        self.logged |= values


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the page's files are, as the current folder."""
    full, _ = write_pair(tmp_path, count=60, chosen=20)
    (tmp_path / "test.h5").write_bytes(full.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_no_block_is_left_out():
    assert sum(map(len, SECTIONS.values())) == PAGE.count("```python") >= 14


@pytest.mark.filterwarnings("ignore")  # a page of advice is not where the frameworks' own belongs
@pytest.mark.parametrize("heading", [heading for heading in SECTIONS if heading not in ("", "torchrun and DDP")])
def test_the_blocks_run(folder, heading, monkeypatch):
    for module in NEEDS.get(heading, []):
        pytest.importorskip(module, reason=f"{module} is not installed: its part of the page is not run")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    names, run = {"__name__": "page"}, WandbRun()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda project: run))
    for block in SECTIONS[""] + SECTIONS[heading]:
        if "compile(model)" in block:
            block = block.replace("compile(model)", 'compile(model, backend="eager")')  # inductor takes its time
        exec(compile(block, "docs/integrations.md", "exec"), names)
        if "ckpt_path=" in block:
            assert names["trainer"].global_step == names["loader"].step == 20
            assert sum(phase["batches"] for phase in names["loader"].stats().values()) == 6  # resumed at 14
    if heading == "A plain loop":
        assert names["saved"]["loader"]["step"] == 14 and names["loader"].step == 15
        assert names["optimizer"].param_groups[0]["lr"] == 0.01
    if heading == "Lightning":
        assert names["trainer"].max_steps == -1 and list(folder.glob("checkpoints/*"))
    if heading == "Passes that are no training":
        assert names["loader"].step == 0 and torch.equal(next(iter(names["loader"]))[0], names["images"])
    if heading == "What the loader says":
        assert "fastload/*" in run.steps and {"fastload/images_per_second", "fastload/step"} <= run.logged.keys()
    if heading == "Accelerate":
        assert names["loader"].step == 14
        sys.modules["accelerate"].state.AcceleratorState._reset_state(reset_partial_state=True)
    torch._dynamo.reset()


def test_the_blocks_for_several_ranks_run_under_torchrun(folder):
    code = "\n".join(SECTIONS[""] + SECTIONS["torchrun and DDP"])
    code = code.replace("init_process_group()", 'init_process_group("gloo")')
    code += "\nfor _ in loader: loader.report_loss(1.0)\n"
    # In one write: two ranks' pieces came one between the other.
    code += "import sys; sys.stdout.write(f'ended at {loader.step}\\n'); dist.destroy_process_group()\n"
    (folder / "page.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "page.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("ended at 20") == 2
    assert torch.load(folder / "loader.pt", weights_only=True)["step"] == 5
