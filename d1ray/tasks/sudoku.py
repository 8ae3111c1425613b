"""Sudoku 4x4: fill the blanks so that every row, column and 2x2 box holds 1 to 4 (d1, Section 4).

There are 288 grids in all, so the solutions of a puzzle are the grids that agree with its givens. A set of
grids is an integer of 288 bits, bit i for the grid ``SOLUTIONS[i]``.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from itertools import permutations, product
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from d1ray.tasks.sudoku_task import SudokuTask, is_solved
from d1ray.tasks.task import Example, Split

if TYPE_CHECKING:
    import numpy as np

TEMPLATE = """\
Here is a 4x4 Sudoku, written row by row as 16 digits; 0 is an empty cell:
{puzzle}
Complete it: each row, each column and each 2x2 box must hold 1, 2, 3 and 4. Keep the given digits.
Write <reasoning>your steps</reasoning> and then <answer>the 16 digits of the completed grid</answer>."""

CANDIDATES = 32  # drawn at once: the cost of a draw is numpy's overhead, not its arithmetic


def _all_grids() -> list[str]:
    digits = set("1234")
    rows = ["".join(row) for row in permutations("1234")]
    bands = [a + b for a, b in product(rows, repeat=2) if set(a[:2] + b[:2]) == set(a[2:] + b[2:]) == digits]
    return [a + b for a, b in product(bands, repeat=2) if all(set((a + b)[c::4]) == digits for c in range(4))]


SOLUTIONS = _all_grids()
_BY_HASH = sorted(SOLUTIONS, key=lambda grid: hashlib.blake2b(grid.encode()).digest())
NEW, KNOWN = _BY_HASH[:48], _BY_HASH[48:]
NEW_GRIDS = frozenset(NEW)

# Of each cell the set of grids that agree with a given digit there; with a blank all do.
AGREEING = [{"0": (1 << len(SOLUTIONS)) - 1, **dict.fromkeys("1234", 0)} for _ in range(16)]
for _i, _grid in enumerate(SOLUTIONS):
    for _cell, _digit in zip(AGREEING, _grid, strict=True):
        _cell[_digit] |= 1 << _i


def completions(puzzle: str) -> list[str]:
    """All solutions of ``puzzle``."""
    found = _agreeing(puzzle)
    return [grid for i, grid in enumerate(SOLUTIONS) if found >> i & 1]


def _agreeing(puzzle: str) -> int:
    found = AGREEING[0]["0"]
    for cell, given in zip(AGREEING, puzzle, strict=True):
        found &= cell.get(given, 0)
    return found


class Sudoku(SudokuTask):
    """Sudoku 4x4, generated with a unique solution or read from ``puzzle`` and ``solution`` columns.

    No generated train or validation puzzle has one of the 48 ``NEW_GRIDS`` as its solution; half of the test
    puzzles do. The test tags tell the two halves apart: is the skill solving, or remembering grids?
    """

    size: ClassVar[int] = 4
    quoted: ClassVar[int] = 60

    name: Literal["sudoku"] = "sudoku"
    template: str = TEMPLATE
    # Fewer than 4 givens never determine a grid.
    blanks: Annotated[
        int, Field(strict=True, ge=1, le=12, description="empty cells of a generated puzzle")
    ] = 8

    def draw(self, split: Split, rng: "np.random.Generator") -> Example:
        """Draws a puzzle with exactly one solution."""
        new = split == "test" and bool(rng.random() < 0.5)
        tags = (("new grid" if new else "known grid"),) if split == "test" else ()
        while True:
            for puzzle, solution in _unique_puzzles(NEW if new else KNOWN, self.blanks, rng):
                if new or super().split_of(puzzle) == split:
                    return self._example(puzzle, solution, tags)

    def split_of(self, key: str) -> Split:
        """Test where a solution is one of the ``NEW_GRIDS``; by hash otherwise."""
        return "test" if not NEW_GRIDS.isdisjoint(completions(key)) else super().split_of(key)

    @classmethod
    def check_solution(cls, solution: object) -> None:
        if not isinstance(solution, str) or not re.fullmatch(r"[1-4]{16}", solution):
            raise ValueError(f"solution must be 16 digits 1-4, found {solution!r:.{cls.quoted}}")
        if not is_solved(solution, cls.size):
            raise ValueError(f"solution {solution} repeats a digit in a row, column or box")


def _unique_puzzles(
    pool: Sequence[str], blanks: int, rng: "np.random.Generator"
) -> Iterator[tuple[str, str]]:
    """Puzzles of random grids of ``pool`` with random blanks, without those that have several solutions."""
    solutions = [pool[i] for i in rng.integers(len(pool), size=CANDIDATES).tolist()]
    blank = rng.random((CANDIDATES, 16)).argsort(axis=1) < blanks  # [C, 16]
    for solution, blanked in zip(solutions, blank.tolist(), strict=True):
        puzzle = "".join("0" if b else digit for b, digit in zip(blanked, solution, strict=True))
        if _agreeing(puzzle).bit_count() == 1:  # the grid itself is always one
            yield puzzle, solution
