"""Sudoku: the 288 grids, unique puzzles in disjoint splits, and d1's cell score worked out by hand."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from d1ray.config.rng import generator
from d1ray.tasks.answers import tagged
from d1ray.tasks.sudoku import NEW_GRIDS, SOLUTIONS, Sudoku, completions

SPLITS = ("train", "validation", "test")

#   puzzle    solution      blanks: cells 2, 3, 8 and 13 (from 0), counted row by row
#   1 2 . .   1 2 3 4
#   3 4 1 2   3 4 1 2
#   . 1 4 3   2 1 4 3
#   4 . 2 1   4 3 2 1
PUZZLE, SOLUTION = "1200341201434021", "1234341221434321"


@pytest.fixture
def example():
    return Sudoku().example({"puzzle": PUZZLE, "solution": SOLUTION})


def draws(task, split, n, stream="test"):
    return [task.draw(split, generator(0, f"{stream}/{split}", i)) for i in range(n)]


def test_there_are_288_different_grids():
    assert len(set(SOLUTIONS)) == len(SOLUTIONS) == 288


def test_every_row_column_and_box_of_every_grid_holds_1_to_4():
    cells = np.array([list(map(int, grid)) for grid in SOLUTIONS]).reshape(288, 4, 4)
    boxes = cells.reshape(288, 2, 2, 2, 2).swapaxes(2, 3).reshape(288, 4, 4)
    for units in (cells, cells.swapaxes(1, 2), boxes):
        assert (np.sort(units, axis=2) == [1, 2, 3, 4]).all()


def test_48_grids_are_held_out():
    assert len(NEW_GRIDS) == 48


def test_an_empty_puzzle_is_completed_by_every_grid():
    assert completions("0" * 16) == SOLUTIONS


def test_a_puzzle_with_two_solutions_has_both():
    # 1 2 | 3 4   The blanks of rows 0 and 2 can swap 1 and 2 in columns 0 and 1.
    # 3 4 | 1 2
    # 2 1 | 4 3
    # 4 3 | 2 1
    assert sorted(completions("0034341200434321")) == ["1234341221434321", "2134341212434321"]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("blanks", [1, 8, 12])
def test_a_drawn_puzzle_has_its_blanks_and_exactly_one_solution(split, blanks):
    for example in draws(Sudoku(blanks=blanks), split, 50):
        puzzle = example.fields["puzzle"]
        assert puzzle.count("0") == blanks
        assert completions(puzzle) == [example.fields["solution"]]


def test_the_splits_share_no_puzzle():
    keys = [{e.key for e in draws(Sudoku(), split, 1500)} for split in SPLITS]
    assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])


@pytest.mark.parametrize("split", SPLITS)
def test_a_drawn_puzzle_belongs_to_the_split_it_was_drawn_for(split):
    task = Sudoku()
    assert all(task.split_of(e.key) == split for e in draws(task, split, 200))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_held_out_grids_are_never_trained_or_validated_on(split):
    assert NEW_GRIDS.isdisjoint(e.fields["solution"] for e in draws(Sudoku(), split, 1000))


def test_training_sees_all_the_other_grids():
    assert len({e.fields["solution"] for e in draws(Sudoku(), "train", 2000)}) == 240


def test_half_of_the_test_puzzles_have_new_grids():
    new = sum(e.tags == ("new grid",) for e in draws(Sudoku(), "test", 1000))
    assert 430 < new < 570  # 4.4 standard deviations


def test_the_test_tags_say_whether_the_grid_is_new():
    for e in draws(Sudoku(), "test", 200):
        assert e.tags == (("new grid",) if e.fields["solution"] in NEW_GRIDS else ("known grid",))


def test_the_same_generator_key_gives_the_same_puzzle():
    assert draws(Sudoku(), "test", 5) == draws(Sudoku(), "test", 5)


def test_the_prompt_is_the_template_with_the_puzzle():
    task = Sudoku(template="{puzzle}!{other}")
    assert task.example({"puzzle": PUZZLE, "solution": SOLUTION}).prompt == f"{PUZZLE}!{{other}}"


def test_dots_and_underscores_are_blanks(example):
    row = {"puzzle": PUZZLE.replace("00", "._"), "solution": SOLUTION}
    assert Sudoku().example(row) == example


@pytest.mark.parametrize(
    ("puzzle", "solution", "message"),
    [
        (PUZZLE[:-1], SOLUTION, "16 characters"),
        (PUZZLE + "\n", SOLUTION, "16 characters"),
        (1200341201434021, SOLUTION, "16 characters"),
        (None, SOLUTION, "16 characters"),
        (PUZZLE, SOLUTION.replace("1", "１"), "16 digits"),
        (PUZZLE, "12343412214343.1", "16 digits"),
        (PUZZLE, "1234341221434312", "repeats a digit"),
        (PUZZLE, "2143431212343421", "changes a given"),
        (SOLUTION, SOLUTION, "no blank"),
    ],
)
def test_a_bad_row_is_a_value_error_that_says_why(puzzle, solution, message):
    with pytest.raises(ValueError, match=message):
        Sudoku().example({"puzzle": puzzle, "solution": solution})


@pytest.mark.parametrize(
    ("answer", "partial", "correct"),
    [
        ("1234341221434321", 1.0, True),
        ("1243341221434321", 0.5, False),  # cells 2 and 3 swapped: 2 of 4 blanks right
        ("1211341211434121", 0.0, False),  # cell 2, 3, 8, 13 = 1, 1, 1, 1: none right
        ("1231341221434121", 0.5, False),  # 3 right in cell 2, 2 in cell 8
        ("2234341221434321", 0.75, False),  # all 4 right, one given changed
        ("2134341221434321", 0.5, False),  # all 4 right, two givens changed
        ("4321432134123412", 0.0, False),  # all givens changed: not below 0
    ],
)
def test_the_cell_score_is_the_share_of_right_blanks_less_changed_givens(example, answer, partial, correct):
    score = Sudoku().score(example, tagged(answer))
    assert (score.partial, score.correct, score.reward) == (partial, correct, partial)


def test_another_valid_completion_is_correct_and_keeps_the_cell_score():
    # The blanks can be filled with 1 2 and 2 1, or with 2 1 and 1 2: every cell of the second differs.
    example = Sudoku().example({"puzzle": "0034341200434321", "solution": "1234341221434321"})
    score = Sudoku().score(example, tagged("2134341212434321"))
    assert (score.correct, score.partial) == (True, 0.0)


def test_a_valid_grid_of_another_puzzle_is_not_correct(example):
    assert not Sudoku().score(example, tagged("4321341212432134")).correct


@pytest.mark.parametrize("digits", ["1234 3412 2143 4321", "\n1234\n3412\n2143\n4321\n"])
def test_white_space_in_an_answer_is_ignored(example, digits):
    assert Sudoku().score(example, tagged(digits)).correct


def test_a_missing_closing_tag_counts_as_right_but_not_as_formatted(example):
    score = Sudoku().score(example, f"<answer>{SOLUTION}")
    assert (score.correct, score.formatted) == (True, False)


def test_the_last_of_two_answers_counts_but_is_not_formatted(example):
    score = Sudoku().score(example, tagged("1" * 16) + tagged(SOLUTION))
    assert (score.correct, score.formatted) == (True, False)


def test_a_single_tagged_grid_is_formatted_even_where_it_is_wrong(example):
    assert Sudoku().score(example, f"<reasoning>?</reasoning>{tagged('1' * 16)}").formatted


@pytest.mark.parametrize(
    "completion", [SOLUTION, tagged(SOLUTION + "1"), tagged(SOLUTION[:-1]), tagged(SOLUTION[:-1] + "5")]
)
def test_no_tags_or_another_length_or_digit_scores_nothing(example, completion):
    score = Sudoku().score(example, completion)
    assert (score.reward, score.correct, score.formatted) == (0.0, False, False)


def test_a_clean_demonstration_is_the_tagged_solution(example):
    assert Sudoku().demonstration(example, "clean", generator(0, "t")) == tagged(SOLUTION)


def test_corrupted_demonstrations_lack_either_the_tags_or_the_solution(example):
    made = [Sudoku().demonstration(example, "corrupted", generator(0, "t", i)) for i in range(400)]
    bare = [d for d in made if d == SOLUTION]
    noisy = [d for d in made if d != SOLUTION]
    assert 150 < len(bare) < 250  # half of them, within 5 standard deviations
    assert all(Sudoku().score(example, d).formatted for d in noisy)
    partial = np.mean([Sudoku().score(example, d).partial for d in noisy])
    assert 0.17 < partial < 0.33  # one digit of four is right by chance, and no given is ever changed


def test_three_quarters_of_the_published_test_puzzles_have_one_solution(data_dir):
    rows = pq.read_table(data_dir / "sudoku4x4" / "test.parquet").to_pylist()
    unique = sum(len(completions(row["puzzle"])) == 1 for row in rows)
    assert round(unique / len(rows), 2) == 0.75


def test_every_published_row_is_a_valid_example_with_eight_blanks_and_a_perfect_solution(data_dir):
    task = Sudoku()
    for row in pq.read_table(data_dir / "sudoku4x4" / "test.parquet").to_pylist():
        example = task.example(row)
        assert example.key.count("0") == 8
        assert task.score(example, tagged(row["solution"])).reward == 1.0


def test_every_valid_completion_of_a_published_puzzle_is_correct_and_no_other_grid_is(data_dir):
    task, several = Sudoku(), 0
    for row in pq.read_table(data_dir / "sudoku4x4" / "test.parquet").to_pylist():
        example, puzzle, stored = task.example(row), row["puzzle"], row["solution"]
        blank = [i for i, given in enumerate(puzzle) if given == "0"]
        valid = [g for g in SOLUTIONS if all(p in ("0", d) for p, d in zip(puzzle, g, strict=True))]
        several += len(valid) > 1
        for grid in valid:
            score = task.score(example, tagged(grid))
            assert score.correct
            assert score.partial == sum(grid[i] == stored[i] for i in blank) / 8  # d1's cell score
        for grid in SOLUTIONS[::17]:
            assert task.score(example, tagged(grid)).correct == (grid in valid)
    assert several == 124
