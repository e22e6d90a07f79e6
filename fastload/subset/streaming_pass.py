"""The encoder's pass when nobody stores its embeddings: each chunk goes into a strategy's lists and into the hash.

What is left of a pass is small (lists of O(dimensions · k), a hash's state, the row that they stand at) and kept in
one file, so that an interrupted pass goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fastload.common.folder_files import FolderFile
from fastload.common.tensors import load_tensors, save_tensors
from fastload.embedding.embeddings_hash import EmbeddingsHash
from fastload.errors import DataError
from fastload.selection import Pass


class StreamingPass:
    """A `Sink` of embeddings that keeps a strategy's pass and the embeddings' hash instead of the embeddings.

    Arguments:
        path: the file to keep the state in.
        key: names the data and settings; a state of another key is not used.
        count: rows in all.
        begin: makes the strategy's first pass over embeddings of a width.
        keep: bool [count], which rows the strategy sees; all, when None.
    """

    def __init__(
        self,
        path: FolderFile | Path,
        key: str,
        count: int,
        begin: Callable[[int], Pass],
        keep: np.ndarray | None = None,
    ) -> None:
        self.path, self._key, self._count, self._begin = path, key, count, begin
        self._keep = np.ones(count, bool) if keep is None else keep
        self._kept_before = np.concatenate([[0], np.cumsum(self._keep)])
        self.rows = 0
        """How many rows the pass has taken in."""
        self._pass: Pass | None = None
        self._not_finite = np.zeros(count, bool)
        self._hash: EmbeddingsHash | None = None
        self._first_hash, self.columns, self.passes = "", 0, 1
        found = load_tensors(path)
        if found is not None and found[1].get("key") == key and "not_finite" in found[0]:
            saved = {name: tensor.numpy() for name, tensor in found[0].items()}
            facts = found[1]
            self._first_hash, self.columns, self.passes = facts["first_hash"], facts["columns"], facts["passes"]
            self.rows = facts["rows"]
            self._not_finite[saved["not_finite"]] = True
            self._pass = begin(self.columns)
            self._pass.restore({name[5:]: array for name, array in saved.items() if name.startswith("pass.")})
            self._hash = EmbeddingsHash((count, self.columns))
            self._hash.restore({name[5:]: array for name, array in saved.items() if name.startswith("hash.")})

    @property
    def complete(self) -> bool:
        """Whether the pass has taken in all rows."""
        return self.rows == self._count

    @property
    def not_finite(self) -> np.ndarray:
        """The rows, int64, whose embeddings hold NaN or infinity, of those that the pass has taken in."""
        return np.flatnonzero(self._not_finite)

    @property
    def strategy(self) -> Pass:
        """The strategy's part, of a pass that has begun."""
        assert self._pass is not None
        return self._pass

    def write(self, row: int, values: np.ndarray) -> None:
        """Take in the embeddings of the rows from `row` on."""
        if self._pass is None:
            self.columns = values.shape[1]
            self._pass = self._begin(self.columns)
        if self._hash is None or row == 0:
            self._hash = EmbeddingsHash((self._count, self.columns))
        self._not_finite[row : row + len(values)] = ~np.isfinite(values).all(axis=1)
        kept = values[self._keep[row : row + len(values)]]
        if len(kept):
            self._pass.update(int(self._kept_before[row]), kept)
        self.rows = row + len(values)
        self._hash.update(values)

    def sync(self) -> None:
        """Keep the state: whole, or the one before it."""
        assert self._hash is not None, "rows have come in"
        tensors = {f"hash.{name}": torch.from_numpy(array) for name, array in self._hash.state().items()}
        tensors |= {f"pass.{name}": torch.from_numpy(np.asarray(a)) for name, a in self.strategy.save().items()}
        tensors["not_finite"] = torch.from_numpy(self.not_finite)
        facts = {
            "key": self._key,
            "first_hash": self._first_hash,
            "columns": self.columns,
            "passes": self.passes,
            "rows": self.rows,
        }
        save_tensors(self.path, tensors, facts)

    def again(self) -> None:
        """Begin another pass, which keeps more."""
        self._first_hash = self.hexdigest()
        self._pass, self.passes, self.rows = self.strategy.again(), self.passes + 1, 0
        self._hash = None

    def hexdigest(self) -> str:
        """Return the hash of a complete pass, `hash_rows` of the embeddings.

        Raises DataError where an earlier pass gave others.
        """
        assert self._hash is not None, "the pass is complete"
        found = self._hash.hexdigest()
        if self._first_hash not in ("", found):
            raise DataError(
                f"the encoder gave other embeddings in its pass {self.passes} than before; with keep=True they are "
                "stored and it passes only once"
            )
        return found
