"""Which rows are denoised now: admission by a token budget, in turns of a block.

Rows wait in one line. Whenever a row has finished a block while others wait, it goes to the end of the line:
between blocks nothing is lost by that. So a short row waits for one block of others at most, however long
they are, and a long row is not overtaken for ever by short ones.
"""

from collections import deque

from d1ray.serving.row import Row


class Schedule:
    """Rows that wait, and those that are denoised together.

    Args:
        batch_tokens: columns of the rows that are denoised together; a row that is wider goes alone.
        rows: that are taken on at all.
    """

    def __init__(self, batch_tokens: int, rows: int):
        self.batch_tokens, self.rows = batch_tokens, rows
        self.waiting: deque[Row] = deque()
        self.active: list[Row] = []

    def __len__(self) -> int:
        return len(self.waiting) + len(self.active)

    @property
    def full(self) -> bool:
        return len(self) >= self.rows

    def add(self, row: Row) -> None:
        self.waiting.append(row)

    def remove(self, row: Row) -> None:
        """Forgets a row, if it is here."""
        for rows in (self.waiting, self.active):
            if row in rows:
                rows.remove(row)

    def turn(self) -> list[Row]:
        """The rows to denoise one step further: those that are finished leave, those between blocks make room
        for others, and as many as fit come in, in order."""
        self.active = [row for row in self.active if row.finish is None]
        if self.waiting:
            between = [row for row in self.active if row.entering and row.steps]
            self.active = [row for row in self.active if row not in between]
            self.waiting.extend(between)
        used = sum(row.columns for row in self.active)
        while self.waiting and (not self.active or used + self.waiting[0].columns <= self.batch_tokens):
            row = self.waiting.popleft()
            self.active.append(row)
            used += row.columns
        return self.active
