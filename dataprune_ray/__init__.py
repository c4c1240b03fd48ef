"""Score every row of a training corpus on a Ray cluster, keep an exact fraction, prove it."""

__version__ = "0.1.0"
