"""The report: numbers in, one self-contained HTML page out.

``render`` is pure. It imports no engine, opens no file but its own template, needs no network and
no JavaScript in the browser. Whoever calls it gathers the numbers and writes the page.
"""

from __future__ import annotations

from dataprune_ray.report.data import (
    BadRow,
    ClassCount,
    Gallery,
    GalleryItem,
    ReportData,
    ScoreHistogram,
)
from dataprune_ray.report.page import PAGE_LIMIT, render

__all__ = [
    "PAGE_LIMIT",
    "BadRow",
    "ClassCount",
    "Gallery",
    "GalleryItem",
    "ReportData",
    "ScoreHistogram",
    "render",
]
