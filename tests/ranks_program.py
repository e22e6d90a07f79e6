"""Run by tests/loop/test_ranks.py under torchrun: draw batches on every rank and note what came; a state can be loaded.

ranks_program.py FOLDER NAME FULL SUBSET SWAP STEPS GLOBAL_BATCH [key=value …]
"""

import json
import sys
import time
import zlib
from pathlib import Path

import torch
import torch.distributed as dist

from fastload import Augment, Swap, TwoPhaseLoader

folder, name, full, subset, swap, steps, batch = sys.argv[1:8]
options = dict(word.split("=") for word in sys.argv[8:])
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
policy = {
    "never": Swap.never(),
    "plateau": Swap.on_plateau(patience=1, window=5),
    "after": Swap.after(seconds=0.4),
}.get(swap) or int(swap)
length = {"seconds": float(options["seconds"])} if "seconds" in options else {"steps": int(steps)}
loader = TwoPhaseLoader(
    full,
    subset,
    batch_size=int(batch) // world,
    swap=policy,
    augment=Augment.paper(24),
    device="cpu",
    seed=5,
    with_ids=True,
    **length,
)
if "load" in options:
    loader.load_state_dict(json.loads(Path(options["load"]).read_text()))
batches = []
for images, _, ids in loader:
    batches.append([loader.step - 1, loader.phase, ids.tolist(), zlib.crc32(images.numpy().tobytes())])
    loader.report_loss(1.0)
    time.sleep(0.002 * (rank + 1 if "uneven" in options else 1))
    if loader.step == int(options.get("ask_at", -1)) and rank == int(options.get("ask_rank", 0)):
        loader.swap_now()
    if loader.step == int(options.get("stop", -1)):
        break
parts = [None] * world
dist.all_gather_object(parts, {"batches": batches, "swap_step": loader.swap_step, "state": loader.state_dict()})
if rank == 0:
    Path(folder, f"{name}.json").write_text(json.dumps(parts))
loader.close()
dist.barrier()
dist.destroy_process_group()
assert torch.get_num_threads() >= 1
