"""What a search for a strategy tries: strategies with the share that they cut as noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dataprune_ray.errors import ConfigError
from dataprune_ray.strategies import get_strategy
from dataprune_ray.verdict import RANDOM

_BETAS = (0.0, 0.1, 0.2, 0.3)
#: A noise share below this is taken for none.
_CLEAN = 0.01


@dataclass(frozen=True)
class Candidate:
    """A strategy with the share it cuts as noise."""

    strategy: str
    beta: float = 0.0

    def __str__(self) -> str:
        return f"{self.strategy}:{self.beta:g}" if self.beta else self.strategy

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """A candidate from ``NAME`` or ``NAME:BETA``.

        Raises:
            ConfigError: no such strategy, one that looks at no keep fraction, or no such beta.
        """
        name, _, share = text.partition(":")
        strategy = get_strategy(name)
        if not strategy.uses_keep:
            raise ConfigError("candidates", text, "does not keep a given fraction")
        try:
            beta = float(share or 0)
        except ValueError:
            raise ConfigError("candidates", text, "give a beta such as stratified:0.2") from None
        if not 0 <= beta < 1:
            raise ConfigError("candidates", text, "beta lies between 0 and 1")
        if beta and not strategy.uses_beta:
            raise ConfigError(
                "candidates", text, f"{name} cuts nothing off as noise; leave beta out"
            )
        return cls(name, beta)


RANDOM_CANDIDATE = Candidate(RANDOM)


def candidates(
    asked: Sequence[str], keep: float, noise_share: float | None, *, grouped: bool
) -> tuple[Candidate, ...]:
    """What is tried at a keep fraction; random is always among it.

    By default keep-hard, class-balanced, windows and stratified cuts, whose beta are a few round
    shares, the estimated noise share and a little more than it.
    """
    if asked:
        named = [Candidate.parse(text) for text in asked]
    else:
        noise = round(noise_share or 0.0, 2)
        noise = noise if noise >= _CLEAN else 0.0
        shares = sorted({*_BETAS, noise, round(noise + 0.1, 2)})
        named = [Candidate("ratio")]
        named += [Candidate("window", share) for share in shares if share]
        named += [Candidate("stratified", share) for share in shares]
        if grouped:
            named += [Candidate("class_balanced", share) for share in sorted({0.0, noise})]
    fitting = [one for one in named if one.beta + keep <= 1]
    return tuple(dict.fromkeys([*fitting, RANDOM_CANDIDATE]))
