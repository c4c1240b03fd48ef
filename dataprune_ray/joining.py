"""Score tables of other runs as columns of one's own: a pass over score files, before formulas.

Each file is joined with the files of the same fragment, row by row, and rewritten once. Not for
tables that were cut in other fragments: these are refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate

import pyarrow.parquet as pq

from dataprune_ray import schema
from dataprune_ray.errors import ConfigError
from dataprune_ray.io.corpus import Corpus, Fragment
from dataprune_ray.io.filesystems import (
    atomic_output,
    join,
    list_names,
    open_input,
    redact,
)
from dataprune_ray.io.joined import FIELD, JoinedTable, Source, open_joined, with_columns
from dataprune_ray.plans import FragmentCount, ScorePlan
from dataprune_ray.tasks import run_tasks
from dataprune_ray.unchanged import settled


def shared_fragments(corpus: Corpus, tables: Sequence[JoinedTable]) -> tuple[Fragment, ...]:
    """The fragments of all the tables, in which the corpus is scored, too.

    Raises:
        ConfigError: a table is of another corpus, in other fragments, or lacks files.
    """
    first = tables[0]
    names = [fragment.name for fragment in first.fragments]
    for table in tables:
        expected = table.plan["corpus"]
        if settled(corpus, table.folder, expected).fingerprint() != expected:
            advice = "belongs to another corpus, or its files changed since; score it again"
            raise ConfigError(FIELD, redact(table.folder), advice)
        if [fragment.name for fragment in table.fragments] != names:
            advice = (
                f"is cut in other fragments than {redact(first.folder)}; score one of them again, "
                "with the --fragment-rows of the other and without --baseline"
            )
            raise ConfigError(FIELD, redact(table.folder), advice)
        missing = {f"{name}.parquet" for name in names} - set(list_names(table.folder, ".parquet"))
        if missing:
            advice = f"lacks {len(missing)} of {len(names)} score files; score that corpus again"
            raise ConfigError(FIELD, redact(table.folder), advice)
    return first.fragments


def sources_of(tables: Sequence[JoinedTable], columns: Sequence[str]) -> tuple[Source, ...]:
    """Where the joined ``columns``, as ``TABLE.METRIC``, come from."""
    return tuple(Source(table.name, table.folder, table.own(columns)) for table in tables)


def join_scores(
    plan: ScorePlan,
    tables: Sequence[JoinedTable],
    columns: Sequence[str],
    counts: list[FragmentCount],
) -> list[FragmentCount]:
    """Add the joined columns to the score files that lack them; counts with the rows bad now.

    Raises:
        ConfigError: a table changed since the run began, or holds other rows.
    """
    if not tables:
        return counts
    for table in tables:
        (now,) = open_joined([f"{table.name}={table.folder}"])
        if now.digest != table.digest:
            advice = "changed while this run used it; run the job again"
            raise ConfigError(FIELD, redact(table.folder), advice)
    work = partial(_join_file, sources_of(tables, columns))
    items = [(f.index, f"{f.name}.parquet", plan.path(f)) for f in plan.rows.fragments]
    bad = dict(run_tasks(work, items))
    return [replace(count, bad=bad[count.index]) for count in counts]


def _join_file(sources: Sequence[Source], item: tuple[int, str, str]) -> tuple[int, int]:
    """Rewrite a fragment's score file with the joined columns; its index and bad rows."""
    index, name, path = item
    with open_input(path) as file:
        parquet = pq.ParquetFile(file)
        note = json.loads(parquet.metadata.metadata[schema.NOTE])
        wanted = {column for source in sources for column in source.columns}
        if wanted <= set(parquet.schema_arrow.names):
            return index, int(note["bad"])
        sizes = [parquet.metadata.row_group(n).num_rows for n in range(parquet.num_row_groups)]
        table = parquet.read(use_threads=False)
    for source in sources:
        with open_input(join(source.folder, name)) as file:
            other = pq.ParquetFile(file).read(columns=source.reads, use_threads=False)
        table = with_columns(table, other, source)
    note["bad"] = len(table) - table[schema.ERROR].null_count
    with (
        atomic_output(path) as stream,
        pq.ParquetWriter(stream, table.schema, use_dictionary=list(schema.REPEATED)) as out,
    ):
        for start, size in zip(accumulate(sizes, initial=0), sizes, strict=False):
            out.write_table(table.slice(start, size).unify_dictionaries())
        out.add_key_value_metadata({schema.NOTE.decode(): json.dumps(note)})
    return index, int(note["bad"])
