"""Which keys of a file came before, in 8 bytes a key: archives tell it only while they are read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class Repeats:
    """The keys seen so far, as sorted runs of their 64-bit hashes.

    A run joins the one before when that is not longer: n keys lie in about log2(n) runs.
    """

    def __init__(self) -> None:
        self._runs: list[npt.NDArray[np.uint64]] = []

    def mark(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Whether each of these hashes, uint64 (n,), came before, here or in an earlier call.

        Returns:
            bool (n,): False for the first occurrence, True for all later ones.
        """
        order = np.argsort(hashes, kind="stable")
        ranked = hashes[order]
        again = np.zeros(len(hashes), bool)
        again[order[1:]] = ranked[1:] == ranked[:-1]
        for run in self._runs:
            place = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            again |= run[place] == hashes
        self._add(ranked[~again[order]])
        return again

    def _add(self, run: npt.NDArray[np.uint64]) -> None:
        while self._runs and len(self._runs[-1]) <= len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        if len(run):
            self._runs.append(run)
