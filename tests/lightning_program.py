"""Run by test_integrations.py under torchrun: fit by Lightning on every rank, stop, go on, and note what came.

lightning_program.py FOLDER FULL SUBSET
"""

import json
import sys
from pathlib import Path

import lightning
import torch
from framework_run import make
from lightning.pytorch.callbacks import ModelCheckpoint

folder, full, subset = sys.argv[1:4]


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.network, self.seen = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10)), []

    def training_step(self, batch, index):
        images, labels, ids = batch
        self.seen.append(ids.tolist())
        return torch.nn.functional.cross_entropy(self.network(images), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):  # called once the ranks know each other
        return make((full, subset), batch_size=2)


def fit(steps, checkpoint=None, callbacks=()):
    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
        callbacks=list(callbacks),
    )
    trainer.fit(module, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    trainer.train_dataloader.close()
    return module, trainer


fit(10, callbacks=[ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=7)])
module, trainer = fit(20, f"{folder}/step=7.ckpt")
Path(folder, f"{trainer.global_rank}.json").write_text(json.dumps(module.seen))
torch.distributed.barrier()
torch.distributed.destroy_process_group()
