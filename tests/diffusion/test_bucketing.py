"""The layout of a step: every demonstration once, little padding, equally many micro-batches a worker."""

import numpy as np
import pytest

from d1ray.diffusion.bucketing import layout

WIDTHS = [int(w) for w in np.random.default_rng(0).integers(5, 100, 41)]


def members(workers):
    return sorted(i for worker in workers for batch in worker for row in batch for i in row)


def row_width(row):
    return sum(WIDTHS[i] for i in row)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("budget", [None, 1, 150, 10_000])
@pytest.mark.parametrize("packed", [False, True])
def test_every_demonstration_is_there_once_and_workers_have_equally_many_micro_batches(
    workers, budget, packed
):
    found = layout(WIDTHS, workers, budget, packed)
    assert len(found) == workers
    assert members(found) == list(range(len(WIDTHS)))
    assert len({len(worker) for worker in found}) == 1


@pytest.mark.parametrize("packed", [False, True])
def test_a_micro_batch_keeps_to_its_budget_unless_it_is_a_single_row(packed):
    for worker in layout(WIDTHS, 2, 150, packed):
        for batch in worker:
            assert len(batch) <= 1 or len(batch) * max(map(row_width, batch)) <= 150


def test_without_budget_or_packing_the_order_is_kept():
    assert layout([3, 9, 4, 1], 2, None, False) == [[[[0], [2]]], [[[1], [3]]]]


def test_rows_of_like_width_meet():
    # Sorted 9, 8, 3, 2, 1; two rows of 9 fit in 18, then three of 3.
    assert layout([3, 9, 2, 8, 1], 1, 18, False) == [[[[1], [3]], [[0], [2], [4]]]]


def test_packed_rows_are_no_wider_than_the_widest_demonstration():
    rows = [row for batch in layout(WIDTHS, 1, None, True)[0] for row in batch]
    assert max(map(row_width, rows)) == max(WIDTHS)
    assert len(rows) < len(WIDTHS) / 1.5
    # 9 | 8 1 | 3 2: each joins the first row that has room.
    assert layout([3, 9, 2, 8, 1], 1, None, True) == [[[[1], [3, 4], [0, 2]]]]


def test_a_worker_without_rows_gets_empty_micro_batches():
    assert layout([4, 2, 2], 2, None, True) == [[[[0]]], [[[1, 2]]]]
    assert layout([2, 2], 3, None, True) == [[[[0]]], [[[1]]], [[]]]
