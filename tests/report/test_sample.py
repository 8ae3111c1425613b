"""Which completions a page holds, and how."""

from collections.abc import Callable
from pathlib import Path

import pytest

from d1ray.report.runs import read_runs
from d1ray.report.sample import sample

MakeRun = Callable[..., Path]


def test_all_groups_are_taken_where_there_is_room(make_run: MakeRun) -> None:
    taken = sample(read_runs([make_run(steps=2, groups=3, size=4)]), budget=10**6)
    assert taken.rules == ["all 6 groups"]
    assert [(group["step"], group["group"]) for group in taken.groups] == [
        (s, 3 * s - 3 + g) for s in (1, 2) for g in range(3)
    ]
    assert taken.rows["group"] == [group for group in range(6) for _ in range(4)]
    assert taken.rows["rollout"] == [0, 1, 2, 3] * 6


def test_whole_groups_are_taken_at_equal_distances(make_run: MakeRun) -> None:
    # 40 tokens a completion and 4 of them a group: 7 groups for 1,120 tokens, of 6 x 3.
    taken = sample(read_runs([make_run(steps=6, groups=3, size=4)]), budget=1120)
    assert taken.rules == ["7 of 18 groups, at equal distances over the run"]
    assert [group["group"] for group in taken.groups] == [0, 3, 6, 8, 11, 14, 17]
    assert len(taken.rows["group"]) == 28


def test_several_runs_share_the_room(make_run: MakeRun) -> None:
    runs = read_runs([make_run("a", steps=6), make_run("b", steps=1)])
    taken = sample(runs, budget=2 * 640)
    assert taken.rules == ["4 of 18 groups, at equal distances over the run", "all 3 groups"]
    assert [group["run"] for group in taken.groups] == [0] * 4 + [1] * 3


def test_tokens_steps_and_probabilities_are_those_of_the_sampler(make_run: MakeRun) -> None:
    taken = sample(read_runs([make_run(steps=1, groups=1, size=2)]), budget=10**6)
    texts, ends = taken.vocabulary.texts, taken.vocabulary.ends
    written = [texts[number] for number in taken.rows["tokens"][1]]
    assert written[:6] == ["<answer>", "1", "0", "1", "</answer>", "<|endoftext|>"]
    assert [texts[number] for number in ends] == ["<|endoftext|>"]
    assert taken.rows["steps"][1] == [0, 1, 2, 3, 4, 5] + [-1] * 34
    assert taken.rows["probability"][1][:3] == pytest.approx([1000, 975, 950], abs=1)  # 1 - position / 40
    assert taken.rows["text"] == [None, None]  # the tokens say it already


def test_a_text_that_its_tokens_do_not_say_is_kept(make_run: MakeRun) -> None:
    taken = sample(read_runs([make_run(steps=1, groups=1, size=2, text=lambda *_: "naïve")]), budget=10**6)
    assert taken.rows["text"] == ["naïve"] * 2  # the character tokenizer knows no ï
    assert "<|unknown|>" in taken.vocabulary.texts


def test_without_a_tokenizer_tokens_are_numbers(make_run: MakeRun) -> None:
    folder = make_run(steps=1, groups=1, size=2)
    (folder / "models" / "rl").unlink()
    (run,) = read_runs([folder])
    taken = sample([run], budget=10**6)
    assert taken.vocabulary.texts[0] == "⟨8⟩"  # <answer>
    assert "tokens are shown as numbers: no folder in models/ holds a tokenizer" in run.missing
    assert taken.rows["text"] == ["<answer>100</answer>", "<answer>101</answer>"]


def test_a_run_without_completions_has_none(make_run: MakeRun) -> None:
    taken = sample(read_runs([make_run(steps=0)]), budget=10**6)
    assert (taken.rules, taken.groups, taken.rows) == (["none are stored"], [], {})
