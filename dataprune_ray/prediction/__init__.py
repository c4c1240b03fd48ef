"""Predicted importance: a small model of what an expensive metric would say."""

from __future__ import annotations

from dataprune_ray.prediction.cues import CUES, cues_of
from dataprune_ray.prediction.learner import LEAST_ROWS, Agreement, Learner, Lesson

__all__ = ["CUES", "LEAST_ROWS", "Agreement", "Learner", "Lesson", "cues_of"]
