"""How rows get to a device and results back from it.

On a GPU both ways are queued: rows go through pinned memory on a stream of their own while the
models still run the batch before, and results are collected once the next batch is on its way.
On a CPU there is nothing to move.
"""

from __future__ import annotations

import platform
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dataprune_ray.errors import ConfigError

_PIXEL_AXES = 4  # (B, C, H, W)
#: Of the memory that is free: the rest is for what other batches need more of.
_SPARE = 0.8


class Lane:
    """The way to the CPU, which rows are on already."""

    depth = 0  # batches that may be on their way before the results of the first are asked for
    channels_last = True  # convolutions are faster with the channels of a pixel side by side

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def send(self, values: npt.NDArray[Any]) -> Tensor:
        """Rows (m, …) on the device; they may share the array's memory."""
        return _shared(values)

    def fetch(self, results: Tensor) -> Callable[[], npt.NDArray[Any]]:
        """What gives results as an array once they are there; waits for them if need be."""
        return results.numpy

    @contextmanager
    def working(self) -> Iterator[None]:
        """The block's work is queued on the device: counted as busy time, where there is any."""
        yield

    def busy(self) -> float | None:
        """Seconds of finished work since the last call; None on a CPU, where nobody counts."""
        return None

    def release(self) -> None:
        """Give memory back that is not in use."""

    def budget(self, share: float) -> int:
        """Bytes that a batch may take where this worker has a ``share`` of the device; 0: unknown.

        A CPU's memory belongs to everybody on the machine, so batches are not sized by it.
        """
        del share
        return 0

    def measure(self, work: Callable[[], None]) -> tuple[float, int]:
        """Seconds that work took once it was warm, and bytes that it needed at most."""
        raise NotImplementedError("a CPU's batches are not measured")

    def arrange(self, models: Sequence[nn.Module], example: npt.NDArray[Any]) -> bool:
        """Lay convolutions out with the channels of a pixel side by side, where that is faster.

        ``models`` are of one architecture and on the device, ``example`` is a small batch of their
        inputs. Says whether inputs are to be laid out like that, too. Models stay as they are where
        they insist on their layout, as one does that calls ``view`` on what a convolution gives.
        """
        kinds = (module for model in models[:1] for module in model.modules())
        convolve = any(isinstance(module, nn.Conv2d) for module in kinds)
        if not (self.channels_last and convolve and example.ndim == _PIXEL_AXES):
            return False
        for model in models:
            model.to(memory_format=torch.channels_last)
        inputs = _shared(example).to(self.device, memory_format=torch.channels_last)
        try:
            with torch.no_grad():
                models[0](inputs)
        except RuntimeError:
            for model in models:
                model.to(memory_format=torch.contiguous_format)
            return False
        return True


class CudaLane(Lane):
    """The way to a GPU and back; ``cuda`` and ``pinned`` are there for tests without one."""

    depth = 1

    def __init__(
        self, device: torch.device, cuda: Any = torch.cuda, *, pinned: bool = True
    ) -> None:
        super().__init__(device)
        self._cuda = cuda
        self._pinned = pinned
        self._side = cuda.Stream(device)
        self._open: deque[tuple[Any, Any]] = deque()
        self._busy = 0.0
        # Searching for the fastest convolution pays for shapes that stay: here the last batch of a
        # file is shorter, and a search may also pick kernels that round differently.
        torch.backends.cudnn.benchmark = False

    def send(self, values: npt.NDArray[Any]) -> Tensor:
        """Rows (m, …) on the GPU, copied beside what it computes."""
        source = _shared(values)
        staged = self._staged(source)
        staged.copy_(source)
        with self._cuda.stream(self._side):
            sent = staged.to(self.device, non_blocking=True)
        here = self._cuda.current_stream(self.device)
        here.wait_stream(self._side)
        sent.record_stream(here)  # its memory belongs to the side stream, which must not reuse it
        return sent

    def fetch(self, results: Tensor) -> Callable[[], npt.NDArray[Any]]:
        """What waits for results, whose copy to pinned memory is queued now."""
        landed = self._staged(results)
        landed.copy_(results, non_blocking=True)
        done = self._cuda.Event()
        done.record()

        def collect() -> npt.NDArray[Any]:
            done.synchronize()
            return landed.numpy()

        return collect

    def _staged(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=self._pinned)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Between two events; nothing waits for them here."""
        began, ended = (self._cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        try:
            yield
        finally:
            ended.record()
            self._open.append((began, ended))
            self._settle()

    def _settle(self) -> None:
        """Add up what is finished: events of a stream finish in order."""
        while self._open and self._open[0][1].query():
            began, ended = self._open.popleft()
            self._busy += began.elapsed_time(ended) / 1000

    def busy(self) -> float | None:
        """Seconds between the events of finished batches: an upper bound of what kernels took."""
        self._settle()
        busy, self._busy = self._busy, 0.0
        return busy

    def release(self) -> None:
        """Give cached memory back to the GPU."""
        self._cuda.empty_cache()

    def budget(self, share: float) -> int:
        """Most of what is free, and of this worker's share of the GPU less what it holds."""
        self.release()
        free, total = self._cuda.mem_get_info(self.device)
        own = min(share, 1.0) * total - self._cuda.memory_allocated(self.device)
        return max(0, int(_SPARE * min(free, own)))

    def measure(self, work: Callable[[], None]) -> tuple[float, int]:
        """Run work twice; the second run is timed."""
        work()
        self._cuda.synchronize(self.device)
        self._cuda.reset_peak_memory_stats(self.device)
        before = self._cuda.memory_allocated(self.device)
        began, ended = (self._cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        work()
        ended.record()
        self._cuda.synchronize(self.device)
        peak = self._cuda.max_memory_allocated(self.device)
        return began.elapsed_time(ended) / 1000, int(peak - before)


def lane_of(*, gpu: bool) -> Lane:
    """The way to this process's GPU, or to the CPU.

    Raises:
        ConfigError: there is no GPU that torch could use.
    """
    if not gpu:
        return Lane(torch.device("cpu"))
    if not torch.cuda.is_available():
        raise ConfigError(
            "num_gpus",
            "above 0",
            f"torch {torch.__version__} finds no CUDA device on {platform.node()}: check its "
            "driver and that torch is a CUDA build, or leave --num-gpus out",
        )
    return CudaLane(torch.device("cuda", torch.cuda.current_device()))


def _shared(values: npt.NDArray[Any]) -> Tensor:
    """An array as a tensor that shares the reader's buffer; nothing writes to it."""
    return torch.from_numpy(np.ascontiguousarray(values))


def packed(columns: dict[str, Tensor], rows: int) -> Tensor:
    """The first ``rows`` of columns (B,) or (B, W), side by side: float32 (rows, sum of widths)."""
    return torch.cat([c[:rows].reshape(rows, -1).float() for c in columns.values()], dim=1)


def unpacked(
    values: npt.NDArray[np.float32], columns: dict[str, int | None]
) -> dict[str, npt.NDArray[np.float32]]:
    """What `packed` joined, by name: (rows,) where the width is None, else (rows, width)."""
    found: dict[str, npt.NDArray[np.float32]] = {}
    first = 0
    for name, width in columns.items():
        found[name] = values[:, first] if width is None else values[:, first : first + width]
        first += 1 if width is None else width
    return found
