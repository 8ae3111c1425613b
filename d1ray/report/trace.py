"""What every actor of a run did when, as trace events that Perfetto and chrome://tracing read.

Format: "Trace Event Format" (complete events "X" and metadata events "M"); times are microseconds since the
first event. A process is a kind of actor, a thread is one actor.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from d1ray.config.errors import UserError
from d1ray.report.runs import Run, read_table, step_of
from d1ray.report.statistics import groups_of
from d1ray.run.atomic import write_atomically

Event: TypeAlias = dict[str, Any]

DRIVER, LEARNER, GENERATORS, SCORERS = PROCESSES = (1, 2, 3, 4)
NAMES = {DRIVER: "driver", LEARNER: "learner", GENERATORS: "generators", SCORERS: "scorers"}
COLUMNS = (
    "group_id",
    "policy_version",
    "incarnation",
    "correct",
    "generator",
    "started_generate",
    "seconds_load",
    "seconds_generate",
    "seconds_logprob",
    "scorer",
    "started_score",
    "seconds_score",
)


def write_trace(run: Run, file: Path) -> int:
    """Writes the trace of ``run``; returns how many spans it has.

    Raises:
        UserError: the run recorded no start times.
    """
    events = trace_events(run)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))
    return sum(event["ph"] == "X" for event in events)


def trace_events(run: Run) -> list[Event]:
    """Metadata and complete events, in the order of their starts.

    Raises:
        UserError: the run recorded no start times.
    """
    spans = [*_steps(run), *_groups(run)]
    if not spans:
        raise UserError(
            f"{run.path} recorded no start times (metrics.jsonl has no started_step, rollouts/ no "
            f"started_generate): a trace needs a run that got to its first RL step and records them"
        )
    zero = min(span["ts"] for span in spans)
    for span in spans:
        start, end = span["ts"] - zero, span["ts"] - zero + span["dur"]
        span["ts"] = round(1e6 * start)
        span["dur"] = round(1e6 * end) - span["ts"]
    spans.sort(key=lambda span: (span["ts"], -span["dur"]))  # a span that holds another comes first
    tracks = sorted({(span["pid"], span["tid"]) for span in spans})
    for track in tracks:
        nest([span for span in spans if (span["pid"], span["tid"]) == track])
    return [*_names(run, tracks), *spans]


def nest(spans: Sequence[Event]) -> None:
    """Makes the spans of a track lie within each other or apart, as a viewer demands.

    Starts are read off another clock than durations, so neighbours may overlap, and a part end after the
    whole, by what the clocks differ: the one that sticks out is cut. ``spans`` are in the order of their
    starts.
    """
    around: list[Event] = []
    for span in spans:
        while around:
            shared = around[-1]["ts"] + around[-1]["dur"] - span["ts"]
            if 2 * shared >= span["dur"] and shared > 0:  # a part of it
                span["dur"] = min(span["dur"], shared)
                break
            around.pop()["dur"] -= max(0, shared)
        around.append(span)


def _names(run: Run, tracks: list[tuple[int, int]]) -> Iterator[Event]:
    for pid in dict.fromkeys(pid for pid, _ in tracks):
        yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": NAMES[pid]}}
        yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}}
    ranks = run.setting("cluster.learners", 1)
    for pid, tid in tracks:
        name = NAMES[pid].removesuffix("s") + (f" {tid}" if pid in (GENERATORS, SCORERS) else "")
        name += f", {ranks} ranks" if pid == LEARNER and ranks > 1 else ""
        yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}


def _steps(run: Run) -> Iterator[Event]:
    """Spans of the driver and the learner."""
    for row in run.rl_rows():
        known = ("step", "policy_age", "reward", "solved", "updates")
        args: Event = {key: row[key] for key in known if key in row}
        for name, pid in (("step", DRIVER), ("publish", DRIVER), ("validate", DRIVER), ("learn", LEARNER)):
            start, seconds = row.get(f"started_{name}"), row.get(f"seconds_{name}")
            if start is not None and seconds is not None:
                yield _span(pid, 0, f"step {row['step']}" if name == "step" else name, start, seconds, args)


def _groups(run: Run) -> Iterator[Event]:
    """Spans of the generators and the scorers: a group is loaded for, generated, and scored as a whole."""
    for file in run.rollouts:
        table = read_table(run, file, COLUMNS)
        if table is None or any(pa.types.is_null(field.type) for field in table.schema):
            continue
        for group in groups_of(table):
            rows = table.slice(group.start, group.stop - group.start)
            first = rows.slice(0, 1).to_pylist()[0]
            args = {
                "group_id": first["group_id"],
                "step": step_of(file),
                "policy_version": first["policy_version"],
                "incarnation": first["incarnation"],
                "age": step_of(file) - 1 - first["policy_version"],  # the policy of step s has version s - 1
                "completions": rows.num_rows,
                "solved": sum(rows["correct"].to_pylist()),
            }
            start = first["started_generate"]
            if first["seconds_load"] >= 1e-3:  # below, the policy was there already
                begun = start - first["seconds_load"]
                yield _span(GENERATORS, first["generator"], "load", begun, first["seconds_load"], args)
            for name in ("generate", "logprob"):
                yield _span(GENERATORS, first["generator"], name, start, first[f"seconds_{name}"], args)
                start += first[f"seconds_{name}"]
            begun, seconds = first["started_score"], first["seconds_score"]
            yield _span(SCORERS, first["scorer"], "score", begun, seconds, args)


def _span(pid: int, tid: int, name: str, start: float, seconds: float, args: Event) -> Event:
    category = NAMES[pid]
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "pid": pid,
        "tid": tid,
        "ts": start,
        "dur": seconds,
        "args": args,
    }
