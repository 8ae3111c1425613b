"""The Grafana board as a list of panels; `python board.py > grafana.json` writes it."""

import json
import re
from typing import Any

ROWS: list[tuple[str, list[tuple[str, str, dict[str, str]]]]] = [
    # a row's title, and its panels: title, unit, {legend: what is queried}
    (
        "Is it alive?",
        [
            ("Steps", "none", {"{{stage}}": "step"}),
            ("Since the last step", "s", {"{{stage}}": "time() - last_step_time"}),
            ("Actors that answer", "none", {"generators": "generators_up", "scorers": "scorers_up"}),
            ("Groups", "none", {n: f"groups_{n}" for n in ("waiting", "running", "ready")}),
            ("Slots taken", "percentunit", {"taken": "slots_taken / slots"}),
            ("Policy age", "none", {"versions": "policy_age"}),
        ],
    ),
    (
        "Does it learn?",
        [
            ("Reward", "none", {"mean": "reward"}),
            ("Reward by component", "none", {"{{component}}": "reward_component"}),
            ("Solved", "percentunit", {"rollouts": "solved", "validation": "validation_solved"}),
            ("KL to the reference", "none", {"nats": "kl"}),
            ("Clip fraction", "percentunit", {"clipped": "clip_fraction"}),
            ("Loss and gradient norm", "none", {"loss": "loss", "gradient norm": "grad_norm"}),
            ("Groups with an advantage", "percentunit", {"share": "groups_with_advantage"}),
            (
                "Distance from the exact policy",
                "none",
                {"learner - generator": "logprob_gap", "fast - exact decoding": "mismatch"},
            ),
            ("SFT: validation loss", "none", {"nats a token": "validation_loss"}),
        ],
    ),
    (
        "Where does the time go?",
        [
            (
                "Actor-seconds a step",
                "s",
                {n: f"seconds_{n}" for n in ("load", "generate", "logprob", "score", "learn", "publish")},
            ),
            ("Seconds a step", "s", {"step": "seconds_step"}),
            ("Tokens a second", "none", {"{{stage}}": "tokens_per_s"}),
            ("Denoising passes a token", "none", {"passes": "forwards_per_token"}),
        ],
    ),
    (
        "What goes wrong?",
        [
            (
                "Deaths",
                "none",
                {
                    "calls made again": "reissued_calls",
                    "actors killed": "actors_killed",
                    "learner rebuilt": "learner_restarts",
                },
            ),
            ("Checks", "none", {"timeouts": "score_timeouts", "crashes": "score_crashes"}),
            ("Answers that cannot be read", "none", {"completions": "parse_failures"}),
            (
                "Given up",
                "none",
                {"groups": "dropped_groups", "updates": "nonfinite", "empty batches": "empty_batches"},
            ),
        ],
    ),
]
WIDTH, HEIGHT, COLUMNS = 8, 7, 24


def query(asked: str) -> str:
    """PromQL for names of metrics, as such or with operators between them."""
    return re.sub(r"\b[a-z]\w*\b(?!\()", r'ray_d1ray_\g<0>{run=~"$run"}', asked)


def panel(number: int, title: str, unit: str, queries: dict[str, str], x: int, y: int) -> dict[str, Any]:
    """One time series panel."""
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "custom": {"lineWidth": 2, "spanNulls": True}}},
        "options": {"tooltip": {"mode": "multi"}, "legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "expr": query(asked),
                "legendFormat": "{{run}} " + legend,
            }
            for index, (legend, asked) in enumerate(queries.items())
        ],
    }


def board() -> dict[str, Any]:
    """The whole board."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, members in ROWS:
        place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": title, "gridPos": place, "panels": []})
        y += 1
        for index, (name, unit, queries) in enumerate(members):
            x = index * WIDTH % COLUMNS
            panels.append(panel(len(panels) + 1, name, unit, queries, x, y))
            if x + WIDTH == COLUMNS or index == len(members) - 1:
                y += HEIGHT
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "uid": "d1ray",
        "title": "d1ray",
        "tags": ["d1ray", "ray"],
        "schemaVersion": 39,
        "refresh": "15s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
                {
                    "name": "run",
                    "type": "query",
                    "label": "Run",
                    "datasource": source,
                    "query": {"query": "label_values(ray_d1ray_step, run)", "refId": "run"},
                    "multi": True,
                    "includeAll": True,
                    "refresh": 2,
                },
            ]
        },
        "panels": panels,
    }


if __name__ == "__main__":
    print(json.dumps(board(), indent=2))
