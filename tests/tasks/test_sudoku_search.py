"""Sudoku 9x9: solved grids, counted solutions and unique puzzles."""

import pytest

from d1ray.config.rng import generator
from d1ray.tasks.sudoku_search import draw_puzzle, solve
from d1ray.tasks.sudoku_task import is_solved

# Every row is the one above shifted by 3, by 1 more after three rows: a solved grid by construction.
GRID = "".join(str((3 * (r % 3) + r // 3 + c) % 9 + 1) for r in range(9) for c in range(9))


def test_a_grid_built_by_shifts_is_solved():
    assert is_solved(GRID, 9)


@pytest.mark.parametrize(
    "grid", [GRID[:-1], GRID[::-1][:80] + "0", GRID[1] + GRID[0] + GRID[2:], "123456789" * 9]
)
def test_another_length_a_blank_or_a_repeated_digit_is_not_solved(grid):
    assert not is_solved(grid, 9)


def test_a_puzzle_with_one_blank_has_the_grid_as_its_solution():
    assert solve("0" + GRID[1:]) == [GRID]


def test_two_pairs_of_digits_that_can_swap_give_two_solutions():
    # Blanking all 1s and 2s leaves at least the grid and the one with 1 and 2 exchanged.
    puzzle = GRID.replace("1", "0").replace("2", "0")
    solutions = solve(puzzle, limit=1000)
    assert {GRID, GRID.translate(str.maketrans("12", "21"))} <= set(solutions)
    assert len(set(solutions)) == len(solutions)
    assert all(is_solved(s, 9) for s in solutions)
    assert len(solve(puzzle)) == 2


def test_givens_that_clash_have_no_solution():
    assert solve("11" + "0" * 79) == []


@pytest.mark.parametrize("blanks", [1, 30, 45, 50])
def test_a_drawn_puzzle_has_its_blanks_and_one_solution(blanks):
    for i in range(3):
        puzzle, solution = draw_puzzle(blanks, generator(0, "grid", i))
        assert puzzle.count("0") == blanks
        assert is_solved(solution, 9)
        assert all(p in ("0", s) for p, s in zip(puzzle, solution, strict=True))
        assert solve(puzzle) == [solution]


def test_the_same_generator_key_gives_the_same_puzzle():
    assert draw_puzzle(40, generator(0, "g", 1)) == draw_puzzle(40, generator(0, "g", 1))
