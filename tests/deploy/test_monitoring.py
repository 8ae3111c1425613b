"""The board and the alerts ask only for metrics that exist, and the alerts fire when they should."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from d1ray.run import metrics

REPOSITORY = Path(__file__).parents[2]
MONITORING = REPOSITORY / "deploy" / "monitoring"
NAMES = {f"ray_{metrics.gauge_of(metric.name)[0]}" for metric in metrics.METRICS}


def board():
    return json.loads((MONITORING / "grafana.json").read_text())


def rules():
    return yaml.safe_load((MONITORING / "prometheus-rule.yaml").read_text())["spec"]


def queried(expression):
    return set(re.findall(r"ray_\w+", expression))


def test_the_stored_board_is_what_its_program_makes():
    spec = importlib.util.spec_from_file_location("board", MONITORING / "board.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    assert board() == program.board()


def test_every_panel_asks_for_metrics_that_exist():
    targets = [target for panel in board()["panels"] for target in panel.get("targets", [])]
    assert len(targets) > 30
    for target in targets:
        assert queried(target["expr"]) and queried(target["expr"]) <= NAMES, target["expr"]
    assert queried(board()["templating"]["list"][1]["query"]["query"]) <= NAMES


def test_panels_have_their_own_number_and_do_not_overlap():
    panels = board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24
        taken |= cells


def test_every_alert_asks_for_metrics_that_exist_and_says_what_to_do():
    for rule in rules()["groups"][0]["rules"]:
        assert queried(rule["expr"]) and queried(rule["expr"]) <= NAMES, rule["expr"]
        assert rule["annotations"]["summary"] and rule["annotations"]["action"]
        assert rule["labels"]["severity"] in ("warning", "critical")


def series(name, values):
    return {"series": f'ray_d1ray_{name}{{run="r",stage="rl"}}', "values": values}


def driver(step, steps="9"):
    """What a driver shows at the ``step`` it is at, of ``steps``; for an hour where they say no other."""
    named = {"step": step, "steps": steps, "last_step_time": step}
    return [series(name, values if "x" in values else f"{values}x60") for name, values in named.items()]


# (metrics, a sample a minute; when; which alert is on)
CASES = [
    ([series("last_step_time", "0x60")], "30m", None),  # Prometheus's clock starts at 0
    ([series("last_step_time", "0x60")], "40m", "D1rayNoStep"),
    (driver("3"), "20m", None),
    (driver("3x10 _x60", "9x10 _x60"), "18m", None),  # remembered for five minutes, and five are waited
    (driver("3x10 _x60", "9x10 _x60"), "25m", "D1rayDriverGone"),
    (driver("9x10 _x60", "9x10 _x60"), "25m", None),  # it has ended
    ([series("reward", "2x60 0.9x60")], "1h20m", None),
    ([series("reward", "2x60 0.9x60")], "1h50m", "D1rayRewardCollapsed"),
    ([series("learner_restarts", "0 1 2x60")], "20m", None),
    ([series("learner_restarts", "0 1 2 3x60")], "20m", "D1rayLearnerKeepsDying"),
    ([series("reissued_calls", "0x9 21x60")], "15m", "D1rayCallsMadeAgain"),
    ([series("groups_waiting", "4x60"), series("groups_running", "1x60")], "30m", None),
    ([series("groups_waiting", "4x60"), series("groups_running", "0x60")], "30m", "D1raySlotsStarved"),
    ([series("generators_up", "2x60"), series("generators", "5x60")], "30m", "D1rayGeneratorsMissing"),
    ([series("score_timeouts", "6x60"), series("score_crashes", "5x60")], "30m", "D1rayScoringFails"),
    ([series("policy_age", "1x60"), series("logprob_gap", "0.5x60")], "30m", None),
    ([series("policy_age", "0x60"), series("logprob_gap", "0.5x60")], "30m", "D1rayPolicyGap"),
    ([series("nonfinite", "1x60")], "30m", "D1rayUpdatesDropped"),
]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (of Prometheus) is not installed")
def test_alerts_fire_when_they_should_and_only_then(tmp_path):
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules()))
    names = [rule["alert"] for rule in rules()["groups"][0]["rules"]]
    assert {alert for *_, alert in CASES} - {None} == set(names)
    described = {rule["alert"]: rule for rule in rules()["groups"][0]["rules"]}
    tests = []
    for inputs, when, fires in CASES:
        expected = []
        for name in names:
            alerts = []
            if name == fires:
                rule = described[name]
                said = {
                    key: text.replace("{{ $labels.run }}", "r") for key, text in rule["annotations"].items()
                }
                alerts = [
                    {"exp_labels": {"run": "r", "stage": "rl", **rule["labels"]}, "exp_annotations": said}
                ]
            expected.append({"eval_time": when, "alertname": name, "exp_alerts": alerts})
        tests.append({"interval": "1m", "input_series": inputs, "alert_rule_test": expected})
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": tests}))
    ran = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_documented_table_is_the_code_s():
    page = (REPOSITORY / "docs" / "metrics.md").read_text()
    assert metrics.table() in page
