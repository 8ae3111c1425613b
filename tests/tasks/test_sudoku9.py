"""Sudoku 9x9: what is right, and what a cell is worth."""

import pytest

from d1ray.config.kinds import load_task
from d1ray.tasks.answers import tagged

GRID = "".join(str((3 * (r % 3) + r // 3 + c) % 9 + 1) for r in range(9) for c in range(9))
TASK = load_task("sudoku9")
PUZZLE = "0" * 40 + GRID[40:]
EXAMPLE = TASK.example({"puzzle": PUZZLE, "solution": GRID})


def test_the_solution_is_right_in_one_line_in_nine_and_in_a_table():
    rows = [GRID[9 * i : 9 * i + 9] for i in range(9)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    for written in (GRID, "\n".join(rows), table, f"```\n{GRID}\n```"):
        score = TASK.score(EXAMPLE, tagged(written))
        assert (score.correct, score.reward, score.parsed) == (True, 1.0, GRID)


def test_each_wrong_cell_costs_a_fortieth_and_each_changed_given_too():
    wrong = ("2" if GRID[0] == "1" else "1") + GRID[1:]
    assert TASK.score(EXAMPLE, tagged(wrong)).reward == pytest.approx(39 / 40)
    changed = GRID[:80] + ("2" if GRID[80] == "1" else "1")
    score = TASK.score(EXAMPLE, tagged(changed))
    assert (score.correct, score.reward) == (False, pytest.approx(39 / 40))


def test_another_valid_completion_is_right_though_it_earns_its_equal_cells_only():
    puzzle = GRID.replace("1", "0").replace("2", "0")
    example = TASK.example({"puzzle": puzzle, "solution": GRID})
    score = TASK.score(example, tagged(GRID.translate(str.maketrans("12", "21"))))
    assert (score.correct, score.reward) == (True, 0.0)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"puzzle": "0" * 80, "solution": GRID}, "puzzle must be 81"),
        ({"puzzle": "0" * 81, "solution": "1" * 81}, "solution must be a solved grid"),
        ({"puzzle": "0" * 80 + GRID[0], "solution": GRID}, "changes a given"),
        ({"puzzle": GRID, "solution": GRID}, "has no blank"),
    ],
)
def test_a_malformed_row_says_what_is_wrong(row, said):
    if said == "changes a given":
        row = row | {"puzzle": "0" * 80 + ("2" if GRID[80] == "1" else "1")}
    with pytest.raises(ValueError, match=said):
        TASK.example(row)
