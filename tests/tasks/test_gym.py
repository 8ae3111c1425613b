"""reasoning-gym's data sets as tasks."""

import pickle
import subprocess
import sys

import pytest

from d1ray.config.kinds import load_task
from d1ray.config.rng import generator
from d1ray.tasks.gym import HASH_ORDERED, evaluates, is_harmless
from d1ray.tasks.source import open_data
from d1ray.tasks.verdict import judged

reasoning_gym = pytest.importorskip("reasoning_gym")

NAMES = ["mini_sudoku", "chain_sum", "basic_arithmetic", "syllogism", "countdown"]


@pytest.fixture(params=NAMES)
def task(request):
    return load_task(f"reasoning_gym:{request.param}")


def test_the_own_answer_is_right_and_another_is_not(task):
    for i in range(5):
        example = task.draw("train", generator(0, "gym", i))
        text = task.demonstration(example, "clean", generator(0, "d", i))
        assert (task.score(example, text).correct, task.score(example, text).formatted) == (True, True)
        assert not task.score(example, "<answer>no idea</answer>").correct
        assert task.score(example, "no idea").reward == 0


def test_the_same_draw_is_the_same_problem_also_where_the_task_was_sent(task):
    sent = pickle.loads(pickle.dumps(task))
    assert task.draw("test", generator(1, "gym")) == sent.draw("test", generator(1, "gym"))


def test_the_splits_of_a_generated_data_set_share_no_problem():
    data = open_data(load_task("reasoning_gym:chain_sum"), None, 0)
    test = {example.key for example in data.examples("test", 40)}
    assert len(test) == 40
    assert not test & {data.train(i).key for i in range(200)}


def test_options_reach_the_data_set():
    task = load_task({"name": "reasoning_gym:chain_sum", "options": {"min_terms": 9, "max_terms": 9}})
    question = task.draw("train", generator(0, "gym")).fields
    assert task._entry_of(task.example(question))["metadata"]["difficulty"]["num_terms"] in (9, (9, 9))


def test_a_row_that_reasoning_gym_wrote_is_scored():
    task = load_task("reasoning_gym:basic_arithmetic")
    entry = reasoning_gym.create_dataset("basic_arithmetic", seed=7, size=3)[2]
    example = task.example(entry)
    assert judged(task, (example, f"<answer>{entry['answer']}</answer>")).correct


def test_a_data_set_that_is_not_there_lists_those_that_are():
    with pytest.raises(
        ValueError, match=r"task\.name: reasoning-gym has no data set 'mini_soduku'; .*mini_sudoku"
    ):
        load_task("reasoning_gym:mini_soduku")


@pytest.mark.parametrize("options", [{"terms": 3}, {"min_terms": 5, "max_terms": 2}])
def test_options_the_data_set_does_not_take_are_an_error(options):
    with pytest.raises(ValueError, match=r"reasoning_gym:chain_sum does not take"):
        load_task({"name": "reasoning_gym:chain_sum", "options": options})


BAD = "__import__('os').system('touch {file}')"


DATASETS = reasoning_gym.factory.DATASETS
UNMAKEABLE = {*HASH_ORDERED, "composite"}  # without another environment, or from text
EVALUATING = [name for name in sorted(DATASETS) if name not in UNMAKEABLE and evaluates(name)]
PAYLOADS = [
    BAD,
    f"[{BAD}]",
    f'"{BAD}"',  # a literal, which sympy evaluates again
    f'["{BAD}"]',
    f'("{BAD}",)',
    f'"""{BAD}"""',
    f'"{BAD[:7]}" "{BAD[7:]}"',
    f'b"{BAD}"',
    f'S("{BAD}")',
    f"x + {BAD}",
    "getattr(__builtins__, 'open')('{file}', 'w')",
    "open(chr(112), chr(119))",
    "x(1)",
    "(open)(1)",
    "sin(1)(2)",
    "[open][0](1)",
    "S('{file}').x",
]


def test_the_scorers_that_evaluate_text_are_found():
    some = {"countdown", "puzzle24", "n_queens", "simple_integration", "intermediate_integration"}
    assert some < {*EVALUATING}
    assert evaluates("composite")  # through the scorers of others


@pytest.mark.parametrize("name", EVALUATING)
def test_an_answer_is_never_run_as_code(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)  # where a relative name would land
    task, file = load_task(f"reasoning_gym:{name}"), tmp_path / "pwned"
    example = task.draw("train", generator(0, "gym"))
    for answer in (*PAYLOADS, "9" * 600):
        task.score(example, f"<answer>{answer.format(file=file)}</answer>")
    assert not list(tmp_path.iterdir())
    assert task.score(example, task.demonstration(example, "clean", generator(0, "d"))).correct


@pytest.mark.parametrize("payload", PAYLOADS)
def test_what_could_run_reaches_no_scorer_that_evaluates(payload):
    assert not is_harmless(payload.format(file="f"))


@pytest.mark.parametrize(
    ("answer", "harmless"),
    [
        ("3*(4+5)/2", True),
        ("x**2/2 + sin(x) + C", True),
        ("[[1, 2], [3, 4]]", True),
        ("[[1, 2], ['Q', '_']]", False),
        ("1.5e-3*exp(-x) + .5", True),
        ("2*pi*sqrt(3)", True),
        ("x*atan(x) - ln(x**2 + 1)/2", True),
        ("x__class__", False),
        ("1.real", False),
        ("(1).real", False),
        ("x[0]", False),
        ("\uff4f\uff53(1)", False),  # full-width letters, which Python reads as `os`
        ("2(x + 1)", False),
        ("ABCDAE", True),
        ("_ Q _", True),
        ("lambda 1", False),
        ("print in x", False),
        ("open", False),
        ("None", False),
        ("ABC[DE]", False),
        ("_open + 1", False),
        ("open(1)", False),
        ("x.y(2)", False),
        ("(lambda: 1)()", False),
        ("[i for i in (1, 2)]", False),
        ("a" * 501, False),
        ("(" * 400, True),  # no letters: a syntax error at most
    ],
)
def test_what_a_scorer_may_evaluate_is_a_value(answer, harmless):
    assert is_harmless(answer) is harmless


def test_a_data_set_that_depends_on_hashes_asks_for_fixed_ones(monkeypatch):
    with pytest.raises(ValueError, match="PYTHONHASHSEED=0"):
        load_task("reasoning_gym:ransom_note")
    draw = (
        "from d1ray.tasks import load_task; from d1ray.config.rng import generator;"
        "print(load_task('reasoning_gym:ransom_note').draw('train', generator(0, 'gym')).prompt)"
    )
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    both = [
        subprocess.Popen([sys.executable, "-c", draw], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    first, second = (process.communicate(timeout=60)[0] for process in both)
    assert "ransom note" in first and first == second
