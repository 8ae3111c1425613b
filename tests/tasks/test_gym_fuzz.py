"""No answer runs as code, in any scorer: payloads, a canary file and a token, in processes not confined."""

import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from d1ray.tasks.checker import Checker
from d1ray.tasks.task import Example

reasoning_gym = pytest.importorskip("reasoning_gym")

NAMES = sorted(
    {*reasoning_gym.factory.DATASETS} - {"composite"}
)  # which takes no options that text could say
SCORERS = [*NAMES, "math"]
TOKEN = "hf_canary_41"


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    import watched_task

    return watched_task.Watched


@pytest.fixture
def payloads():
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        import payloads

        yield payloads.payload
    finally:
        sys.path.pop(0)


def fuzz(watched, payload, folder: Path, names: list[str], each: int, filtered: bool = True, seed: int = 0):
    """Scores of ``each`` payloads for every name, with the texts."""
    folder.mkdir()
    secret = folder.parent / "secret"
    secret.write_text(TOKEN)
    task = watched(secret=str(secret), filtered=filtered)
    rng, pairs = random.Random(seed), []
    for name in names:
        right = "x**2" if "integration" in name else "3"
        for _ in range(each):
            text = payload(rng, str(folder / "pwned"), str(secret), right)
            pairs.append((Example("watched", name, "?", {"name": name}), text))
    with Checker(task, timeout_s=10) as checker:
        return pairs, checker.check(pairs)


def assert_nothing_ran(pairs, scores, folder: Path, output: str) -> None:
    deeds = [
        (p[0].key, p[1], s.parsed, s.failure)
        for p, s in zip(pairs, scores, strict=True)
        if s.parsed or s.failure
    ]
    assert not deeds, deeds[:5]
    assert not list(folder.iterdir())
    assert TOKEN not in output


@pytest.mark.slow
def test_no_payload_runs_in_any_scorer(watched, payloads, tmp_path, capfd):
    pairs, scores = fuzz(watched, payloads, tmp_path / "here", SCORERS, 20)
    assert len(pairs) > 2000
    assert_nothing_ran(pairs, scores, tmp_path / "here", "".join(capfd.readouterr()))


def test_unfiltered_the_payloads_do_run(watched, payloads, tmp_path):
    names = ["simple_integration", "string_insertion"]
    pairs, scores = fuzz(watched, payloads, tmp_path / "here", names, 30, filtered=False)
    found = Counter(
        pair[0].key for pair, score in zip(pairs, scores, strict=True) if score.components["deeds"]
    )
    assert set(found) == set(names), found
    assert (tmp_path / "here" / "pwned").exists()


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_no_payload_of_many_runs_in_any_scorer(watched, payloads, tmp_path, capfd):
    pairs, scores = fuzz(watched, payloads, tmp_path / "here", SCORERS, 400, seed=1)
    with capfd.disabled():
        deeds = sum(score.components["deeds"] for score in scores)
        print(f"\n{len(pairs)} payloads, {len(SCORERS)} scorers: {deeds:g} deeds")
    assert_nothing_ran(pairs, scores, tmp_path / "here", "".join(capfd.readouterr()))
