"""Run by tests/loop/test_integrations.py under torchrun: an Accelerate loop on every rank that stops and goes on.

accelerate_program.py FOLDER FULL SUBSET
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from framework_run import make

folder, full, subset = sys.argv[1:4]
accelerator = Accelerator(cpu=True)


def train(until, state=None):
    """Train up to the step `until`, from `state` on; return the ids seen, and save the state."""
    seen = []
    with make((full, subset), batch_size=2) as loader:
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        accelerator.register_for_checkpointing(loader)
        if state is not None:
            accelerator.load_state(state)
        while loader.step < until:
            for images, labels, ids in loader:
                accelerator.backward(torch.nn.functional.cross_entropy(model(images), labels))
                optimizer.step()
                optimizer.zero_grad()
                seen.append(ids.tolist())
                if loader.step == until:
                    break
        accelerator.save_state(f"{folder}/at-{until}")
    accelerator._custom_objects.clear()  # as in a new process
    accelerator.free_memory()
    return seen


train(7)
accelerator.wait_for_everyone()
Path(folder, f"{accelerator.process_index}.json").write_text(json.dumps(train(20, f"{folder}/at-7")))
accelerator.end_training()
