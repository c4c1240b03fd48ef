"""Blocks of scored rows, and the protocol of anything that can reduce over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

S = TypeVar("S")

#: Columns a kernel can ask for: "scores", "hashes", "groups", or another score column's name.
Column = str

_KNOWN: frozenset[Column] = frozenset({"scores", "hashes", "groups"})

#: Group names of a population without groups.
UNGROUPED = ("",)


@dataclass(frozen=True, eq=False)
class Block:
    """Some rows of a population; columns that were not asked for are None.

    Attributes:
        scores: float32 (n,), finite.
        hashes: uint64 (n,), mixed with the seed (see ``keys.seeded_hash``).
        groups: int32 (n,), group code of each row; None where there is one group only.
        rows: n; needed only where all columns are None.
        others: float32 (n,), finite, of other score columns by name.
    """

    scores: NDArray[np.float32] | None = None
    hashes: NDArray[np.uint64] | None = None
    groups: NDArray[np.int32] | None = None
    rows: int = -1
    others: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = {len(c) for c in (self.scores, self.hashes, self.groups) if c is not None}
        sizes |= {len(values) for values in self.others.values()}
        if self.rows >= 0:
            sizes.add(self.rows)
        if len(sizes) != 1:
            raise ValueError(f"a block needs columns of one length, found {sorted(sizes)}")
        object.__setattr__(self, "rows", sizes.pop())

    def need_scores(self) -> NDArray[np.float32]:
        """The scores, or a ValueError where they were not read."""
        return _present(self.scores, "scores")

    def need_hashes(self) -> NDArray[np.uint64]:
        """The hashes, or a ValueError where they were not read."""
        return _present(self.hashes, "hashes")

    def need_other(self, name: str) -> NDArray[np.float32]:
        """The scores of another column, or a ValueError where they were not read."""
        return _present(self.others.get(name), name)

    def take(self, chosen: NDArray[np.bool_]) -> Block:
        """The rows of which ``chosen`` (n,) is true, with all their columns."""
        return Block(
            scores=None if self.scores is None else self.scores[chosen],
            hashes=None if self.hashes is None else self.hashes[chosen],
            groups=None if self.groups is None else self.groups[chosen],
            rows=int(np.count_nonzero(chosen)),
            others={name: values[chosen] for name, values in self.others.items()},
        )

    def codes(self, group_count: int) -> NDArray[np.int32] | None:
        """Group codes (n,), or None where every row is in the only group.

        Raises:
            ValueError: there are several groups but no codes, or a code is out of range.
        """
        if group_count == 1:
            return None
        codes = _present(self.groups, "groups")
        if len(codes) and (codes.min() < 0 or codes.max() >= group_count):
            raise ValueError(
                f"group codes must lie in 0..{group_count - 1}, found {codes.min()}..{codes.max()}"
            )
        return codes


class Population(Protocol):
    """All scored rows, wherever they are."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Group names by code; ``("",)`` where the rows are not grouped."""
        ...

    def reduce(
        self,
        kernel: Callable[[Block], S],
        merge: Callable[[S, S], S],
        columns: frozenset[Column],
    ) -> S:
        """Map ``kernel`` over all blocks and merge the results in any order and grouping.

        Args:
            kernel: picklable; of an empty population it sees one empty block.
            merge: commutative and associative; it may change and return its first argument.
            columns: what the kernel reads; the block's other columns are None.
        """
        ...


@dataclass(frozen=True)
class MemoryPopulation:
    """A population of blocks held in memory: for tests and small data."""

    blocks: Sequence[Block]
    groups: tuple[str, ...] = UNGROUPED

    def reduce(
        self,
        kernel: Callable[[Block], S],
        merge: Callable[[S, S], S],
        columns: frozenset[Column],
    ) -> S:
        """See :class:`Population`."""
        if not self.blocks:
            return kernel(empty_block(columns))
        first, *others = self.blocks
        merged = kernel(_project(first, columns))
        for block in others:
            merged = merge(merged, kernel(_project(block, columns)))
        return merged


@dataclass(frozen=True)
class _Pooled:
    """A population seen as one group."""

    source: Population
    groups: tuple[str, ...] = UNGROUPED

    def reduce(
        self,
        kernel: Callable[[Block], S],
        merge: Callable[[S, S], S],
        columns: frozenset[Column],
    ) -> S:
        return self.source.reduce(kernel, merge, columns - {"groups"})


def pooled(population: Population) -> Population:
    """The same rows as one group: for rules that look at the corpus as a whole."""
    return population if population.groups == UNGROUPED else _Pooled(population)


@dataclass(frozen=True)
class _Derived:
    """A population whose blocks are looked at through a function."""

    source: Population
    groups: tuple[str, ...]
    view: Callable[[Block], Block]
    reads: frozenset[Column]

    def reduce(
        self,
        kernel: Callable[[Block], S],
        merge: Callable[[S, S], S],
        columns: frozenset[Column],
    ) -> S:
        through = _Through(kernel, self.view, columns)
        return self.source.reduce(through, merge, (columns - {"groups"}) | self.reads)


@dataclass(frozen=True)
class _Through(Generic[S]):
    """A kernel that sees each block through a view, with the columns it asked for."""

    kernel: Callable[[Block], S]
    view: Callable[[Block], Block]
    columns: frozenset[Column]

    def __call__(self, block: Block) -> S:
        return self.kernel(_project(self.view(block), self.columns))


def derived(
    population: Population,
    groups: tuple[str, ...],
    view: Callable[[Block], Block],
    reads: frozenset[Column],
) -> Population:
    """The rows seen through ``view``: some left out, or in other groups.

    Args:
        population: the rows.
        groups: group names of the view, by code.
        view: picklable; of a block with the columns ``reads`` and those that a kernel asks for
            (never with the source's groups unless in ``reads``), the block that the kernel sees.
            Columns that it was given it must give back; those it makes it may always give.
        reads: columns that the view needs.
    """
    return _Derived(population, groups, view, reads)


@dataclass(frozen=True)
class _Filtered:
    """A population of which some rows are left out."""

    source: Population
    chosen: Callable[[Block], NDArray[np.bool_]]
    reads: frozenset[Column]

    @property
    def groups(self) -> tuple[str, ...]:
        return self.source.groups

    def reduce(
        self,
        kernel: Callable[[Block], S],
        merge: Callable[[S, S], S],
        columns: frozenset[Column],
    ) -> S:
        through = _Through(kernel, _Take(self.chosen), columns)
        return self.source.reduce(through, merge, columns | self.reads)


@dataclass(frozen=True)
class _Take:
    """The rows of a block that a function chooses."""

    chosen: Callable[[Block], NDArray[np.bool_]]

    def __call__(self, block: Block) -> Block:
        return block.take(self.chosen(block))


def filtered(
    population: Population,
    chosen: Callable[[Block], NDArray[np.bool_]],
    reads: frozenset[Column],
) -> Population:
    """The rows that ``chosen`` is true of, in the same groups.

    Args:
        population: the rows.
        chosen: picklable; of a block with the columns ``reads``, bool (n,).
        reads: columns that it needs.
    """
    return _Filtered(population, chosen, reads)


@dataclass(frozen=True)
class _Scored:
    """A population by another of its score columns."""

    source: Population
    column: str

    @property
    def groups(self) -> tuple[str, ...]:
        return self.source.groups

    def reduce(
        self,
        kernel: Callable[[Block], S],
        merge: Callable[[S, S], S],
        columns: frozenset[Column],
    ) -> S:
        if "scores" not in columns:
            return self.source.reduce(kernel, merge, columns)
        through = _Through(kernel, _Swap(self.column), columns)
        return self.source.reduce(through, merge, (columns - {"scores"}) | {self.column})


@dataclass(frozen=True)
class _Swap:
    """A block with another column as its scores."""

    column: str

    def __call__(self, block: Block) -> Block:
        scores = block.need_other(self.column)
        return Block(scores, block.hashes, block.groups, block.rows, block.others)


def scored_by(population: Population, column: str) -> Population:
    """The same rows and groups with another score column as their scores."""
    return _Scored(population, column)


@dataclass
class Counted:
    """A population that counts how often it is passed over: what a rule costs to compile.

    ``passes`` counts the reductions so far; one of a view of this population counts, too.
    """

    source: Population
    passes: int = 0

    @property
    def groups(self) -> tuple[str, ...]:
        """See :class:`Population`."""
        return self.source.groups

    def reduce(
        self,
        kernel: Callable[[Block], S],
        merge: Callable[[S, S], S],
        columns: frozenset[Column],
    ) -> S:
        """See :class:`Population`."""
        self.passes += 1
        return self.source.reduce(kernel, merge, columns)


def group_column(population: Population) -> frozenset[Column]:
    """The column that tells groups apart, where there are several."""
    return frozenset({"groups"}) if len(population.groups) > 1 else frozenset()


def empty_block(columns: frozenset[Column]) -> Block:
    """A block of no rows with the given columns."""
    return Block(
        scores=np.empty(0, np.float32) if "scores" in columns else None,
        hashes=np.empty(0, np.uint64) if "hashes" in columns else None,
        groups=np.empty(0, np.int32) if "groups" in columns else None,
        rows=0,
        others={name: np.empty(0, np.float32) for name in columns - _KNOWN},
    )


def _project(block: Block, columns: frozenset[Column]) -> Block:
    return Block(
        scores=block.need_scores() if "scores" in columns else None,
        hashes=block.need_hashes() if "hashes" in columns else None,
        groups=_present(block.groups, "groups") if "groups" in columns else None,
        rows=block.rows,
        others={name: block.need_other(name) for name in sorted(columns - _KNOWN)},
    )


def _present(column: NDArray[S] | None, name: str) -> NDArray[S]:  # type: ignore[type-var]
    if column is None:
        raise ValueError(f"the block has no {name}: ask for them in columns")
    return column
