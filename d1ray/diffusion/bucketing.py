"""How the demonstrations of one optimiser step are laid out: in rows, micro-batches and workers.

Rows of like width meet in a micro-batch, so that little of it is padding; or short demonstrations share a
row. Which demonstrations make a step, and its loss, are the same whatever the layout.
"""

from collections.abc import Sequence

Row = list[int]  # the demonstrations in it, by their place in the batch


def layout(widths: Sequence[int], workers: int, budget: int | None, packed: bool) -> list[list[list[Row]]]:
    """The micro-batches of each worker: ``[workers][micro-batches][rows]``, as many for each worker.

    A worker that has fewer than others gets empty ones at the end.

    Args:
        widths: tokens of each demonstration, prompt and completion.
        budget: tokens of a micro-batch, padding included; a row that is wider has one of its own. None puts
            all rows of a worker into one.
        packed: whether demonstrations share rows, each at most as wide as the widest demonstration.
    """
    rows = _rows(widths, packed) if packed or budget is not None else [[i] for i in range(len(widths))]
    dealt = [_micro_batches(rows[worker::workers], widths, budget) for worker in range(workers)]
    most = max(map(len, dealt))
    return [own + [[]] * (most - len(own)) for own in dealt]


def _rows(widths: Sequence[int], packed: bool) -> list[Row]:
    """Rows from wide to narrow; packed, each demonstration joins the first row with room for it."""
    order = sorted(range(len(widths)), key=lambda i: -widths[i])
    if not packed:
        return [[i] for i in order]
    rows: list[Row] = []
    room: list[int] = []
    for i in order:
        place = next((row for row, free in enumerate(room) if free >= widths[i]), None)
        if place is None:
            rows.append([i])
            room.append(widths[order[0]] - widths[i])
        else:
            rows[place].append(i)
            room[place] -= widths[i]
    return sorted(rows, key=lambda row: -sum(widths[i] for i in row))


def _micro_batches(rows: Sequence[Row], widths: Sequence[int], budget: int | None) -> list[list[Row]]:
    """``rows``, which do not grow wider, cut where the next one would exceed the budget."""
    batches: list[list[Row]] = []
    for row in rows:
        size = len(batches[-1]) + 1 if batches else 1
        widest = sum(widths[i] for i in batches[-1][0]) if batches else 0
        if batches and (budget is None or size * widest <= budget):
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
