"""The loader inside other people's loops, with their real packages: Lightning, Accelerate, torch.compile, torchdata."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from framework_run import EPOCH, STEPS, SWAP, make
from packs import write_pair
from places import ROOT, TESTS

from fastload import Swap, UsageError

FINE_TUNE_RATE = 0.01


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), count=90, chosen=24)


def network(inputs=3 * 8 * 8):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(inputs, 10))


@pytest.fixture(scope="module")
def run(pair):
    """The ids of the uninterrupted run, drawn without any framework."""
    with make(pair, steps_per_epoch=None) as loader:
        return [ids.tolist() for _, _, ids in loader]


# -- a plain loop --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [3, 6, 8, 13, 18])
def test_a_plain_loop_goes_on_where_its_checkpoint_was_saved(pair, run, tmp_path, stop):
    def train(loader, model, optimizer, until):
        seen = []
        while loader.step < until:
            for images, labels, ids in loader:
                loss = torch.nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                seen.append(ids.tolist())
                if loader.step == until:
                    break
        return seen

    torch.manual_seed(0)
    whole, model = network(), network()
    model.load_state_dict(whole.state_dict())
    with make(pair) as loader:
        assert train(loader, whole, torch.optim.SGD(whole.parameters(), lr=0.1), STEPS) == run
    with make(pair) as loader:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        assert train(loader, model, optimizer, stop) == run[:stop]
        torch.save({"model": model.state_dict(), "loader": loader.state_dict()}, tmp_path / "checkpoint.pt")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    with make(pair) as loader:
        loader.load_state_dict(saved["loader"])
        model = network()
        model.load_state_dict(saved["model"])
        assert train(loader, model, torch.optim.SGD(model.parameters(), lr=0.1), STEPS) == run[stop:]
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), whole.parameters(), strict=True))


def test_len_of_a_resumed_epoch_is_that_of_the_whole_epoch_until_it_is_over(pair, run):
    with make(pair) as loader:
        loader.load_state_dict(json.loads(json.dumps(stopped_at(pair, 8))))
        assert len(loader) == EPOCH
        assert [ids.tolist() for _, _, ids in loader] == run[8:12]
        batches = iter(loader)
        assert len(loader) == EPOCH
        next(batches)
        del batches  # a loop that this process left itself is another matter: the next one is as long as it is
        assert len(loader) == EPOCH - 1 == len(list(loader))
        loader.load_state_dict(stopped_at(pair, 19))
        assert len(loader) == 2 and len(list(loader)) == 1


def stopped_at(pair, step):
    with make(pair) as loader:
        while loader.step < step:
            for _ in loader:
                if loader.step == step:
                    break
        return loader.state_dict()


def test_torchdata_s_stateful_loader_takes_len_and_state_alike(pair):
    reason = "torchdata is not installed: nothing to compare the protocol with"
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason=reason)
    from torchdata.stateful_dataloader.stateful import Stateful

    def theirs():
        return stateful.StatefulDataLoader(list(range(EPOCH)), batch_size=1)

    with make(pair) as one, make(pair) as other:
        assert isinstance(one, Stateful)
        for loaders in ((one, other), (theirs(), theirs())):
            batches = iter(loaders[0])
            for _ in range(4):
                next(batches)
            loaders[1].load_state_dict(loaders[0].state_dict())
            assert len(loaders[1]) == EPOCH
            assert len(list(loaders[1])) == EPOCH - 4
            assert len(list(loaders[1])) == EPOCH  # the next epoch is a whole one


# -- Lightning -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lightning():
    module = pytest.importorskip("lightning", reason="lightning is not installed: its Trainer is not tested")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return module


def module_class(lightning):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network, self.seen, self.validated, self.rates = network(), [], [], []

        def training_step(self, batch, index):
            images, labels, ids = batch
            self.seen.append(ids.tolist())
            self.rates.append(self.optimizers().param_groups[0]["lr"])
            return torch.nn.functional.cross_entropy(self.network(images), labels)

        def validation_step(self, batch, index):
            self.validated.append((self.global_step, batch[2].tolist()))
            self.log("val_loss", torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module


def fit(lightning, loader, test=None, *, module=None, checkpoint=None, callbacks=(), **length):
    """Train as `length` says; return (module, trainer)."""
    module = module_class(lightning)() if module is None else module

    @loader.on_swap
    def lower_the_rate(_):
        module.optimizers().param_groups[0]["lr"] = FINE_TUNE_RATE

    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(one, lightning.pytorch.callbacks.ModelCheckpoint) for one in callbacks),
        callbacks=list(callbacks),
        **(length or {"max_steps": STEPS}),
    )
    trainer.fit(module, loader, test, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return module, trainer


def checkpoints(lightning, folder, **when):
    class Kept(lightning.pytorch.callbacks.ModelCheckpoint):
        @property
        def state_key(self):  # Lightning wants one of a class, or another key
            return f"{super().state_key}{when}"

    return Kept(dirpath=folder, filename="{step}", save_top_k=-1, **when)


def keeps_place(lightning, loader):
    """What docs/integrations.md gives for `max_epochs=`: Lightning loads no loader's state from an epoch's end."""

    class KeepsPlace(lightning.Callback):
        def state_dict(self):
            return loader.state_dict()

        def load_state_dict(self, state):
            loader.load_state_dict(state)

    return KeepsPlace()


@pytest.fixture(scope="module")
def saved(lightning, pair, tmp_path_factory):
    """A folder with the checkpoints of an uninterrupted fit, of each step and each epoch's end."""
    folder = tmp_path_factory.mktemp("checkpoints")
    kept = [
        checkpoints(lightning, folder / "step", every_n_train_steps=1, save_on_train_epoch_end=False),
        checkpoints(lightning, folder / "validated", every_n_epochs=1, save_on_train_epoch_end=False),
        checkpoints(lightning, folder / "end", every_n_epochs=1, save_on_train_epoch_end=True),
    ]
    with make(pair) as loader, loader.evaluation(pair[1]) as test:
        fit(lightning, loader, test, callbacks=[*kept, keeps_place(lightning, loader)])
    return folder


@pytest.mark.filterwarnings(  # Lightning's advice, and its use of a torch function that has another name now
    "ignore:.*treespec, LeafSpec:FutureWarning",
    "ignore:.*no `val_dataloader`",
    "ignore:.*callbacks used to create the checkpoint",
)
class TestLightning:
    def test_fit_trains_on_exactly_the_run_s_batches_and_validates_after_each_epoch(self, lightning, pair, run):
        with make(pair) as loader, loader.evaluation(pair[1], batch_size=10) as test:
            module, trainer = fit(lightning, loader, test, max_epochs=4)
            everything = [ids.tolist() for _, _, ids in test]
        assert module.seen == run
        assert trainer.global_step == STEPS and trainer.current_epoch == 4
        sanity, validated = module.validated[:2], module.validated[2:]
        assert [ids for _, ids in sanity] == everything[:2]
        assert [len(ids) for ids in everything] == [10, 10, 4]
        # not after the last two: Lightning goes by the first epoch's length, so steps is best a multiple of it
        assert validated == [(step, ids) for step in (6, 12, 18) for ids in everything]

    def test_the_rate_changes_with_the_first_batch_after_the_swap(self, lightning, pair):
        with make(pair) as loader:
            module, _ = fit(lightning, loader)
        assert module.rates == [0.1] * SWAP + [FINE_TUNE_RATE] * (STEPS - SWAP)

    @pytest.mark.parametrize("step", [1, 5, 6, 7, 8, 9, 12, 17, 19])
    def test_a_checkpoint_in_mid_epoch_resumes_at_the_next_batch(self, lightning, pair, run, saved, step):
        with make(pair) as loader:
            module, trainer = fit(lightning, loader, checkpoint=saved / "step" / f"step={step}.ckpt")
        assert module.seen == run[step:] and trainer.global_step == STEPS
        rates = [0.1] * SWAP + [FINE_TUNE_RATE] * (STEPS - SWAP)  # the callback's doing, or the saved optimizer's
        assert module.rates == rates[step:]

    @pytest.mark.parametrize("when", ["validated", "end"])
    @pytest.mark.parametrize("length", [{"max_steps": STEPS}, {"max_epochs": 4}], ids=str)
    def test_a_checkpoint_at_an_epoch_s_end_resumes_with_the_next_epoch(
        self, lightning, pair, run, saved, when, length
    ):
        checkpoint = saved / when / "step=12.ckpt"
        with make(pair) as loader, loader.evaluation(pair[1]) as test:
            callbacks = [keeps_place(lightning, loader)] if "max_steps" not in length else []
            module, trainer = fit(lightning, loader, test, checkpoint=checkpoint, callbacks=callbacks, **length)
        assert module.seen == run[12:] and trainer.global_step == STEPS
        assert 18 in {at for at, _ in module.validated}

    @pytest.mark.parametrize("step", [4, 9])
    def test_max_epochs_resumes_in_mid_epoch_too(self, lightning, pair, run, saved, step):
        with make(pair) as loader:
            module, trainer = fit(lightning, loader, checkpoint=saved / "step" / f"step={step}.ckpt", max_epochs=4)
        assert module.seen == run[step:] and trainer.current_epoch == 4

    def test_one_long_epoch_resumes_where_steps_per_epoch_is_steps(self, lightning, pair, run, tmp_path):
        kept = checkpoints(lightning, tmp_path, every_n_train_steps=13)
        with make(pair, steps_per_epoch=STEPS) as loader:
            assert fit(lightning, loader, callbacks=[kept])[0].seen == run
        with make(pair, steps_per_epoch=STEPS) as loader:
            module, _ = fit(lightning, loader, checkpoint=tmp_path / "step=13.ckpt", max_epochs=1)
        assert module.seen == run[13:]

    def test_a_run_by_the_clock_resumes_exactly_with_the_hook_that_the_page_shows(self, lightning, pair, run, tmp_path):
        class Module(module_class(lightning)):
            def on_save_checkpoint(self, checkpoint):  # without a len Lightning holds a batch that it has not used
                for state in checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]:
                    state["step"] = self.trainer.fit_loop.total_batch_idx + 1

        def by_the_clock():
            return make(pair, steps=None, seconds=3600, steps_per_epoch=None)

        kept = checkpoints(lightning, tmp_path, every_n_train_steps=5)
        with by_the_clock() as loader:
            assert fit(lightning, loader, module=Module(), callbacks=[kept])[0].seen == run
        with by_the_clock() as loader:
            module, _ = fit(lightning, loader, module=Module(), checkpoint=tmp_path / "step=10.ckpt")
        assert module.seen == run[10:]

    @pytest.mark.filterwarnings("ignore:all 20 steps have been delivered", "ignore:Total length of")
    def test_a_trainer_that_never_ends_by_itself_is_told_that_the_loader_has_ended(self, lightning, pair):
        with make(pair) as loader, pytest.raises(UsageError, match=r"all 20 steps.*max_steps=20"):
            fit(lightning, loader, max_steps=STEPS + 1)

    def test_max_time_ends_a_run_of_many_steps(self, lightning, pair):
        with make(pair, steps=10**9, swap=Swap.after(seconds=0.3)) as loader:
            _, trainer = fit(lightning, loader, max_time={"seconds": 1})
            assert loader.phase == "fine-tune" and loader.step == trainer.global_step < 10**9


# -- Accelerate ----------------------------------------------------------------------------------------------------


@pytest.fixture
def accelerator():
    module = pytest.importorskip("accelerate", reason="accelerate is not installed: its loop is not tested")
    yield module.Accelerator(cpu=True)
    module.state.AcceleratorState._reset_state(reset_partial_state=True)


def prepared(accelerator, loader):
    """Return (model, optimizer), prepared."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, same = accelerator.prepare(model, optimizer, loader)
    assert same is loader  # it is no torch DataLoader: on its device, and its rank's, already
    accelerator.register_for_checkpointing(loader)
    return model, optimizer


def train(accelerator, model, optimizer, loader, until=STEPS):
    """Train up to the step `until`; return the ids seen."""
    seen = []
    while loader.step < until:
        for images, labels, ids in loader:
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            seen.append(ids.tolist())
            if loader.step == until:
                break
    return seen


@pytest.mark.parametrize("stop", [4, 6, 8, 15])
def test_accelerate_saves_and_loads_the_loader_s_place(accelerator, pair, run, tmp_path, stop):
    with make(pair) as loader:
        model, optimizer = prepared(accelerator, loader)
        assert train(accelerator, model, optimizer, loader, until=stop) == run[:stop]
        accelerator.save_state(tmp_path / "state")
        weights = [one.detach().clone() for one in model.parameters()]
    accelerator._custom_objects.clear()  # as in a new process
    accelerator.free_memory()
    with make(pair) as loader:
        model, optimizer = prepared(accelerator, loader)
        accelerator.load_state(tmp_path / "state")
        assert loader.step == stop
        assert all(torch.equal(x, y) for x, y in zip(model.parameters(), weights, strict=True))
        assert train(accelerator, model, optimizer, loader) == run[stop:]


# -- torch.compile -------------------------------------------------------------------------------------------------


def test_a_compiled_model_is_compiled_once_for_both_phases(pair):
    from torch._dynamo.testing import CompileCounterWithBackend

    for changes in ({}, {"memory_format": torch.channels_last, "resident_budget": 1 << 30}):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), network(4 * 6 * 6))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        compiled, graphs = torch.compile(model, backend=counter), {}
        with make(pair, **changes) as loader:
            while loader.step < STEPS:
                for images, labels, _ in loader:
                    torch.nn.functional.cross_entropy(compiled(images), labels).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    graphs[loader.phase] = counter.frame_count
        assert graphs == {"fast": 1, "fine-tune": 1}


# -- torchrun ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", ["lightning", "accelerate"])
def test_two_ranks_get_their_slices_of_each_batch_and_resume(pair, run, tmp_path, framework):
    pytest.importorskip(framework, reason=f"{framework} is not installed: its ranks are not tested")
    program = TESTS / f"{framework}_program.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [str(tmp_path), str(pair[0]), str(pair[1])]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert [one + other for one, other in zip(first, second, strict=True)] == run[7:]  # where it was resumed


def test_ranks_that_are_not_yet_known_are_an_error_not_the_same_batches_twice(pair, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"WORLD_SIZE=2.*init_process_group"):
        make(pair)
    with make(pair, rank=0, world_size=1) as loader:  # said by hand: each its own
        assert len(list(loader)) == EPOCH
    monkeypatch.setenv("WORLD_SIZE", "1")
    make(pair).close()
