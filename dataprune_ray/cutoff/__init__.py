"""Exact global statistics of a distributed score table, and the keep rule they end in.

Everything here is numpy only. A :class:`Population` maps small kernels over blocks of rows and
merges what they return, so each result is exact and the same for any block size or arrival order.

========== =====================================================================
module     what it holds
========== =====================================================================
keys       ordered integer keys of scores, seeded hashes
sums       sums of float32 values without rounding
population blocks of rows, and the protocol that reduces over them
kernels    what one block of rows tells about the rows a cut is looking for
search     the state of an exact cut between its passes
selection  the exact cut: which score and which hash bound the kept rows
reasons    why a row is kept or dropped, by the codes that are stored
bands      score intervals with a bound on the hash
screen     rows dropped by another score column before anything else
draw       weighted sampling: keys made of score and hash
rule       the keep rule: bands that any worker applies to a row alone
ranks      ranks and moments of all scores
statistics counts, extremes, mean, histogram
========== =====================================================================
"""

from __future__ import annotations

from dataprune_ray.cutoff.bands import Band
from dataprune_ray.cutoff.draw import WeightedDraw
from dataprune_ray.cutoff.keys import HASH_MAX, End, ordered_key, score_of_key, seeded_hash
from dataprune_ray.cutoff.population import (
    Block,
    Column,
    Counted,
    MemoryPopulation,
    Population,
    derived,
    empty_block,
    filtered,
    pooled,
    scored_by,
)
from dataprune_ray.cutoff.ranks import Moments, Ranks, moments, ranks
from dataprune_ray.cutoff.reasons import DUPLICATE, NOISE, REASONS
from dataprune_ray.cutoff.rule import KeepRule
from dataprune_ray.cutoff.screen import Screen, unscreened
from dataprune_ray.cutoff.search import Cut
from dataprune_ray.cutoff.selection import Opening, exact_cut, open_cut
from dataprune_ray.cutoff.statistics import (
    extremes,
    group_counts,
    histogram,
    kept_counts,
    mean_score,
    score_sum,
)
from dataprune_ray.cutoff.sums import ExactSum

__all__ = [
    "DUPLICATE",
    "HASH_MAX",
    "NOISE",
    "REASONS",
    "Band",
    "Block",
    "Column",
    "Counted",
    "Cut",
    "End",
    "ExactSum",
    "KeepRule",
    "MemoryPopulation",
    "Moments",
    "Opening",
    "Population",
    "Ranks",
    "Screen",
    "WeightedDraw",
    "derived",
    "empty_block",
    "exact_cut",
    "extremes",
    "filtered",
    "group_counts",
    "histogram",
    "kept_counts",
    "mean_score",
    "moments",
    "open_cut",
    "ordered_key",
    "pooled",
    "ranks",
    "score_of_key",
    "score_sum",
    "scored_by",
    "seeded_hash",
    "unscreened",
]
