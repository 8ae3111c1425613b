"""What Sudokus of every size share: how a row is read, a solution demonstrated and a completion judged."""

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from d1ray.tasks.answers import final_answer, tagged
from d1ray.tasks.task import DemonstrationStyle, Example, Score, Task
from d1ray.tasks.written_grid import read_grid

if TYPE_CHECKING:
    import numpy as np


class SudokuTask(Task):
    """A Sudoku of ``size`` x ``size`` cells, written row by row; a puzzle has 0 in its blanks.

    A subclass draws its puzzles, and says in ``check_solution`` what is wrong with a row's solution.
    """

    placeholders: ClassVar[tuple[str, ...]] = ("puzzle",)
    rewards: ClassVar[tuple[str, ...]] = ("cells",)
    size: ClassVar[int]
    quoted: ClassVar[int]  # characters of a wrong value that a message shows

    @classmethod
    def check_solution(cls, solution: object) -> None:
        """Raises ``ValueError`` unless ``solution`` is the text of a solved grid."""
        raise NotImplementedError

    def example(self, row: Mapping[str, Any]) -> Example:
        """Reads ``puzzle`` (blanks as ``0``, ``.`` or ``_``) and ``solution``, one of possibly several."""
        puzzle, solution, cells = row["puzzle"], row["solution"], self.size**2
        if not isinstance(puzzle, str) or not re.fullmatch(rf"[0-{self.size}._]{{{cells}}}", puzzle):
            raise ValueError(
                f"puzzle must be {cells} characters 0-{self.size} (0, '.' or '_' where blank), "
                f"found {puzzle!r:.{self.quoted}}"
            )
        self.check_solution(solution)
        puzzle = puzzle.replace(".", "0").replace("_", "0")
        if any(given not in ("0", digit) for given, digit in zip(puzzle, solution, strict=True)):
            raise ValueError(f"solution {solution} changes a given digit of puzzle {puzzle}")
        if "0" not in puzzle:
            raise ValueError(f"puzzle {puzzle} has no blank")
        return self._example(puzzle, solution)

    def _example(self, puzzle: str, solution: str, tags: tuple[str, ...] = ()) -> Example:
        fields = {"puzzle": puzzle, "solution": solution}
        return Example(self.name, puzzle, self.prompt(puzzle=puzzle), fields, tags, self.prefill)

    def demonstration(self, example: Example, style: DemonstrationStyle, rng: "np.random.Generator") -> str:
        """The solution; corrupted, either its tags are missing or its blanks hold random digits."""
        puzzle, solution = example.fields["puzzle"], example.fields["solution"]
        if style == "clean":
            return tagged(solution)
        if rng.random() < 0.5:
            return str(solution)
        noise = rng.integers(1, self.size + 1, size=self.size**2)
        return tagged(
            "".join(str(n) if given == "0" else given for given, n in zip(puzzle, noise, strict=True))
        )

    def judge(self, example: Example, text: str) -> Score:
        """d1's cell accuracy: the share of the blanks that equal the stored solution.

        Every given that was changed costs one cell, down to 0. A grid may be written in lines, with borders,
        as a list or in a code block; anything but the digits of one grid scores 0. Any valid completion of
        the puzzle is ``correct``, also where the stored one is another.
        """
        puzzle, solution = example.fields["puzzle"], example.fields["solution"]
        answer = final_answer(text)
        digits = read_grid(answer.text, self.size) if answer else None
        if answer is None or digits is None:
            return Score({"cells": 0.0}, correct=False, partial=0.0, formatted=False)
        cells = list(zip(digits, puzzle, solution, strict=True))
        right = sum(given == "0" and digit == wanted for digit, given, wanted in cells)
        changed = sum(given not in ("0", digit) for digit, given, _ in cells)
        partial = max(0, right - changed) / puzzle.count("0")
        return Score(
            {"cells": partial},
            correct=changed == 0 and is_solved(digits, self.size),
            partial=partial,
            formatted=answer.well_tagged,
            parsed=digits,
        )


def is_solved(grid: str, size: int) -> bool:
    """Whether every row, column and box of the ``size`` x ``size`` digits ``grid`` holds 1 to ``size``.

    Example:
        >>> is_solved("1234341221434321", 4), is_solved("1234123412341234", 4)
        (True, False)
    """
    if len(grid) != size * size:
        return False
    box, digits = math.isqrt(size), {str(digit) for digit in range(1, size + 1)}
    rows = [grid[start : start + size] for start in range(0, size * size, size)]
    columns = [grid[column::size] for column in range(size)]
    boxes = [
        "".join(row[left : left + box] for row in rows[top : top + box])
        for top in range(0, size, box)
        for left in range(0, size, box)
    ]
    return all(set(unit) == digits for unit in (*rows, *columns, *boxes))
