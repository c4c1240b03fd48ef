"""Score tables of other runs, joined to one's own row by row: opened, and their rows compared.

Use them where a row has several modalities, each scored by a run of its own over one corpus.
"""

from __future__ import annotations

import hashlib
import json
import keyword
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dataprune_ray import schema
from dataprune_ray.errors import ConfigError
from dataprune_ray.io.corpus import Fragment
from dataprune_ray.io.filesystems import exists, join, read_bytes, redact
from dataprune_ray.io.output import PLAN
from dataprune_ray.io.scores import saved_fragments
from dataprune_ray.metrics import METRICS

FIELD = "with_scores"


@dataclass(frozen=True)
class JoinedTable:
    """A score table of another run.

    Attributes:
        name: what formulas call it.
        folder: where its score files lie.
        plan: what its run left beside them.
        digest: SHA-256 of the plan as stored, as hex digits.
    """

    name: str
    folder: str
    plan: dict[str, Any]
    digest: str

    @property
    def fragments(self) -> tuple[Fragment, ...]:
        """The fragments of its score files."""
        return saved_fragments(self.plan)

    @property
    def offers(self) -> dict[str, str]:
        """Its metrics, each with what it measures; formulas have no name to join them by."""
        found = {name: name for name in self.plan["metrics"] if name in METRICS}
        if "learned" in found:
            found["learned"] = self.plan["learned_metric"]
        return found

    def to_json(self, columns: Sequence[str]) -> dict[str, Any]:
        """What a plan says of it, JSON-ready; ``columns`` are all that are joined."""
        offers = self.offers
        return {
            "scores": redact(self.folder),
            "digest": self.digest,
            "metrics": {name: offers[name] for name in self.own(columns).values()},
        }

    def own(self, columns: Sequence[str]) -> dict[str, str]:
        """Its metrics by those of the joined ``columns``, ``TABLE.METRIC``, that are its own."""
        start = f"{self.name}."
        return {name: name.removeprefix(start) for name in columns if name.startswith(start)}


def open_joined(entries: Sequence[str]) -> tuple[JoinedTable, ...]:
    """The score tables of ``NAME=DIR`` entries, in their order.

    Raises:
        ConfigError: an entry has no name, a name occurs twice, or there is no score table.
    """
    found: dict[str, JoinedTable] = {}
    for entry in entries:
        name, _, place = entry.partition("=")
        plain = name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
        if not plain or not place:
            advice = "give NAME=DIR, such as image=pruned/images, with a plain word as NAME"
            raise ConfigError(FIELD, redact(entry), advice)
        if name in found:
            raise ConfigError(FIELD, redact(entry), f"{name} is a score table already")
        found[name] = _opened(name, place)
    return tuple(found.values())


def _opened(name: str, place: str) -> JoinedTable:
    for folder in (place, join(place, "scores")):
        if exists(join(folder, PLAN)):
            break
    else:
        advice = (
            "holds no complete score table; name a run's output or its scores/ folder, and run "
            "that job to its end first"
        )
        raise ConfigError(FIELD, redact(place), advice)
    content = read_bytes(join(folder, PLAN))
    plan = json.loads(content)
    if "fragments" not in plan or ("learned" in plan["metrics"] and "learned_metric" not in plan):
        advice = "was made by a version that says too little of it; score that corpus again"
        raise ConfigError(FIELD, redact(folder), advice)
    return JoinedTable(name, folder, plan, hashlib.sha256(content).hexdigest())


def digests_of(tables: Sequence[JoinedTable]) -> dict[str, str]:
    """Digests by the tables' names: what a run that joins them depends on."""
    return {table.name: table.digest for table in tables}


def joined_in(plan: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """By table, the metrics that were joined to a score table, from what lies beside that."""
    return {name: entry["metrics"] for name, entry in plan.get("joined", {}).items()}


# Rows --------------------------------------------------------------------------------------------

_POSITION = (schema.FILE, schema.ROW)


@dataclass(frozen=True)
class Source:
    """Where joined columns come from: a table's name and folder, its metrics by our columns."""

    name: str
    folder: str
    columns: Mapping[str, str]

    @property
    def reads(self) -> list[str]:
        """Columns of its score files that a join looks at."""
        return [*_POSITION, schema.ROW_HASH, schema.ERROR, *self.columns.values()]


def same_rows(own: pa.Table, other: pa.Table) -> bool:
    """Whether pieces of score tables hold the same rows in the same order.

    Identities are equal, or files and positions are: runs may know rows by different columns.
    """
    if len(own) != len(other):
        return False
    if own[schema.ROW_HASH].equals(other[schema.ROW_HASH]):
        return True
    files = [table[schema.FILE].cast(pa.string()) for table in (own, other)]
    return bool(files[0].equals(files[1]) and own[schema.ROW].equals(other[schema.ROW]))


def with_columns(own: pa.Table, other: pa.Table, source: Source) -> pa.Table:
    """A piece of a score table with the columns of another one's same rows.

    A row that is bad in the other table is bad here, too: its metrics are null, and its reason
    begins with the other table's name. A row that was bad already keeps its own reason.

    Raises:
        ConfigError: the rows are not the same.
    """
    if not same_rows(own, other):
        named = own[schema.FILE].cast(pa.string()).drop_null()
        where = f" of {named[0].as_py()}" if len(named) else ""
        raise ConfigError(
            FIELD,
            redact(source.folder),
            f"its rows{where} are not those of this run, so they cannot be joined; score that "
            "corpus again, or leave it out",
        )
    theirs = other[schema.ERROR]
    reason = pc.binary_join_element_wise(f"{source.name}: ", theirs, "")
    errors = pc.coalesce(own[schema.ERROR], reason)
    bad, table = pc.is_valid(errors), own
    for column, metric in source.columns.items():
        table = table.append_column(pa.field(column, pa.float32()), other[metric])
    for position, field in enumerate(table.schema):
        if field.name == schema.ERROR:
            table = table.set_column(position, field, errors)
        elif field.name not in schema.RESERVED:
            nothing = pa.scalar(None, field.type)
            table = table.set_column(position, field, pc.if_else(bad, nothing, table[field.name]))
    return table
