import pytest
import torch

from dataprune_ray.batching import BatchSize, fitting_rows, is_out_of_memory
from dataprune_ray.errors import ConfigError


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. Is the input contiguous?"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_are_of_memory(error, memory):
    assert is_out_of_memory(error) is memory


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 16, 100])
@pytest.mark.parametrize("count", [0, 1, 5, 64, 101])
def test_every_row_is_run_once_and_in_order_whatever_fits(count, limit):
    released = []
    sizes = BatchSize(16, "net", lambda: released.append(sizes.rows))
    done = []

    def run(part):
        rows = part.stop - part.start
        if rows > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(range(part.start, part.stop))

    for part, result in sizes.parts(count, (3,), run):
        assert result == list(range(part.start, part.stop))
        done += result
    assert done == list(range(count))
    expected = 16
    while min(expected, count) > limit:
        expected //= 2
    assert sizes.rows == expected
    assert released == [16 >> turn for turn in range(len(released))]


def test_memory_that_runs_out_later_shrinks_batches_for_good():
    sizes = BatchSize(8, "net", lambda: None)
    limit = {0: 8, 8: 3}
    seen = []

    def run(part):
        if part.stop - part.start > limit.get(part.start, 8):
            raise RuntimeError("CUDA out of memory")
        seen.append((part.start, part.stop))

    list(sizes.parts(20, (), run))
    assert seen == [(0, 8), (8, 10), (10, 12), (12, 14), (14, 16), (16, 18), (18, 20)]
    assert sizes.rows == 2


def test_a_single_row_that_does_not_fit_is_an_error_with_advice():
    def fail(_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore")

    sizes = BatchSize(4, "torchvision:vit_h_14", lambda: None)
    with pytest.raises(ConfigError, match="3 x 518 x 518: CUDA out of memory") as caught:
        list(sizes.parts(10, (3, 518, 518), fail))
    message = str(caught.value)
    assert message.startswith("model='torchvision:vit_h_14'")
    for words in ("--image-size", "--num-gpus", "bfloat16"):
        assert words in message
    assert "more" not in message.split("Tried")[1].split(";", maxsplit=1)[0]


def test_other_errors_pass():
    def fail(_):
        raise RuntimeError("shapes cannot be multiplied")

    sizes = BatchSize(4, "net", lambda: None)
    with pytest.raises(RuntimeError, match="shapes"):
        list(sizes.parts(10, (), fail))
    assert sizes.rows == 4


def tried(seconds, memory=lambda rows: rows, fails=10**9):
    """An attempt of known costs, and the sizes it was asked for."""
    asked = []

    def attempt(rows):
        asked.append(rows)
        if rows > fails:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return seconds(rows), memory(rows)

    return attempt, asked


def test_batches_grow_to_the_largest_allowed_while_that_is_faster():
    attempt, asked = tried(lambda rows: 1 + 0.001 * rows)
    assert fitting_rows(attempt, 10**9, 32, 512) == 512
    assert asked == [32, 64, 128, 256, 512]


def test_batches_stop_growing_where_rows_get_no_faster():
    attempt, asked = tried(lambda rows: max(1.0, rows / 128))
    assert fitting_rows(attempt, 10**9, 32, 8192) == 128
    assert asked == [32, 64, 128, 256]


def test_nothing_is_tried_that_the_budget_would_not_hold():
    attempt, asked = tried(lambda _: 1.0, memory=lambda rows: 10 * rows)
    assert fitting_rows(attempt, 1000, 32, 8192) == 64
    assert asked == [32, 64]
    attempt, asked = tried(lambda _: 1.0, memory=lambda rows: rows**2)
    assert fitting_rows(attempt, 5000, 32, 8192) == 64  # twice 64² would not fit


def test_a_trial_that_runs_out_of_memory_ends_the_search():
    attempt, asked = tried(lambda _: 1.0, fails=100)
    assert fitting_rows(attempt, 10**9, 32, 8192) == 64
    assert asked == [32, 64, 128]
    attempt, _ = tried(lambda _: 1.0, fails=10)
    assert fitting_rows(attempt, 10**9, 32, 8192) == 32  # halved later, by what really happens
