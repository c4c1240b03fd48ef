"""The feature space of a corpus: fitted once to a sample, then every row is placed in it alone.

Pure numpy and scikit-learn. Use it through the metrics of the data distribution
(`dataprune_ray.metrics.distribution`); nothing here opens a file.
"""

from __future__ import annotations

from dataprune_ray.space.coverage import facility_location, k_center
from dataprune_ray.space.density import Density
from dataprune_ray.space.duplicates import later_copies, redundancy
from dataprune_ray.space.fitted import INPUTS, MODEL, Space, SpaceOptions, Survey
from dataprune_ray.space.within import ClusterValues, Members, within_clusters

__all__ = [
    "INPUTS",
    "MODEL",
    "ClusterValues",
    "Density",
    "Members",
    "Space",
    "SpaceOptions",
    "Survey",
    "facility_location",
    "k_center",
    "later_copies",
    "redundancy",
    "within_clusters",
]
