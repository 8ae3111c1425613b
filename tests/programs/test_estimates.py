"""Estimates, against bytes counted on a model that exists."""

import pytest

from d1ray.config.recipe import load_config
from d1ray.models.lora import adapter_tensors, add_lora
from d1ray.models.make import make_model
from d1ray.programs.estimates import estimate
from d1ray.rl.optimizer import adamw

TINY = ["rl.micro_batch_tokens=1", "rl.prompts_per_step=4"]


@pytest.mark.parametrize("lora", [False, True])
def test_a_learner_s_states_are_those_of_a_real_one(tmp_path, lora):
    config = load_config("sudoku-tiny", [*TINY, *(["rl.lora.r=4"] if lora else [])])
    make_model(config.model.make, 0, tmp_path / "m")
    from d1ray.models.load import load_model

    model = load_model(tmp_path / "m")
    parameters = sum(p.numel() for p in model.parameters())
    if lora:
        add_lora(model, config.rl.lora)
        trained = sum(t.numel() for t in adapter_tensors(model).values())
    else:
        trained = parameters
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone() if parameter.requires_grad else None
    optimizer = adamw(model, config.rl.optimizer)
    optimizer.step()
    held = sum(p.nbytes + (p.grad.nbytes if p.grad is not None else 0) for p in model.parameters())
    moments = sum(
        t.nbytes for entry in optimizer.state.values() for n, t in entry.items() if n.startswith("exp")
    )
    found = estimate(config)
    assert (found.parameters, found.trained, found.published) == (parameters, trained, 4 * trained)
    reference = 4 * trained
    activations = 4 * 4 * (14 * 128 + 3 * 384)  # one token, four blocks
    assert found.learner == held + moments + reference + activations


def test_sharding_divides_the_states_over_the_ranks():
    one = estimate(load_config("sudoku-tiny", TINY)).learner
    two = estimate(load_config("sudoku-tiny", [*TINY, "rl.sharding=fsdp", "cluster.learners=2"])).learner
    activations = 4 * 4 * (14 * 128 + 3 * 384)
    assert two - activations == pytest.approx((one - activations) / 2, rel=1e-5)


def test_what_is_offloaded_are_the_states():
    two = ["rl.sharding=fsdp", "cluster.learners=2"]
    kept, offloaded = (
        estimate(load_config("sudoku-tiny", [*TINY, *two, *more])) for more in ([], ["rl.offload=true"])
    )
    activations = 4 * 4 * (14 * 128 + 3 * 384)
    assert (kept.offloaded, offloaded.learner) == (0, kept.learner)
    assert offloaded.offloaded == kept.learner - activations


def test_time_is_shared_by_forward_passes_over_rows():
    # A group of 8: 20 steps of 8 rows; 4 masks of one shared row, for two models; the same with backward.
    shares = estimate(load_config("sudoku-tiny", ["cluster.generators=2"])).shares
    costs = {"generate": 8 * 20 / 2, "logprob": 4 * 2 / 2, "learn": 4 * 3}
    assert shares == pytest.approx({name: cost / sum(costs.values()) for name, cost in costs.items()})


def test_eight_billion_parameters_are_counted_without_weights(data_dir):
    folder = data_dir.parent / "models" / "llada-8b"
    found = estimate(load_config("llada-8b-gsm8k", [f"model.path={folder}"]))
    assert found.parameters == 8_015_581_184
    assert 2 * found.parameters < found.generator < 3 * found.parameters  # bf16
    full = estimate(load_config("llada-8b-gsm8k", [f"model.path={folder}", "model.precision=fp32"]))
    assert full.generator > 4 * full.parameters
