"""Sudoku 9x9: solving, and puzzles with one solution. A grid is 81 digits row by row, 0 a blank."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

BOX = [3 * (cell // 27) + cell % 9 // 3 for cell in range(81)]
ALL = 0b111111111
MAX_NODES = 200_000  # of one search: ordinary puzzles need fewer than 1,000


class SearchLimit(Exception):
    """A search took more than ``MAX_NODES`` steps."""


def solve(puzzle: str, limit: int = 2, rng: "np.random.Generator | None" = None) -> list[str]:
    """Up to ``limit`` solutions of ``puzzle``; with ``rng`` the digits are tried in random order.

    Always fills the blank with the fewest candidates. Raises ``SearchLimit``.
    """
    cells = [int(digit) for digit in puzzle]
    rows, columns, boxes = [ALL] * 9, [ALL] * 9, [ALL] * 9  # a bit per digit still free
    for cell, digit in enumerate(cells):
        bit = 1 << digit >> 1
        if digit and not rows[cell // 9] & columns[cell % 9] & boxes[BOX[cell]] & bit:
            return []
        rows[cell // 9] &= ~bit
        columns[cell % 9] &= ~bit
        boxes[BOX[cell]] &= ~bit
    blanks = [cell for cell in range(81) if not cells[cell]]
    found: list[str] = []
    nodes = 0

    def search() -> None:
        nonlocal nodes
        nodes += 1
        if nodes > MAX_NODES:
            raise SearchLimit(f"more than {MAX_NODES} steps for puzzle {puzzle}")
        fewest, best, candidates = 10, -1, 0
        for cell in blanks:
            if not cells[cell]:
                free = rows[cell // 9] & columns[cell % 9] & boxes[BOX[cell]]
                if (count := free.bit_count()) < fewest:
                    fewest, best, candidates = count, cell, free
                    if count < 2:
                        break
        if best < 0:
            found.append("".join(map(str, cells)))
            return
        digits = [digit for digit in range(1, 10) if candidates >> (digit - 1) & 1]
        for digit in rng.permutation(digits).tolist() if rng and len(digits) > 1 else digits:
            bit = 1 << (digit - 1)
            cells[best] = digit
            rows[best // 9] ^= bit
            columns[best % 9] ^= bit
            boxes[BOX[best]] ^= bit
            search()
            cells[best] = 0
            rows[best // 9] ^= bit
            columns[best % 9] ^= bit
            boxes[BOX[best]] ^= bit
            if len(found) >= limit:
                return

    search()
    return found


def draw_puzzle(blanks: int, rng: "np.random.Generator") -> tuple[str, str]:
    """A puzzle with ``blanks`` blanks and exactly one solution, and that solution.

    Cells of a random grid are emptied in random order, each only if the solution stays the only one; a grid
    that runs out of cells is given up for another. Up to 50 blanks are quick.
    """
    while True:
        solution = solve("0" * 81, 1, rng)[0]
        puzzle = list(solution)
        for cell in rng.permutation(81).tolist():
            if puzzle.count("0") == blanks:
                break
            puzzle[cell] = "0"
            if len(solve("".join(puzzle))) != 1:
                puzzle[cell] = solution[cell]
        if puzzle.count("0") == blanks:
            return "".join(puzzle), solution
