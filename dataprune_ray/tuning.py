"""Choosing a strategy by trial: cut, train, test on rows held out, keep the better half, again.

Candidates are cut from one score table. Each round trains the survivors for twice the updates of
the last and drops the worse half; random is always among them. The best is then held against
random once more on seeds that no round has seen, and is taken only where it is better beyond the
noise of those runs: random wins ties.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dataprune_ray import stages
from dataprune_ray.arms import Arm, names_of
from dataprune_ray.candidates import RANDOM_CANDIDATE, Candidate, candidates
from dataprune_ray.config import CorpusConfig, PruneConfig
from dataprune_ray.errors import ConfigError, GateError
from dataprune_ray.holding import Held, Limit, hold, members
from dataprune_ray.inference import differences, interval, judge, lower_bound
from dataprune_ray.io import open_corpus
from dataprune_ray.io.corpus import Corpus
from dataprune_ray.io.filesystems import join
from dataprune_ray.io.rows import RowPlan
from dataprune_ray.io.splits import Split
from dataprune_ray.recipes import Recipe, check_recipe
from dataprune_ray.selecting import select
from dataprune_ray.strategies import check_shares, get_strategy
from dataprune_ray.trials import TrialData, TrialPlan, run_trials
from dataprune_ray.understanding import Understanding
from dataprune_ray.verdict import FULL, RANDOM, Interval, TrialRun, Tuned, TuneStep

logger = logging.getLogger("dataprune")

FOLDER = "tune"
_SEEDS_PER_ROUND = 2
#: Seeds of the confirmation start here: no round uses them.
_FRESH = 1_000


@dataclass(frozen=True)
class Bench:
    """Where candidates are tried: the score table, the rows to train on and those to judge by."""

    config: PruneConfig
    understanding: Understanding
    scores: str
    folder: str
    train: Held
    judged: Held
    identity: str

    @property
    def updates(self) -> int:
        """Updates of a whole training: as many as the full rows get in their epochs."""
        settings = self.config.train
        passes = math.ceil(self.train.rows / settings.train_batch_size)
        return settings.updates or settings.epochs * passes

    def arm(self, candidate: Candidate, keep: float) -> Arm:
        """The candidate's cut.

        Raises:
            ConfigError: it cannot be made of these scores.
        """
        strategy = get_strategy(candidate.strategy)
        chosen = replace(self.understanding, strategy=strategy)
        fragments = self.understanding.rows.fragments
        table = stages.score_table(self.config, chosen, fragments, self.scores)
        settings = self.config.select.model_copy(
            update={"strategy": candidate.strategy, "beta": candidate.beta, "keep": keep}
        )
        return Arm(
            str(candidate),
            self.scores,
            names_of(fragments),
            rule=select(table, settings, chosen.info),
            group_column=table.group_column,
            seed=self.config.select.seed,
        )

    def full(self) -> Arm:
        """All scored rows."""
        return Arm(FULL, self.scores, names_of(self.understanding.rows.fragments))

    def run(self, arms: Sequence[Arm], seeds: Iterable[int], updates: int) -> list[TrialRun]:
        """Train each arm from each seed, and test on the judged rows."""
        recipe = Recipe.of(self.config.train)
        work: list[tuple[TrialPlan, TrialData]] = []
        seeds = list(seeds)
        for arm in arms:
            placed = members(arm, self.train)
            for seed in seeds:
                plan = TrialPlan(
                    arm=arm.name,
                    seed=seed,
                    fold=None,
                    budget="updates",
                    rows=placed.rows,
                    updates=updates,
                    per_epoch=math.ceil(placed.rows / recipe.batch_size),
                    recipe=recipe,
                    model=self.understanding.model,
                    identity=f"{self.identity}-{arm.digest()}",
                    num_gpus=self.config.train.train_gpus,
                )
                own = self.config.tune.validation is None
                work.append((plan, TrialData(self.train, placed, self.judged, None, own)))
        return run_trials(work, self.folder, lambda _: None)


def check(config: PruneConfig, understanding: Understanding) -> None:
    """Refuse a search that cannot be made; nothing was read or trained yet.

    Raises:
        ConfigError: there is no label, or a candidate does not exist or does not fit.
    """
    label = understanding.label
    if label.column is None:
        raise ConfigError("strategy", "auto", "trains models to choose, so it needs labels")
    grouped = label.task == "classification" or understanding.rows.group is not None
    for text in config.tune.candidates:
        one = Candidate.parse(text)
        if get_strategy(one.strategy).needs_labels and not grouped:
            raise ConfigError("candidates", text, "needs classes")
        if all(one.beta + keep > 1 for keep in config.tune.keeps or [config.select.keep]):
            raise ConfigError("candidates", text, "cuts off more than any asked keep leaves")
    for keep in config.tune.keeps:
        if not 0 < keep < 1:
            raise ConfigError("keeps", keep, "lies between 0 and 1")
        check_shares(get_strategy(RANDOM), config.select.model_copy(update={"keep": keep}))
    check_recipe(Recipe.of(config.train), understanding.model.features)


def choose(
    config: PruneConfig,
    understanding: Understanding,
    corpus: Corpus,
    scores: str,
    output: str,
    noise_share: float | None,
) -> Tuned:
    """The best strategy at ``keep``, or at the smallest of ``keeps`` that passes the gate.

    Raises:
        GateError: none of ``keeps`` passes.
        ConfigError: the validation corpus does not fit.
    """
    bench = _bench(config, understanding, corpus, scores, output)
    if not config.tune.keeps:
        return _best_at(bench, config.select.keep, noise_share, (), None)
    full = bench.run([bench.full()], _fresh(config), bench.updates)
    found: Tuned | None = None
    steps: tuple[TuneStep, ...] = ()
    for keep in sorted(config.tune.keeps, reverse=True):
        best = _best_at(bench, keep, noise_share, steps, full)
        steps = best.steps
        if not best.passed:
            break
        found = best
    if found is None:
        raise GateError(
            f"no keep of {', '.join(f'{keep:g}' for keep in config.tune.keeps)} passes the gate "
            f"(--max-drop {config.gate.max_drop:g}): {best.reason}"
        )
    return replace(found, steps=steps)


def _bench(
    config: PruneConfig, understanding: Understanding, corpus: Corpus, scores: str, output: str
) -> Bench:
    rows, model = understanding.rows, understanding.model
    advice = "search on a part of the corpus: candidates are trained on rows in memory"
    limit = Limit(config.train.train_memory_mb, advice)
    split = Split.share(config.tune.validation_fraction, config.select.seed + 1)
    tested = repr(split)
    if config.tune.validation is None:
        judged = hold(rows.within(split), model, limit)
        train = hold(rows.within(split.others()), model, limit)
    else:
        settings = {**config.corpus.model_dump(), "input": config.tune.validation}
        given = open_corpus(CorpusConfig.model_validate(settings))
        plan = RowPlan.of(given, rows.features, rows.label, rows.id_column, rows.seed)
        judged = hold(plan, model, limit)
        train = hold(rows, model, limit)
        tested = given.fingerprint()
    content = json.dumps([corpus.fingerprint(), tested])
    identity = hashlib.sha256(content.encode()).hexdigest()[:16]
    return Bench(config, understanding, scores, join(output, FOLDER), train, judged, identity)


def _fresh(config: PruneConfig) -> range:
    return range(_FRESH, _FRESH + config.train.seeds)


def _best_at(
    bench: Bench,
    keep: float,
    noise_share: float | None,
    steps: tuple[TuneStep, ...],
    full: Sequence[TrialRun] | None,
) -> Tuned:
    """Successive halving at one keep fraction, then the confirmation."""
    config = bench.config
    known = bench.understanding
    grouped = known.label.task == "classification" or known.rows.group is not None
    tried = candidates(config.tune.candidates, keep, noise_share, grouped=grouped)
    arms = {one: bench.arm(one, keep) for one in tried}
    alive = list(tried)
    rounds = config.tune.rounds
    best = RANDOM_CANDIDATE
    for number in range(rounds):
        updates = max(1, bench.updates >> (rounds - 1 - number))
        seeds = range(number * _SEEDS_PER_ROUND, (number + 1) * _SEEDS_PER_ROUND)
        runs = bench.run([arms[one] for one in alive], seeds, updates)
        means = {one: _scores(runs, one) for one in alive}
        ranked = sorted(alive, key=lambda one: _rank(means[one]))
        best = ranked[0]
        keeping = max(1, math.ceil(len(ranked) / 2))
        survivors = {*ranked[:keeping], RANDOM_CANDIDATE}
        steps += tuple(
            _step(number, one, keep, updates, means[one], survived=one in survivors)
            for one in ranked
        )
        _say_round(number, rounds, keep, ranked, means)
        alive = [one for one in ranked if one in survivors]
    return _confirmed(bench, best, keep, noise_share, steps, arms, full)


def _confirmed(
    bench: Bench,
    best: Candidate,
    keep: float,
    noise_share: float | None,
    steps: tuple[TuneStep, ...],
    arms: dict[Candidate, Arm],
    full: Sequence[TrialRun] | None,
) -> Tuned:
    """The best candidate against random, on seeds that no round used."""
    config = bench.config
    confidence = config.gate.confidence
    wanted = list(dict.fromkeys([best, RANDOM_CANDIDATE]))
    runs = bench.run([arms[one] for one in wanted], _fresh(config), bench.updates)
    confirmed: tuple[tuple[str, Interval], ...] = ()
    chosen = best
    where = f"on {bench.judged.rows:,} rows held out"
    if best == RANDOM_CANDIDATE:
        reason = f"No candidate did better than random {where}, so rows are chosen at random."
    else:
        pairs = differences(runs, str(best), RANDOM, "updates")
        found = interval(pairs, confidence)
        confirmed = ((str(best), found),)
        bound = lower_bound(pairs, confidence)
        said = (
            f"{best} minus random: {found.mean:+.2f} points {where}, over {len(pairs)} fresh seeds"
        )
        if bound > 0:
            reason = f"{said}; with {100 * confidence:g} % confidence at least {bound:+.2f}."
        else:
            chosen = RANDOM_CANDIDATE
            reason = f"{said}: not beyond what chance gives, so rows are chosen at random."
    if full is not None:
        passed, reasons = _gate(config, [*full, *runs], str(chosen))
        reason = f"{reason} {' '.join(reasons)}"
        logger.info("keep %g %s the gate", keep, "passes" if passed else "does not pass")
        pairs = differences([*full, *runs], str(chosen), FULL, "updates")
        confirmed += ((f"{chosen} against full", interval(pairs, confidence)),)
    logger.info("%s", reason)
    return Tuned(
        chosen=str(chosen),
        strategy=chosen.strategy,
        beta=chosen.beta,
        keep=keep,
        noise_share=noise_share,
        reason=reason,
        steps=steps,
        validation_rows=bench.judged.rows,
        confirmed=confirmed,
        passed=None if full is None else passed,
    )


def _gate(
    config: PruneConfig, runs: Sequence[TrialRun], chosen: str
) -> tuple[bool, tuple[str, ...]]:
    return judge(
        runs,
        arm=chosen,
        budget="updates",
        max_drop=config.gate.max_drop,
        confidence=config.gate.confidence,
        beat_random=config.gate.beat_random,
    )


def _rank(scores: Sequence[float]) -> float:
    """Ascending from the best mean; trainings that diverged come last."""
    mean = float(np.mean(scores))
    return -mean if math.isfinite(mean) else math.inf


def _scores(runs: Sequence[TrialRun], candidate: Candidate) -> list[float]:
    return [run.score for run in runs if run.arm == str(candidate)]


def _step(
    number: int,
    candidate: Candidate,
    keep: float,
    updates: int,
    scores: Sequence[float],
    *,
    survived: bool,
) -> TuneStep:
    spread = float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0
    mean = float(np.mean(scores))
    seeds = len(scores)
    return TuneStep(number + 1, str(candidate), keep, updates, seeds, mean, spread, survived)


def _say_round(
    number: int,
    rounds: int,
    keep: float,
    ranked: Sequence[Candidate],
    means: dict[Candidate, list[float]],
) -> None:
    shown = ", ".join(f"{one} {np.mean(means[one]):.2f}" for one in ranked[:6])
    more = f" and {len(ranked) - 6} more" if len(ranked) > 6 else ""  # noqa: PLR2004
    logger.info("keep %g, round %d of %d: %s%s", keep, number + 1, rounds, shown, more)
