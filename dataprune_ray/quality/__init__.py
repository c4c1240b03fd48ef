"""What can be said about the rows of a cut from models that have not seen them; numpy only."""

from __future__ import annotations

from dataprune_ray.quality.summary import Leakage, Quality

__all__ = ["Leakage", "Quality"]
