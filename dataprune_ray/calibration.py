"""Constants of the cost model that do not depend on the corpus, and what they were fitted on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Constants:
    """Seconds of one core, unless a name says bytes; none depends on the corpus.

    ``start_*`` are seconds before a stage's first unit of work, ``*_row`` seconds per row,
    ``*_byte`` seconds per byte of the rows in memory, ``task`` and ``block`` seconds of the driver
    for each Ray task and for each fragment of the scoring pool.
    """

    start_ray: float
    start_scan: float
    start_train: float
    start_pool: float
    start_select: float
    start_decide: float
    start_write: float
    start_report: float
    file: float
    task: float
    block: float
    scan_value: float
    cut_row: float
    decide_row: float
    copy_row: float
    read_byte: float
    write_byte: float
    report_row: float
    decision_bytes_row: float
    driver_bytes: float
    driver_bytes_fragment: float
    driver_bytes_file: float
    driver_bytes_part: float


#: On two cores of an x86-64 server, Python 3.11, Ray 2.60, pyarrow 26, local files. ``*_row``,
#: ``*_byte``, ``scan_value``, ``block`` and ``decision_bytes_row`` are what
#: ``python tests/benchmarks/costs.py`` found at 400,000 rows. ``start_*`` are rounded from the
#: stages of small jobs on the same machine, which had other work besides; ``task`` is that of
#: no-op tasks, ``file`` of listing Parquet files on a local disk. ``driver_bytes`` is what imports
#: take, and the largest arrays of a cut; the others come from ``tests/benchmarks/scale.py``.
FITTED = Constants(
    start_ray=4.0,
    start_scan=2.4,
    start_train=4.0,
    start_pool=6.5,
    start_select=0.5,
    start_decide=0.3,
    start_write=0.2,
    start_report=1.5,
    file=0.001,
    task=0.002,
    block=0.009,
    scan_value=5.54e-8,
    cut_row=3.15e-8,
    decide_row=5.01e-7,
    copy_row=2.89e-7,
    read_byte=4.78e-10,
    write_byte=1.79e-9,
    report_row=2.15e-7,
    decision_bytes_row=12.6,
    driver_bytes=8.3e8,
    driver_bytes_fragment=500.0,
    driver_bytes_file=2_700.0,
    driver_bytes_part=4_500.0,
)
