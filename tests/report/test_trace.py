"""The trace of a run: its structure, and that spans are where the recorded times put them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from d1ray.config.errors import UserError
from d1ray.report.report import trace
from d1ray.report.runs import read_runs
from d1ray.report.trace import nest, trace_events

MakeRun = Callable[..., Path]
Event = dict[str, Any]


def spans(events: list[Event], name: str) -> list[Event]:
    return [event for event in events if event["ph"] == "X" and event["name"] == name]


def test_every_event_is_a_name_or_a_complete_event_with_integral_microseconds(
    make_run: MakeRun, tmp_path: Path
) -> None:
    trace([make_run()], tmp_path / "out" / "trace.json")
    document = json.loads((tmp_path / "out" / "trace.json").read_text())
    assert {event["ph"] for event in document["traceEvents"]} == {"X", "M"}
    for event in document["traceEvents"]:
        assert (
            isinstance(event["pid"], int)
            and isinstance(event["tid"], int)
            and isinstance(event["args"], dict)
        )
        if event["ph"] == "X":
            assert isinstance(event["ts"], int) and event["ts"] >= 0
            assert isinstance(event["dur"], int) and event["dur"] >= 0
        else:
            assert event["name"] in ("process_name", "process_sort_index", "thread_name")


def test_every_actor_has_one_named_track(make_run: MakeRun) -> None:
    events = trace_events(read_runs([make_run()])[0])
    names = [event["args"]["name"] for event in events if event["name"] == "thread_name"]
    assert names == ["driver", "learner", "generator 0", "generator 1", "scorer 0"]
    tracks = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    assert tracks == {(event["pid"], event["tid"]) for event in events if event["ph"] == "X"}


def test_a_group_is_loaded_for_generated_and_scored_where_and_when_it_was(make_run: MakeRun) -> None:
    events = trace_events(read_runs([make_run(steps=2)])[0])
    # Time is counted from the first event, the loading 0.5 s before the first group. Group 3 begins step 2.
    of_group = [event for event in events if event["args"].get("group_id") == 3]
    assert [(event["name"], event["pid"], event["tid"], event["ts"], event["dur"]) for event in of_group] == [
        ("load", 3, 0, 10_000_000, 500_000),
        ("generate", 3, 0, 10_500_000, 2_000_000),
        ("logprob", 3, 0, 12_500_000, 500_000),
        ("score", 4, 0, 13_100_000, 250_000),
    ]
    args = of_group[1]["args"]
    assert (args["step"], args["policy_version"], args["age"], args["completions"], args["solved"]) == (
        2,
        1,
        0,
        4,
        2,
    )


def test_the_driver_and_the_learner_are_where_the_metrics_say(make_run: MakeRun) -> None:
    rows = [
        {
            "stage": "rl",
            "step": 0,
            "validation_solved": 0.5,
            "started_validate": 100.0,
            "seconds_validate": 2.5,
        },
        {
            "stage": "rl",
            "step": 1,
            "started_step": 103.0,
            "seconds_step": 8,
            "started_learn": 106.0,
            "seconds_learn": 3,
        },
    ]
    folder = make_run(steps=1, rows=rows)
    (folder / "rollouts" / "step-00001.parquet").unlink()
    events = [event for event in trace_events(read_runs([folder])[0]) if event["ph"] == "X"]
    assert [(event["name"], event["pid"], event["ts"], event["dur"]) for event in events] == [
        ("validate", 1, 0, 2_500_000),
        ("step 1", 1, 3_000_000, 8_000_000),
        ("learn", 2, 6_000_000, 3_000_000),
    ]


def test_spans_of_a_track_lie_within_each_other_or_apart(make_run: MakeRun) -> None:
    events = [
        event for event in trace_events(read_runs([make_run(steps=3, groups=4)])[0]) if event["ph"] == "X"
    ]
    for track in {(event["pid"], event["tid"]) for event in events}:
        own = [
            (event["ts"], event["ts"] + event["dur"])
            for event in events
            if (event["pid"], event["tid"]) == track
        ]
        for a, b in own:
            for c, d in own:
                assert b <= c or d <= a or (a <= c and d <= b) or (c <= a and b <= d), (track, a, b, c, d)


def test_what_clocks_let_overlap_is_cut() -> None:
    step, publish, following = {"ts": 0, "dur": 100}, {"ts": 80, "dur": 23}, {"ts": 98, "dur": 50}
    nest([step, publish, following])
    assert (step["dur"], publish["dur"], following) == (98, 18, {"ts": 98, "dur": 50})


def test_a_run_that_recorded_no_times_says_so(make_run: MakeRun) -> None:
    folder = make_run(steps=1, rows=[{"stage": "rl", "step": 1, "reward": 0.5}])
    file = folder / "rollouts" / "step-00001.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["started_generate", "started_score"]), file)
    with pytest.raises(UserError, match="recorded no start times"):
        trace([folder], folder / "trace.json")
    assert not (folder / "trace.json").exists()


def test_a_trace_is_of_one_run(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a trace is of one run; 2 were given"):
        trace([make_run("a"), make_run("b")], tmp_path / "trace.json")
