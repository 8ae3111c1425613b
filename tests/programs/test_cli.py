"""The command line's answers to wrong requests: one clear line, exit status 2, nothing left behind."""

import json
import sys
from pathlib import Path

import pytest
import ray

from d1ray import cli
from d1ray.config.recipe import recipe_names


@pytest.fixture
def d1ray(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Runs the program in an empty folder: (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["d1ray", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def sudoku_rows(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


GOOD = json.dumps({"puzzle": "0321003004002100", "solution": "4321123434122143"})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "sudoku-tini"], "did you mean 'sudoku-tiny'?"),
        (["train", "sudoku-tiny", "rl.stepz=3"], "unknown key rl.stepz; did you mean 'steps'?"),
        (["train", "sudoku-tiny", "rl.steps=many"], "rl.steps: "),
        (["train", "sudoku-tiny", "rl.group_size=1"], "rl.group_size: "),
        (["train", "sudoku-tiny", "rl.sampling.block_length=7"], "does not divide gen_length=20"),
        (["train", "sudoku-tiny", "data.max_prompt_length=60"], "model.make.max_sequence_length=64"),
        (["train", "sudoku-tiny", "data.max_prompt_length=10"], "more than data.max_prompt_length=10"),
        (["train", "sudoku-tiny", "task.name=chess"], "known tasks: countdown, dialogue, gsm8k"),
        (["train", "sudoku-tiny", "task.blanks=99"], "task.blanks: "),
        (["train", "sudoku-tiny", "data.path=nowhere.jsonl"], "nowhere.jsonl"),
        (["train", "sudoku-tiny", "model.make=null", "model.path=nowhere"], "nowhere is not there"),
        (["train", "sudoku-tiny", "rl.lora.targets=[nope]"], "no projection nope; it has attn_out"),
        (["train", "sudoku-tiny", "noequals"], "is not of the form key=value"),
        (["train", "missing.yaml"], "missing.yaml does not exist"),
        (["sft", "sudoku-tiny", "sft=null"], "no sft section"),
        (["evaluate", "nowhere", "--task", "sudoku"], "no config.json in it"),
        (["serve", "nowhere"], "no config.json in it"),
        (["serve", "nowhere", "--local"], "no config.json in it"),
        (["serve", "nowhere", "--replicas", "two"], "--replicas two: expected MIN:MAX"),
        (["serve", "nowhere", "--host", "0.0.0.0"], "give api_key_file"),
        (["serve", "nowhere", "limits.max_token=5"], "did you mean 'max_tokens'?"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_status_2(d1ray, tmp_path: Path, arguments, said: str) -> None:
    status, _, err = d1ray(*arguments)
    assert status == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not ray.is_initialized()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{not json", "line 2"),
        (json.dumps({"puzzle": "0321003004002100"}), "solution"),
        (json.dumps({"puzzle": "0321", "solution": "4321123434122143"}), "puzzle must be 16 characters"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(d1ray, tmp_path: Path, row: str, said: str) -> None:
    file = sudoku_rows(tmp_path / "rows.jsonl", GOOD, row)
    status, _, err = d1ray("train", "sudoku-tiny", f"data.path={file}")
    assert status == 2
    assert "rows.jsonl" in err and "line 2" in err and said in err
    assert not (tmp_path / "runs").exists()


def test_recipes_are_listed_with_one_line_each(d1ray) -> None:
    status, out, _ = d1ray("recipes")
    assert status == 0
    lines = out.strip().splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert all(len(line) > 40 for line in lines)


def test_no_arguments_print_the_help(d1ray) -> None:
    _, out, err = d1ray()
    assert "train" in out + err and "recipes" in out + err
