"""The report: numbers in, one self-contained HTML page out.

``render`` and ``render_comparison`` are pure. They import no engine, open no file but their own
templates, and their pages need no network and no JavaScript. Whoever calls them gathers the numbers
and writes the page. ``to_json`` and ``from_json`` keep a report's numbers for a later job.
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
from dataprune_ray.report.page import PAGE_LIMIT, render, render_comparison
from dataprune_ray.report.store import STORE_LIMIT, from_json, to_json

__all__ = [
    "PAGE_LIMIT",
    "STORE_LIMIT",
    "BadRow",
    "ClassCount",
    "Gallery",
    "GalleryItem",
    "ReportData",
    "ScoreHistogram",
    "from_json",
    "render",
    "render_comparison",
    "to_json",
]
