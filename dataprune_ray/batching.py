"""How many rows go through a model at once: found on a GPU, and fewer where memory runs out.

Scores do not depend on it beyond the rounding of floating-point numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch

from dataprune_ray.errors import ConfigError

T = TypeVar("T")
logger = logging.getLogger("dataprune")

#: What libraries say, in exceptions of no type of their own, where memory does not suffice.
_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_NOT_SUPPORTED",
    "unable to find an engine to execute this computation",
    "Unable to find a valid cuDNN algorithm",
)
#: A batch twice as large must be as much faster per row, or it is not worth its memory.
_GAIN = 1.05


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a forward pass failed for want of memory, as far as its message tells."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


class BatchSize:
    """Rows of a forward pass: halved, for good, whenever memory does not suffice for as many."""

    def __init__(self, rows: int, model: str, release: Callable[[], None]) -> None:
        self.rows = rows
        self.asked = rows
        self.model = model
        self._release = release

    def parts(
        self, count: int, shape: tuple[int, ...], run: Callable[[slice], T]
    ) -> Iterator[tuple[slice, T]]:
        """Run ``count`` rows part by part, in order and each once; parts and what they gave.

        A part that memory does not suffice for is run again in smaller ones. ``shape`` is that of
        a row, for the error's text.

        Raises:
            ConfigError: not even one row fits.
        """
        first = 0
        while first < count:
            part = slice(first, min(first + self.rows, count))
            try:
                result = run(part)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
            else:
                yield part, result
                first = part.stop
                continue
            self._halve(part.stop - part.start, shape, reason)  # the error let go of its tensors

    def _halve(self, tried: int, shape: tuple[int, ...], reason: str) -> None:
        self._release()
        if self.rows == 1:
            inputs = " x ".join(map(str, shape))
            raise ConfigError(
                "model",
                self.model,
                f"memory does not suffice for a single row of {inputs}: {reason}; take a smaller "
                "model or --image-size, --precision bfloat16, fewer checkpoints or metrics of "
                "gradients at once, or a larger share of a GPU with --num-gpus",
            )
        before, self.rows = self.rows, max(1, self.rows // 2)
        logger.warning(
            "out of memory at %d rows (batch size %d): going on with %d",
            *(tried, before, self.rows),
        )


class Trial(NamedTuple):
    """A batch of so many rows that was tried: seconds and bytes it took."""

    rows: int
    seconds: float
    bytes: int

    @property
    def rate(self) -> float:
        """Rows per second."""
        return self.rows / max(self.seconds, 1e-9)


def fitting_rows(
    attempt: Callable[[int], tuple[float, int]], budget: int, first: int, most: int
) -> int:
    """Rows of a batch: doubled from ``first`` to ``most`` while that is faster and fits.

    ``attempt`` runs a batch and gives its seconds and bytes; where it runs out of memory, or
    twice the bytes would exceed the ``budget``, nothing larger is tried.
    """
    best = Trial(first, float("inf"), 0)
    rows = first
    while rows <= most:
        try:
            trial = Trial(rows, *attempt(rows))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        if trial.bytes > budget or trial.rate < _GAIN * best.rate:
            break
        best = trial
        if 2 * trial.bytes > budget:
            break
        rows *= 2
    return best.rows
