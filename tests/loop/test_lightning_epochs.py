"""Lightning with `max_epochs=` and a module that asks how many steps there will be: exact with the page's callback."""

from __future__ import annotations

import logging
import re
import textwrap

import pytest
import torch
from packs import write_pair
from places import ROOT

from fastload import Augment, TwoPhaseLoader

lightning = pytest.importorskip("lightning", reason="lightning is not installed")

PAGE = (ROOT / "docs/integrations.md").read_text()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("step", [7, 10], ids=["in mid-epoch", "at an epoch's end"])
def test_a_run_by_epochs_resumes_exactly_with_the_callback_of_the_page(tmp_path, step):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    names = {"lightning": lightning}
    (block,) = re.findall(r"( *class KeepsPlace.*?)\n\n *loader =", PAGE, re.S)
    exec(textwrap.dedent(block), names)
    full, subset = write_pair(tmp_path, count=60, chosen=20)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.seen = torch.nn.Linear(3 * 24 * 24, 10), []

        def training_step(self, batch, index):
            images, labels, ids = batch
            self.seen.append(ids.tolist())
            return torch.nn.functional.cross_entropy(self.model(images.flatten(1)), labels)

        def configure_optimizers(self):
            assert self.trainer.estimated_stepping_batches == 20
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fit(checkpoint=None):
        loader = TwoPhaseLoader(
            full,
            subset,
            batch_size=8,
            steps=20,
            swap=0.5,
            steps_per_epoch=5,
            augment=Augment.paper(24),
            device="cpu",
            with_ids=True,
        )
        save = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path / "saved", every_n_train_steps=step, save_top_k=-1)
        module = Module()
        trainer = lightning.Trainer(
            max_epochs=4,
            accelerator="cpu",
            callbacks=[names["KeepsPlace"](loader), save],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with loader:
            trainer.fit(module, loader, ckpt_path=checkpoint)
        return module.seen

    whole = fit()
    (saved,) = (tmp_path / "saved").glob(f"*step={step}.ckpt")
    assert len(whole) == 20 and fit(saved) == whole[step:]
