"""The page as a file: whole, self-contained, small, and safe from what a model writes."""

import base64
import gzip
import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from d1ray import cli
from d1ray.config.errors import UserError
from d1ray.report.report import report
from d1ray.report.signs import SIGNS

MakeRun = Callable[..., Path]
EVIL = "</script><img src=x onerror=alert(1)><!--\"'"


def data_of(html: str) -> dict[str, Any]:
    """What the page holds for its scripts."""
    match = re.search(r'<script type="text/plain" id="data">([A-Za-z0-9+/=]*)</script>', html)
    assert match
    found: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(match.group(1))))
    return found


def test_the_page_is_written_into_the_run_folder(make_run: MakeRun) -> None:
    folder = make_run()
    assert report([folder]) == folder / "report.html"
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>") and html.endswith("</html>\n")
    data = data_of(html)
    assert data["runs"] == [{"name": "run", "task": "sudoku"}]
    assert len(data["completions"]["rows"]["group"]) == 4 * 3 * 4
    assert [sign["name"] for sign in data["signs"]] == ["any sign", *(sign.name for sign in SIGNS)]


def test_the_page_names_nothing_outside_of_itself(make_run: MakeRun) -> None:
    html = report([make_run()]).read_text(encoding="utf-8")
    outside = html.replace("http://www.w3.org/2000/svg", "")  # a name, which is never fetched
    assert not re.search(r"https?://|@import|url\(|<link(?! rel=\"icon\" href=\"data:,\")|\bsrc=", outside)


def test_only_the_pages_own_script_may_run(make_run: MakeRun) -> None:
    html = report([make_run()]).read_text(encoding="utf-8")
    policy = re.search(r"script-src '(sha256-[^']+)'", html)
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert policy and len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert policy.group(1) == f"sha256-{digest}"
    assert "default-src 'none'" in html and not re.search(r"\son\w+=", html.split("<script")[0])


def test_no_name_is_taken_twice_in_the_one_scope_of_the_scripts(make_run: MakeRun) -> None:
    html = report([make_run(steps=1)]).read_text(encoding="utf-8")
    names = re.findall(r"^(?:async )?(?:function|const|let|class) (\w+)", html, re.MULTILINE)
    assert {"element", "switchTheme", "binOf", "written", "main"} < set(names)
    assert len(names) == len(set(names))
    assert not re.search(r"^(import|export)\b", html, re.MULTILINE)


def test_what_a_model_or_a_config_says_is_never_markup(make_run: MakeRun) -> None:
    folder = make_run(f"run <b>{'x' * 3}", "about=<script>alert(2)</script>", text=lambda *_: EVIL, steps=1)
    dropped = {"step": 1, "group_id": 1, "example": EVIL, "reason": EVIL}
    (folder / "dropped.jsonl").write_text(json.dumps(dropped) + "\n")
    html = report([folder]).read_text(encoding="utf-8")
    assert "onerror=alert(1)>" not in html and "<script>alert(2)" not in html and "<b>xxx" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html  # of dropped.jsonl
    data = data_of(html)["completions"]
    tokens = [data["vocabulary"][number] for number in data["rows"]["tokens"][0]]
    assert "".join(tokens).startswith(EVIL[:40])


def test_what_is_missing_is_said(make_run: MakeRun) -> None:
    folder = make_run(steps=0)
    (folder / "metrics.jsonl").unlink()
    html = report([folder]).read_text(encoding="utf-8")
    assert "3 things are missing" in html and "there is no metrics.jsonl" in html
    assert "No final table yet" in html and "No completions are stored." in html


def test_runs_of_different_tasks_are_compared_with_a_warning(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("a"), make_run("b", "task={name: countdown}")]
    html = report(runs, tmp_path / "out.html").read_text(encoding="utf-8")
    assert "The runs have different tasks (countdown, sudoku)" in html
    assert "<code>task.name</code>" in html
    assert not (runs[0] / "report.html").exists()


def test_more_runs_than_there_are_colours_are_refused(make_run: MakeRun) -> None:
    runs = [make_run(f"run-{n}", steps=0) for n in range(9)]
    with pytest.raises(UserError, match="9 runs were given; a report compares at most 8"):
        report(runs)


def test_completions_that_do_not_compress_are_left_out_until_the_page_is_below_three_megabytes(
    make_run: MakeRun,
) -> None:
    folder = make_run(steps=200, stored=1, groups=32, size=8)
    (folder / "models" / "rl").unlink()  # no tokenizer: any number is a token
    file = folder / "rollouts" / "step-00001.parquet"
    table, draw = pq.read_table(file), np.random.default_rng(0)
    length = 1250  # tokens, of 256 completions: with 200 steps of metrics, just too many for one page
    noise = {
        "completion_ids": draw.integers(126_000, size=(table.num_rows, length)),
        "step_map": draw.integers(length, size=(table.num_rows, length)),
        "sampler_logps": np.log(draw.uniform(size=(table.num_rows, length))),
    }
    for name, values in noise.items():
        place = table.schema.get_field_index(name)
        column = pa.array(list(values), type=table.schema.field(place).type)
        table = table.set_column(place, table.schema.field(place), column)
    pq.write_table(table, file)
    report([folder])
    html = (folder / "report.html").read_text()
    assert len(html.encode()) < 3_000_000
    assert 5 < len(data_of(html)["completions"]["groups"]) < 32  # all of them were too many


def d1ray(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["d1ray", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_command_writes_a_page_a_comparison_or_a_trace(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = make_run("a", steps=1), make_run("b", steps=1)
    monkeypatch.chdir(tmp_path)
    assert d1ray(monkeypatch, "report", a, b) == 0
    assert capsys.readouterr().out == "comparison.html\n" and (tmp_path / "comparison.html").exists()
    assert d1ray(monkeypatch, "report", a, "--trace", "trace.json") == 0
    assert capsys.readouterr().out == "trace.json\n" and not (a / "report.html").exists()
    assert d1ray(monkeypatch, "report", tmp_path) == 2
    assert "holds no config.yaml" in capsys.readouterr().err
    assert d1ray(monkeypatch, "report", a, "--output", a / "config.yaml" / "x.html") == 2
    assert "cannot write" in capsys.readouterr().err
