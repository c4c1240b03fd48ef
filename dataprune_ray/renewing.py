"""What is fitted to a corpus before it is scored, and to which fragments; undone for others.

A file that could not be opened may well be readable in a later attempt of a run. Judges, predictor
and feature space were fitted without it then, so they and all scores are made anew. Not for score
tables that another run made.
"""

from __future__ import annotations

import hashlib
import json
import logging

from dataprune_ray.fitting import FIT_FILE
from dataprune_ray.io.filesystems import beside, exists, join, read_bytes, remove_file, write_bytes
from dataprune_ray.io.leftovers import remove_other_fragments
from dataprune_ray.plans import ScorePlan
from dataprune_ray.predicting import JUDGES, judge_path, learner_path
from dataprune_ray.shuffling import remove_scratch

logger = logging.getLogger("dataprune")

#: Says which fragments everything was fitted to; hidden from Parquet readers by its name.
NOTE_FILE = "_fitted.json"


def renew(plan: ScorePlan) -> bool:
    """Make a score folder ready for fits to the plan's fragments; whether others were undone.

    Score files are removed first and the note of the fragments is written last: cut off half way,
    this is begun again. Nothing is done where nothing is fitted to the corpus before scoring.
    """
    if plan.learning is None and not plan.placed:
        return False
    note, now = join(plan.folder, NOTE_FILE), {"fragments": _digest(plan)}
    if exists(note) and json.loads(read_bytes(note)) == now:
        return False
    fitted = _fitted_files(plan)
    outdated = any(map(exists, fitted))
    if outdated:
        logger.info("other files can be read than before: everything is fitted and scored anew")
        remove_other_fragments(plan.folder, ())
        for path in fitted:
            remove_file(path)
        remove_scratch(plan.folder)
    write_bytes(note, json.dumps(now).encode())
    return outdated


def _digest(plan: ScorePlan) -> str:
    """Hex digest of the fragments: their files, their rows, and which cannot be read."""
    names = "\n".join(fragment.name for fragment in plan.rows.fragments)
    return hashlib.sha256(names.encode()).hexdigest()


def _fitted_files(plan: ScorePlan) -> list[str]:
    """Paths of all that is fitted; records go before the weights that they vouch for."""
    weights = [learner_path(plan.folder), *(judge_path(plan, judge) for judge in range(JUDGES))]
    pairs = [path for weight in weights for path in (beside(weight, ".json"), weight)]
    return [*pairs, plan.space_path, join(plan.folder, FIT_FILE)]
