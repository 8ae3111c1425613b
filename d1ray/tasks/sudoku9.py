"""Sudoku 9x9: the puzzle of newspapers, judged as the 4x4 one is."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from d1ray.tasks.sudoku_search import draw_puzzle
from d1ray.tasks.sudoku_task import SudokuTask, is_solved
from d1ray.tasks.task import Example, Split

if TYPE_CHECKING:
    import numpy as np

TEMPLATE = """\
Here is a 9x9 Sudoku, written row by row as 81 digits; 0 is an empty cell:
{puzzle}
Complete it: each row, each column and each 3x3 box must hold 1 to 9. Keep the given digits.
Write <reasoning>your steps</reasoning> and then <answer>the 81 digits of the completed grid</answer>."""


class Sudoku9(SudokuTask):
    """Sudoku 9x9, generated with a unique solution or read from ``puzzle`` and ``solution`` columns."""

    size: ClassVar[int] = 9
    quoted: ClassVar[int] = 100

    name: Literal["sudoku9"] = "sudoku9"
    template: str = TEMPLATE
    # With more blanks most random grids have no puzzle with one solution.
    blanks: Annotated[
        int, Field(strict=True, ge=1, le=50, description="empty cells of a generated puzzle")
    ] = 40

    def draw(self, split: Split, rng: "np.random.Generator") -> Example:
        """Draws a puzzle with exactly one solution."""
        while True:
            puzzle, solution = draw_puzzle(self.blanks, rng)
            if self.split_of(puzzle) == split:
                return self._example(puzzle, solution)

    @classmethod
    def check_solution(cls, solution: object) -> None:
        if not isinstance(solution, str) or not is_solved(solution, cls.size):
            raise ValueError(
                f"solution must be a solved grid of 81 digits 1-9, found {solution!r:.{cls.quoted}}"
            )
