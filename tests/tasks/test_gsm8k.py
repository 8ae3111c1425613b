"""GSM8K: d1's rewards worked out by hand, and the real gold answers."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from d1ray.config.kinds import load_task

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "gsm8k"
TASK = load_task("gsm8k")
EXAMPLE = TASK.example({"question": "20 + 23?", "answer": "20+23=<<20+23=43>>43\n#### 43"})
WELL = "<reasoning>\nr\n</reasoning>\n<answer>\n{}\n</answer>"


@pytest.mark.parametrize(
    ("completion", "components"),
    [
        (WELL.format("\\boxed{43}"), (0.5, 0.5, 0.5, 0.5, 2.0)),
        (WELL.format("\\boxed{44}"), (0.5, 0.5, 0.5, 0.5, 0.0)),
        (WELL.format("43.5"), (0.5, 0.5, 0.5, 0.0, 0.0)),
        # ten characters after the last tag, counted for both answer tags; the format is not strict any more
        (WELL.format("43") + "\n0123456789", (0.48, 0.5, 0.0, 0.5, 2.0)),
        ("<reasoning>r</reasoning> <answer>43</answer>", (0.0, 0.5, 0.0, 0.5, 2.0)),
        ("\\boxed{43}", (0.0, 0.0, 0.0, 0.5, 2.0)),
        ("The answer is 43.", (0.0, 0.0, 0.0, 0.5, 2.0)),
        ("so 43", (0.0, 0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_each_of_d1s_rewards(completion, components):
    score = TASK.score(EXAMPLE, completion)
    names = ("xml_count", "soft_format", "strict_format", "integer", "correct")
    assert score.components == pytest.approx(dict(zip(names, components, strict=True)))


def test_weights_multiply_components():
    task = load_task({"name": "gsm8k", "weights": {"correct": 0.5, "xml_count": 0}})
    assert task.score(EXAMPLE, WELL.format("43")).reward == pytest.approx(0.5 * 3 + 1.0)
    with pytest.raises(ValueError, match=r"no reward component corect; this task has xml_count"):
        load_task({"name": "gsm8k", "weights": {"corect": 1}})


def test_the_prefill_belongs_to_the_completion():
    task = load_task({"name": "gsm8k", "prefill": "<reasoning>\n"})
    example = task.example({"question": "20 + 23?", "answer": "#### 43"})
    assert (
        task.score(example, WELL.format("43").removeprefix("<reasoning>\n")).components["strict_format"]
        == 0.5
    )


def test_only_the_answer_is_needed_to_score():
    assert TASK.score(TASK.example({"answer": "43"}), "\\boxed{43}").correct
    assert TASK.score(TASK.example({"answer": 43}), "\\boxed{43}").correct
    with pytest.raises(ValueError, match="answer must be a number"):
        TASK.example({"answer": "many"})


@pytest.mark.skipif(not DATA.is_dir(), reason="no real data here")
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_gold_answer_is_right_in_three_renderings_and_other_numbers_are_wrong(split):
    rows = pq.read_table(DATA / f"{split}.parquet").to_pylist()
    gold = {row["answer"].rpartition("####")[2].strip(): TASK.example(row) for row in rows}
    right = wrong = 0
    for answer, example in gold.items():  # the verdict depends on nothing else
        renderings = (
            f"<answer>{answer}</answer>",
            f"so \\boxed{{{answer}}}",
            WELL.format(f"\\boxed{{{answer}}}"),
        )
        right += sum(TASK.score(example, text).correct for text in renderings)
        value = int(answer.replace(",", ""))
        others = (value + 1, value * 10 + 3, -value - 1)
        wrong += sum(not TASK.score(example, WELL.format(f"\\boxed{{{other}}}")).correct for other in others)
    assert right >= 0.995 * 3 * len(gold)
    assert wrong >= 0.995 * 3 * len(gold)
