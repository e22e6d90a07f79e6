"""Strata: groups of samples that are alike, each with an order of its own, from which samples are drawn in turns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastload.selection.base import Request, Samples, Selection, facts_of_draw, first_of_groups


@dataclass(frozen=True)
class Strata:
    """The stratum of each sample and its place there, all by position. Balanced classes have strata of their own.

    Arguments:
        count: how many strata there may be.
        stratum: int64 [n], from 0; -1 for a sample that is in none.
        place: int64 [n], from 0: its place in its stratum's order, or among those that are in none.
        size: int64 [n], how many samples are in its stratum.
    """

    count: int
    stratum: np.ndarray
    place: np.ndarray
    size: np.ndarray

    @classmethod
    def of(cls, count: int, stratum: np.ndarray, order: np.ndarray, samples: Samples) -> Strata:
        """Give each stratum, of each class, its samples as they come in an order of all positions."""
        group = samples.by_position(samples.group_of_row)
        together = order[np.lexsort((stratum[order], group[order]))]  # stable: each stratum's samples as they come
        begins = np.flatnonzero(
            np.concatenate([[True], (np.diff(stratum[together]) != 0) | (np.diff(group[together]) != 0)])
        )
        sizes = np.diff(np.append(begins, len(together)))
        place, size = np.empty(len(together), np.int64), np.empty(len(together), np.int64)
        place[together] = np.arange(len(together)) - np.repeat(begins, sizes)
        size[together] = np.repeat(sizes, sizes)
        return cls(count, stratum, place, size)

    def select(
        self,
        name: str,
        order: np.ndarray,
        samples: Samples,
        request: Request,
        *,
        score: np.ndarray | None = None,
        passes: int = 0,
    ) -> Selection:
        """Return the selection of what comes first in an order of all positions, of each class its share.

        Arguments:
            name: the strategy's.
            order: int64 [n].
            score: each position's, for the selection's column; 0 by default.
            passes: over the embeddings, for the report.
        """
        chosen = first_of_groups(order, samples, request)
        stratum, ids = self.stratum[chosen], samples.sorted_ids[chosen]
        given = np.bincount(stratum[stratum >= 0], minlength=self.count)
        held = np.bincount(self.stratum[self.stratum >= 0], minlength=self.count)
        report = facts_of_draw(name, samples, request, ids, passes) | {
            "dimensions": self.count,
            "dead_dimensions": np.flatnonzero(held == 0).tolist(),
            "per_dimension_counts": given.tolist(),
        }
        return Selection(
            ids,
            stratum.astype(np.int32),
            self.place[chosen].astype(np.int32),
            np.zeros(len(chosen), np.float32) if score is None else score[chosen].astype(np.float32),
            report,
        )
