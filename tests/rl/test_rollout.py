"""Rollouts: the table generators return, and that old equals new until the policy moves."""

import time
from contextlib import nullcontext

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from d1ray.config.rl import RLConfig
from d1ray.config.rng import generator
from d1ray.config.sampling import SamplerConfig
from d1ray.diffusion.estimators.one_step import OneStep
from d1ray.diffusion.noise import prompt_mask
from d1ray.models.chat import encode_prompt
from d1ray.rl import schema
from d1ray.rl.algorithms.diffu_grpo import DiffuGRPO
from d1ray.rl.batch import batch_of, up_to_first_eos
from d1ray.rl.rollout import Prompt, Request, generate
from d1ray.rl.scoring import example_from_json, score_rollouts
from d1ray.rl.update import accumulate_gradient
from d1ray.tasks.sudoku import Sudoku

SEED, G = 3, 3
TASK = Sudoku(template="{puzzle}")
SAMPLING = SamplerConfig(gen_length=8, steps=4, block_length=4, temperature=1.0)


def settings(scope="group", tokens=16384, beta=0.04):
    algorithm = DiffuGRPO(beta=beta, estimator=OneStep(prompt_mask_prob=0.3, mask_scope=scope))
    return RLConfig(mu=2, group_size=G, sampling=SAMPLING, algorithm=algorithm, micro_batch_tokens=tokens)


CONFIG = settings()


def read_batch(table, tokenizer):
    advantages = CONFIG.algorithm.advantages(table["reward"].to_numpy().reshape(-1, G))
    return batch_of(table, advantages, tokenizer.eos_token_id, 1, torch.device("cpu"))


@pytest.fixture
def prompts(tokenizer):
    made = []
    for group in range(3):
        example = TASK.draw("test", generator(0, "test", group))
        ids = encode_prompt(tokenizer, example.prompt[: 16 - group], 100)  # ragged
        made.append(Prompt(70 + group, tuple(ids), example))
    return tuple(made)


@pytest.fixture
def run(make_text_model, tokenizer, prompts):
    """``run(config, ...)``: generates with seed-0 weights; the reference has seed 1."""

    def generated(config=CONFIG, prompts=prompts):
        return generate(
            make_text_model(0),
            nullcontext(make_text_model(1)),
            tokenizer,
            Request(prompts, G, SAMPLING, SEED, config),
            incarnation=2,
            version=9,
        )[0]

    return generated


def slow_logps(model, prompt, mask, completion):
    mask_id = model.config.mask_token_id
    ids = [mask_id if hidden else token for token, hidden in zip(prompt, mask, strict=True)]
    with torch.no_grad():
        logits = model(torch.tensor([ids + [mask_id] * len(completion)]))[0, len(ids) :]
    return logits.log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion)].numpy()


def test_the_table_has_the_schema_of_generated_rollouts(run):
    table = run()
    assert table.schema.equals(schema.GENERATED)
    assert not any(column.null_count for column in table.columns)


def test_a_groups_rows_are_adjacent_and_in_rollout_order(run, prompts):
    table = run()
    assert table["group_id"].to_pylist() == [70] * G + [71] * G + [72] * G
    assert table["rollout"].to_pylist() == [0, 1, 2] * 3
    assert table["prompt_ids"].to_pylist() == [list(p.ids) for p in prompts for _ in range(G)]
    assert set(table["incarnation"].to_pylist()) == {2}
    assert set(table["policy_version"].to_pylist()) == {9}


def test_a_table_records_who_sampled_it_and_when(make_text_model, tokenizer, prompts):
    before = time.time()
    request = Request(prompts, G, SAMPLING, SEED)
    table = generate(make_text_model(0), None, tokenizer, request, 2, 9, generator=4, seconds_load=0.5)[0]
    assert set(table["generator"].to_pylist()) == {4} and set(table["seconds_load"].to_pylist()) == {0.5}
    (started,), (seconds,) = ({*table[name].to_pylist()} for name in ("started_generate", "seconds_generate"))
    scored = score_rollouts(table, TASK, scorer=1)
    (scored_at,) = set(scored["started_score"].to_pylist())
    assert set(scored["scorer"].to_pylist()) == {1}
    assert before <= started < started + seconds <= scored_at + 1e-3 <= time.time() + 1e-3


def test_an_example_travels_with_its_rows(run, prompts):
    table = run()
    read = [example_from_json("sudoku", text) for text in table["example"].to_pylist()]
    assert read == [p.example for p in prompts for _ in range(G)]


def test_text_is_the_completion_up_to_its_first_eos(run, tokenizer):
    eos = tokenizer.eos_token_id
    for row in run().to_pylist():
        ids = row["completion_ids"]
        tokens = ids[: ids.index(eos)] if eos in ids else ids
        assert row["text"] == "".join(tokenizer.convert_ids_to_tokens(tokens))


def test_the_steps_and_lengths_of_a_row_agree(run):
    for row in run().to_pylist():
        assert len(row["completion_ids"]) == len(row["step_map"]) == len(row["sampler_logps"]) == 8
        assert row["forwards"] == max(row["step_map"]) + 1
        assert np.array(row["old_logps"]).shape == np.array(row["reference_logps"]).shape == (2, 8)


def test_the_rollouts_of_a_group_differ(run):
    completions = [tuple(ids) for ids in run()["completion_ids"].to_pylist()]
    assert len(set(completions)) == len(completions)


@pytest.mark.parametrize("scope", ["group", "completion"])
@pytest.mark.parametrize("tokens", [1, 16384])
def test_old_and_reference_log_probabilities_are_those_of_the_masked_prompt(
    run, make_text_model, scope, tokens
):
    config = settings(scope, tokens)
    models = {"old_logps": make_text_model(0), "reference_logps": make_text_model(1)}
    for row in run(config).to_pylist():
        for inner in range(2):
            key = (row["group_id"], inner) + ((row["rollout"],) if scope == "completion" else ())
            mask = prompt_mask(len(row["prompt_ids"]), 0.3, SEED, *key)
            for column, model in models.items():
                expected = slow_logps(model, row["prompt_ids"], mask, row["completion_ids"])
                scored = up_to_first_eos(np.array(row["completion_ids"]), model.config.eos_token_id)
                assert np.allclose(row[column][inner], np.where(scored, expected, 0), atol=1e-5)


@pytest.mark.parametrize("scope", ["group", "completion"])
def test_on_policy_the_ratio_is_one_at_every_inner_update(run, make_text_model, tokenizer, scope):
    config = settings(scope)
    table = score_rollouts(run(config), TASK)
    batch = read_batch(table, tokenizer)
    model = make_text_model(0)
    for inner in range(2):
        metrics = accumulate_gradient(model, batch, inner, SEED, config)
        assert metrics["gap"] < 1e-5
        assert metrics["clip_fraction"] == 0


def test_an_algorithm_without_a_reference_leaves_its_column_empty(run):
    assert run(settings(beta=0.0))["reference_logps"].to_pylist() == [[]] * 9


def test_without_likelihoods_there_is_only_the_sample(run):
    table, full = run(config=None), run()
    assert table["old_logps"].to_pylist() == table["reference_logps"].to_pylist() == [[]] * 9
    assert table["completion_ids"].equals(full["completion_ids"])


def test_a_group_is_the_same_in_any_request(run, prompts):
    columns = ["completion_ids", "step_map", "text", "forwards"]
    together = run().select(columns).to_pylist()
    for index, prompt in enumerate(prompts):
        alone = run(prompts=(prompt,))
        assert alone.select(columns).to_pylist() == together[index * G : (index + 1) * G]


def test_scoring_extends_the_table_and_keeps_what_was_there(run):
    table = run()
    scored = score_rollouts(table, TASK)
    assert scored.schema.equals(schema.SCORED)
    assert scored.select(schema.GENERATED.names).equals(table)
    for row in scored.to_pylist():
        assert row["reward"] == pytest.approx(sum(value for _, value in row["components"]))


def test_a_scored_table_survives_parquet_and_becomes_the_same_batch(run, tokenizer, tmp_path):
    scored = score_rollouts(run(), TASK)
    pq.write_table(scored, tmp_path / "step-00000.parquet")
    read = pq.read_table(tmp_path / "step-00000.parquet")
    assert read.equals(scored)
    batches = [read_batch(t, tokenizer) for t in (scored, read)]
    for name in ("old", "reference", "advantages"):
        assert torch.equal(getattr(batches[0], name), getattr(batches[1], name))
    for ours, theirs in zip(*(batch.groups for batch in batches), strict=True):
        assert vars(ours).keys() == vars(theirs).keys()
        assert all(
            (vars(ours)[name] == vars(theirs)[name]).all() for name in vars(ours) if name != "group_id"
        )
        assert ours.group_id == theirs.group_id


def test_a_batch_holds_the_rows_of_the_table(run, tokenizer):
    scored = score_rollouts(run(), TASK)
    batch = read_batch(scored, tokenizer)
    for index, row in enumerate(scored.to_pylist()):
        group, rollout = divmod(index, G)
        assert batch.groups[group].prompt.tolist() == row["prompt_ids"]
        assert batch.groups[group].completions[rollout].tolist() == row["completion_ids"]
        assert batch.groups[group].step_map[rollout].tolist() == row["step_map"]
        assert batch.old[group, rollout, :, 0].tolist() == row["old_logps"]
        assert batch.reference[group, rollout, :, 0].tolist() == row["reference_logps"]
