"""lm-evaluation-harness on the sampler: its three kinds of request, on tasks of two local files."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from d1ray.config.evaluation import EvaluationConfig, EvaluationSamplerConfig
from d1ray.config.recipe import load_config
from d1ray.diffusion.sampler import sample
from d1ray.diffusion.sequence_bound import sequence_bound
from d1ray.models.chat import decode_completion
from d1ray.models.load import load_model
from d1ray.models.tokenizer import load_tokenizer

pytest.importorskip("lm_eval")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DOCS = [{"q": f"{i}+1", "right": str(i + 1), "wrong": "ten"} for i in range(8)]
SAMPLING = EvaluationSamplerConfig(gen_length=8, steps=4, block_length=8)
TASKS = {
    "adding_choice": {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{[right, wrong]}}",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}],
    },
    "adding_text": {
        "output_type": "generate_until",
        "doc_to_target": "{{right}}",
        "generation_kwargs": {"until": ["5"], "max_gen_toks": 3},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from d1ray.models.make import make_model

    folder = tmp_path_factory.mktemp("harness") / "model"
    config = load_config("sudoku-tiny", ["model.make.d_model=32", "model.make.n_layers=2"])
    make_model(config.model.make, 0, folder)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "adding.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    for name, task in TASKS.items():
        common = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(folder / "adding.jsonl")},
                "cache_dir": str(folder / "cache"),
            },
            "test_split": "test",
            "doc_to_text": "{{q}} = ",
            "target_delimiter": "",
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(common | task))
    return folder


@pytest.fixture(scope="module")
def served(folder):
    from d1ray.evaluation.harness import HarnessModel

    return HarnessModel(folder, EvaluationConfig(batch_size=3, sampling=SAMPLING), likelihood_samples=6)


def test_choices_are_ranked_by_the_bound_and_texts_come_from_the_sampler(served, folder, tasks):
    from d1ray.evaluation.harness import run_harness, tasks_of

    results = run_harness(served, list(TASKS), tasks_of(list(TASKS), tasks))
    model, tokenizer = load_model(folder, None), load_tokenizer(folder)

    def ids(text):
        return tokenizer(text).input_ids

    right = 0
    for i, doc in enumerate(DOCS):
        # The space at the end of the context belongs to the continuation.
        bounds = [
            sequence_bound(model, ids(f"{doc['q']} ="), ids(f" {doc[name]}"), 6, 0, 2 * i + place)
            for place, name in enumerate(("right", "wrong"))
        ]
        logged = results["samples"]["adding_choice"][i]["filtered_resps"]
        assert [bound for bound, _ in logged] == pytest.approx(bounds, abs=1e-4)
        right += bounds[0] > bounds[1]
    assert results["results"]["adding_choice"]["acc,none"] == right / len(DOCS)

    for i, doc in enumerate(DOCS):
        decoded = sample(model, [ids(f"{doc['q']} = ")], SAMPLING, [(0, i)]).ids[0].tolist()
        text = decode_completion(tokenizer, decoded, model.config.eos_token_id)
        assert results["samples"]["adding_text"][i]["resps"] == [[text.partition("5")[0]]]


def test_rolling_likelihoods_are_sums_over_pieces_of_the_context(served):
    from lm_eval.api.instance import Instance

    text = "12345 " * 20  # 120 tokens, more than the context of 64
    instance = Instance("loglikelihood_rolling", {}, (text,), 0)
    (total,) = served.loglikelihood_rolling([instance], disable_tqdm=True)
    ids, start = served.tok_encode(text), [served.prefix_token_id]
    pieces = [ids[:63], ids[63:]]
    assert total == pytest.approx(
        sum(sequence_bound(served.model, start, piece, 6, 0, i, rows=3) for i, piece in enumerate(pieces))
    )


def test_a_text_that_is_no_choice_is_compared_with_greedy_decoding(served):
    from lm_eval.api.instance import Instance

    whole = EvaluationSamplerConfig(gen_length=3, steps=3, block_length=3)
    greedy = sample(served.model, [served.tok_encode("1+1=")], whole, [0]).ids[0].tolist()
    text = served.tokenizer.decode(greedy)
    assert served.tok_encode(text) == greedy
    asked = [(0, text), (1, "2" + text[1:] if text[0] != "2" else "3" + text[1:]), (2, text), (2, "5")]
    instances = [
        Instance("loglikelihood", {}, ("1+1=", answer), 0, ("task", doc, 1)) for doc, answer in asked
    ]
    answers = served.loglikelihood(instances, disable_tqdm=True)
    assert [flag for _, flag in answers] == [True, False, False, False]  # the last two are choices of one


def test_generation_ends_at_the_end_of_the_turn_and_starts_an_empty_context(served, monkeypatch):
    from lm_eval.api.instance import Instance

    from d1ray.evaluation import harness

    monkeypatch.setattr(harness, "decode_completion", lambda *arguments: "42<|im_end|> and 43")
    instances = [Instance("generate_until", {}, ("", {"until": []}), 0)]
    assert served.generate_until(instances, disable_tqdm=True) == ["42"]


def test_a_completion_as_long_as_the_context_is_refused(folder):
    from d1ray.config.errors import ConfigError
    from d1ray.evaluation.harness import HarnessModel

    with pytest.raises(ConfigError, match="leave no room for a prompt"):
        HarnessModel(folder, EvaluationConfig())


def test_the_command_prints_the_harness_s_table_and_names_an_unknown_task(folder, tasks, tmp_path):
    command = [sys.executable, "-m", "d1ray", "harness", str(folder), "--include-path", str(tasks)]
    more = ["--length", "8", "--limit", "2", "--output", str(tmp_path / "r.json"), "--chat"]
    done = subprocess.run(
        [*command, "--tasks", "adding_text", *more],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    assert "adding_text" in done.stdout and "exact_match" in done.stdout
    assert json.loads((tmp_path / "r.json").read_text())["n-samples"]["adding_text"]["effective"] == 2
    refused = subprocess.run(
        [*command, "--tasks", "no_such_task"], capture_output=True, text=True, timeout=200, env=os.environ
    )
    assert refused.returncode == 2
    assert "the harness has no task no_such_task" in refused.stderr
