"""What frameworks ask of a torch DataLoader beside its batches: of what set, how many at once, which come next.

Some count samples by `len(loader.dataset)`. Accelerate's `skip_first_batches`, and with it the resume of Hugging Face's
Trainer, makes a DataLoader of a loader's `dataset` and `batch_sampler`: the items of the dataset are whole batches, by
their step in the run, so that such a DataLoader draws from the very run that it was made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fastload.common.arguments import integer

if TYPE_CHECKING:
    from fastload.loop.loader import TwoPhaseLoader


class RunDataset:
    """The samples of a loader's set, counted, and its batches, by step."""

    def __init__(self, loader: TwoPhaseLoader, samples: int) -> None:
        self._loader, self._samples = loader, samples
        self._batches: Iterator[Any] = iter(())

    def __len__(self) -> int:
        """Samples of the full set; of the subset, where there is no full set."""
        return self._samples

    def __getitem__(self, step: int) -> Any:
        """Return the batch of a step of the run, which goes on behind it; StopIteration where the run has ended."""
        if step != self._loader.step:
            self._loader._run.go_to(step)
            self._batches = iter(())
        batch = next(self._batches, None)
        if batch is None and not self._loader._run.is_finished(step):
            self._batches = iter(self._loader)
            batch = next(self._batches, None)
        if batch is None:
            raise StopIteration  # a DataLoader's loop ends with it
        return batch


class RunSampler:
    """Lists with one step each: those of the loop that the next `iter()` begins."""

    drop_last = True
    """Every batch is full."""

    def __init__(self, loader: TwoPhaseLoader) -> None:
        self._loader = loader
        self.batch_size = loader.batch_size

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[int]]:
        step, (_, end) = self._loader.step, self._loader._run.next_pass()
        while end is None or step < end:
            yield [step]
            step += 1
        if self._loader.step < step:  # all that was left has been skipped
            self._loader._run.go_to(step)


def first_of(batches: Sequence[Any]) -> Any:
    """Return the one batch that a list of them holds: the `collate_fn` of a DataLoader over a `RunDataset`."""
    return batches[0]


class DataLoaderView:
    """The part of a `TwoPhaseLoader` that frameworks know from torch's DataLoader."""

    drop_last, sampler, prefetch_factor, collate_fn = True, None, None, staticmethod(first_of)

    def __len__(self: Any) -> int:
        """Batches of the loop that runs, or else of the one that the next `iter()` begins; 0 once all are delivered.

        After `load_state_dict` in the middle of an epoch of `steps_per_epoch=`, those of the whole epoch: Lightning
        takes it so, as it is with torchdata's StatefulDataLoader, and counts the batches already trained on as well.
        Raises TypeError for a run of `seconds=`, whose length nobody knows.
        """
        return self._run.length()

    def __bool__(self) -> bool:
        """True, however many batches are left: `loader or other` is not about its length."""
        return True

    @property
    def batch_size(self: Any) -> int:
        """Images a batch on this rank."""
        return self._run.settings.batch_size

    @property
    def dataset(self: Any) -> RunDataset:
        """What `len()` counts the samples of: the full set, or the subset where there is no full set."""
        return RunDataset(self, self._run.files.samples)

    @property
    def batch_sampler(self: Any) -> RunSampler:
        """The steps of the loop that the next `iter()` begins, for what makes a DataLoader of `dataset`."""
        return RunSampler(self)

    def set_epoch(self: Any, epoch: int) -> None:
        """Go to the first step of an epoch of `steps_per_epoch=`, unless the run stands within it; else do nothing.

        Hugging Face's Trainer calls it before each epoch, also when it resumes.
        """
        epoch, settings = integer("epoch", epoch, 0), self._run.settings
        if settings.steps_per_epoch is not None and self.step // settings.steps_per_epoch != epoch:
            step = epoch * settings.steps_per_epoch
            self._run.go_to(step if settings.steps is None else min(step, settings.steps))
