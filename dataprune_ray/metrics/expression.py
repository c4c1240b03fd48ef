"""Metrics combined by a formula, such as ``0.7 * rank(el2n) + 0.3 * rank(prototype)``.

Use it to weigh difficulty against the data distribution, with ``rank`` where the scales differ.
Only names of metrics, numbers, ``+ - * /``, parentheses, ``rank``, ``zscore`` and ``log`` are
understood; nothing is executed. A name with a dot is a metric of another run's score table:
``rank(el2n) + rank(image.el2n)``.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dataprune_ray.errors import ConfigError, UnknownNameError
from dataprune_ray.metrics.base import Metric, Polarity

#: Functions that look at the whole corpus, and those that look at a value alone.
GLOBAL = ("rank", "zscore")
FUNCTIONS = (*GLOBAL, "log")
_MOST_CHARACTERS = 500
_LARGEST = 1e100
_SIGNS = {"high": 1, "low": -1, "none": None}
_Values = NDArray[np.float64]
_OPERATIONS: dict[type[ast.operator], Callable[[_Values, _Values], _Values]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
}


class Scale(Protocol):
    """What a function of the whole corpus found of its argument."""

    def scaled(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """Values (n,) of the function for arguments (n,)."""
        ...


@dataclass(frozen=True)
class Expression:
    """A formula of metrics; ``text`` is its one spelling and the name of its score column."""

    text: str

    @property
    def tree(self) -> ast.expr:
        """Its parsed form."""
        return ast.parse(self.text, mode="eval").body

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that it names, in order, each once."""
        return _names(self.tree)

    def stages(self) -> Iterator[tuple[str, str]]:
        """Functions that must be looked at before values are known: name and argument's text.

        Inner ones come first. ``log`` is among them because its argument must be positive.
        """
        seen = set()
        for node in _post_order(self.tree):
            if isinstance(node, ast.Call):
                entry = (_function(node), ast.unparse(node.args[0]))
                if entry not in seen:
                    seen.add(entry)
                    yield entry

    def values(
        self,
        columns: Mapping[str, NDArray[np.float32]],
        scales: Mapping[str, Scale],
        *,
        rows: int,
    ) -> NDArray[np.float32]:
        """Its values (n,), rounded once, or before each function of the whole corpus.

        Args:
            columns: float32 (n,) of each metric.
            scales: of ``rank(X)`` and ``zscore(X)``, by that text.
            rows: n.

        Raises:
            ConfigError: a value is not finite.
        """
        with np.errstate(all="ignore"):
            found = np.asarray(_evaluate(self.tree, columns, scales, rows))
            rounded = np.broadcast_to(found, (rows,)).astype(np.float32)
        bad = rows - int(np.count_nonzero(np.isfinite(rounded)))
        if bad:
            raise ConfigError(
                "metric", self.text, f"is not finite for {bad:,} rows: divides by 0 or overflows"
            )
        return rounded

    def as_metric(self, metrics: Mapping[str, Metric]) -> Metric:
        """It as an entry beside the metrics it is made of; polarity where these agree on one."""
        sign = _sign(self.tree, metrics)
        polarity: Polarity = "none" if not sign else "high" if sign > 0 else "low"
        low, high = _interval(self.tree, metrics)
        return Metric(
            name=self.text,
            summary="a formula of other metrics",
            advice="not without rank or zscore where the scales of the metrics differ",
            needs=frozenset(),
            polarity=polarity,
            low=low,
            high=high,
            noise_end=None,
            regression=all(metrics[name].regression for name in self.metrics),
            cost="none",
            score=None,
            combines=self.metrics,
        )


def is_expression(name: str) -> bool:
    """Whether a metric is named by a formula."""
    return not name.isidentifier()


def parse(text: str, known: Mapping[str, Metric]) -> Expression:
    """A formula, in its one spelling.

    Raises:
        ConfigError: it holds something else than metrics, numbers, operations and functions.
        UnknownNameError: it names a metric that there is not.
    """
    if len(text) > _MOST_CHARACTERS:
        raise ConfigError("metric", f"{text[:40]}…", f"is longer than {_MOST_CHARACTERS} letters")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError("metric", text, f"is neither a metric nor a formula: {error}") from None
    _check(tree, text)
    for name in _names(tree):
        if name not in known:
            raise _unknown(name, known)
    if not _names(tree):
        raise ConfigError("metric", text, "names no metric")
    return Expression(ast.unparse(tree))


def _unknown(name: str, known: Mapping[str, Metric]) -> ConfigError:
    """What is wrong with a name: the metric, or the score table before its dot."""
    table, dot, _ = name.partition(".")
    if not dot:
        return UnknownNameError("metric", name, known)
    own = [metric for metric in known if metric.startswith(f"{table}.")]
    if own:
        return UnknownNameError("metric", name, own)
    tables = sorted({metric.partition(".")[0] for metric in known if "." in metric})
    there = f"there are {', '.join(tables)}; " if tables else ""
    return ConfigError(
        "metric", name, f"no score table is named {table!r}; {there}pass --with-scores {table}=DIR"
    )


def _is_name(node: ast.expr) -> bool:
    """Whether a part is a metric's name, with one dot at most."""
    if isinstance(node, ast.Attribute):
        return isinstance(node.value, ast.Name)
    return isinstance(node, ast.Name)


def _check(node: ast.expr, text: str) -> None:
    """Refuse everything that is not on the list."""
    if _is_name(node):
        return
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) > _LARGEST:  # infinity too
            raise ConfigError("metric", text, f"{ast.unparse(node)} is too large a number")
        return
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        _check(node.operand, text)
        return
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        _check(node.left, text)
        _check(node.right, text)
        return
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in FUNCTIONS
        and len(node.args) == 1
        and not node.keywords
    ):
        _check(node.args[0], text)
        return
    raise ConfigError(
        "metric",
        text,
        f"cannot hold {ast.unparse(node)!r}; a formula is made of metrics, numbers, + - * / and "
        f"{', '.join(FUNCTIONS)} of one argument",
    )


def _post_order(node: ast.expr) -> Iterator[ast.expr]:
    """Inner parts of a checked formula before outer ones."""
    if isinstance(node, ast.UnaryOp):
        yield from _post_order(node.operand)
    elif isinstance(node, ast.BinOp):
        yield from _post_order(node.left)
        yield from _post_order(node.right)
    elif isinstance(node, ast.Call):
        yield from _post_order(node.args[0])
    yield node


def _names(node: ast.expr) -> tuple[str, ...]:
    return tuple(dict.fromkeys(ast.unparse(n) for n in _post_order(node) if _is_name(n)))


def _function(node: ast.Call) -> str:
    return ast.unparse(node.func)


def _evaluate(
    node: ast.expr,
    columns: Mapping[str, NDArray[np.float32]],
    scales: Mapping[str, Scale],
    rows: int,
) -> _Values:
    if isinstance(node, ast.Constant):
        return np.array(node.value, np.float64)
    if _is_name(node):
        return columns[ast.unparse(node)].astype(np.float64)
    if isinstance(node, ast.UnaryOp):
        return -_evaluate(node.operand, columns, scales, rows)
    if isinstance(node, ast.BinOp):
        left, right = (_evaluate(side, columns, scales, rows) for side in (node.left, node.right))
        return _OPERATIONS[type(node.op)](left, right)
    if not isinstance(node, ast.Call):
        raise TypeError(f"{ast.dump(node)} was not checked")
    inner = Expression(ast.unparse(node.args[0])).values(columns, scales, rows=rows)
    if _function(node) == "log":
        return np.log(inner.astype(np.float64))
    return scales[ast.unparse(node)].scaled(inner)


def _constant(node: ast.expr) -> float | None:
    """The value of a part that names no metric; None where it does or has no value."""
    if _names(node) or any(isinstance(part, ast.Call) for part in _post_order(node)):
        return None
    with np.errstate(all="ignore"):
        value = float(_evaluate(node, {}, {}, 1))
    return value if math.isfinite(value) else None


def _sign(node: ast.expr, metrics: Mapping[str, Metric]) -> int | None:
    """How a part moves when its metrics move to their better ends: 1, -1, 0 or, unknown, None."""
    sign: int | None = 0
    if _is_name(node):
        sign = _SIGNS[metrics[ast.unparse(node)].polarity]
    elif isinstance(node, ast.Call):
        sign = _sign(node.args[0], metrics)
    elif isinstance(node, ast.UnaryOp):
        sign = _times(_sign(node.operand, metrics), -1.0)
    elif isinstance(node, ast.BinOp):
        sign = _sign_of_operation(node, metrics)
    return sign


def _sign_of_operation(node: ast.BinOp, metrics: Mapping[str, Metric]) -> int | None:
    left, right = _sign(node.left, metrics), _sign(node.right, metrics)
    if isinstance(node.op, ast.Add | ast.Sub):
        right = _times(right, -1.0 if isinstance(node.op, ast.Sub) else 1.0)
        if left is None or right is None or left * right < 0:
            return None
        return left or right
    factor, other = _constant(node.right), left
    if factor is None and isinstance(node.op, ast.Mult):
        factor, other = _constant(node.left), right
    if factor is None:
        return 0 if left == right == 0 else None
    return _times(other, factor)


def _times(sign: int | None, factor: float) -> int | None:
    if sign is None:
        return None if factor else 0
    return sign * ((factor > 0) - (factor < 0))


def _interval(node: ast.expr, metrics: Mapping[str, Metric]) -> tuple[float, float]:
    """Bounds of a part, from the ranges of its metrics; infinite where they are not known."""
    everything = (-math.inf, math.inf)
    if _is_name(node):
        metric = metrics[ast.unparse(node)]
        return metric.low, metric.high
    if isinstance(node, ast.Call):
        return (0.0, 1.0) if _function(node) == "rank" else everything
    if isinstance(node, ast.UnaryOp):
        low, high = _interval(node.operand, metrics)
        return -high, -low
    if not isinstance(node, ast.BinOp):
        value = _constant(node)
        return everything if value is None else (value, value)
    if isinstance(node.op, ast.Div) and not _constant(node.right):
        return everything
    (a, b), (c, d) = _interval(node.left, metrics), _interval(node.right, metrics)
    if isinstance(node.op, ast.Add | ast.Sub):
        low, high = (a + c, b + d) if isinstance(node.op, ast.Add) else (a - d, b - c)
    else:
        with np.errstate(all="ignore"):
            ends = [
                float(_OPERATIONS[type(node.op)](np.float64(x), np.float64(y)))  # type: ignore[arg-type]
                for x in (a, b)
                for y in (c, d)
            ]
        low, high = (math.nan, math.nan) if any(map(math.isnan, ends)) else (min(ends), max(ends))
    return everything if math.isnan(low) or math.isnan(high) else (low, high)
