"""Generator: whatever it held before, a call computes with the weights that its PolicyRef names."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from actors import policy as actors_policy
from actors.generator import Generator
from actors.policy import Parcel, PolicyRef, Weights, policy_of_folder
from d1ray.config.lora import LoRAConfig
from d1ray.config.rl import RLConfig
from d1ray.config.rng import generator
from d1ray.config.sampling import SamplerConfig
from d1ray.diffusion.sampler import sample
from d1ray.models.lora import adapter_tensors, add_lora
from d1ray.models.save import save_model
from d1ray.models.weights import pack
from d1ray.rl.rollout import Prompt, Request, likelihoods, sample_checked, views_of
from d1ray.tasks.sudoku import Sudoku

SAMPLING = SamplerConfig(gen_length=8, steps=4, block_length=4, temperature=1.0)
RL = RLConfig(mu=2, group_size=2, sampling=SAMPLING)
LORA = LoRAConfig(r=3, alpha=6)


@pytest.fixture(autouse=True)
def plain_buckets(monkeypatch):
    """Buckets are handed over themselves instead of references to them."""
    monkeypatch.setattr(actors_policy.ray, "get", lambda bucket, timeout: bucket)


@pytest.fixture
def folder(tmp_path, make_text_model, tokenizer):
    save_model(make_text_model(0), tmp_path / "start", tokenizer)
    return tmp_path / "start"


@pytest.fixture
def other(tmp_path, make_text_model, tokenizer):
    save_model(make_text_model(9), tmp_path / "other", tokenizer)
    return tmp_path / "other"


@pytest.fixture
def request_of_two():
    example = Sudoku(template="{puzzle}").draw("test", generator(0, "test"))
    return Request((Prompt(0, (4, 5, 6), example),), 2, SAMPLING, 0, RL)


@pytest.fixture
def adapted(make_text_model):
    """``adapted(seed)``: the start model with an adapter of random A and B."""

    def make(seed):
        model = add_lora(make_text_model(0), LORA)
        draw = np.random.default_rng(seed)
        for tensor in adapter_tensors(model).values():
            tensor.copy_(torch.from_numpy(draw.standard_normal(tuple(tensor.shape)).astype(np.float32)) * 0.3)
        return model

    return make


def weights(tensors, version, lora=None):
    return Weights(version, (Parcel(0, version, pack(tensors, list(tensors))),), lora=lora)


def adapter_weights(model, version):
    return weights(adapter_tensors(model), version, LORA)


def full_weights(model, version):
    return weights(model.state_dict(), version)


def directly(policy_model, reference_model, request):
    """Completions, old and reference log-probabilities of models that were made for it."""
    rows = [prompt.ids for prompt in request.prompts for _ in range(request.rollouts)]
    seeds = [
        (request.seed, prompt.group_id, i) for prompt in request.prompts for i in range(request.rollouts)
    ]
    samples, _ = sample_checked(policy_model, request, rows, seeds)
    views = views_of(policy_model, request, samples)
    scored = [
        np.array(likelihoods(model, views, request.likelihoods.micro_batch_tokens))
        for model in (policy_model, reference_model)
    ]
    return samples.ids.numpy(), *scored


def generated(worker, request, policy):
    table, _ = worker.generate(request, policy)
    return [np.array(table[name].to_pylist()) for name in ("completion_ids", "old_logps", "reference_logps")]


def test_each_call_computes_with_the_weights_it_names(
    folder, other, adapted, make_text_model, request_of_two
):
    lora = PolicyRef(0, adapter_weights(adapted(1), 3), adapter_weights(adapted(2), 0))
    full = PolicyRef(0, full_weights(make_text_model(3), 3), full_weights(make_text_model(4), 0))
    of_folder = PolicyRef(0, Weights(0, folder=other), Weights(0, folder=folder))
    of_start = PolicyRef(0, Weights(0, folder=folder), Weights(0, folder=other))
    by_hand = {
        "lora": (lora, adapted(1), adapted(2)),
        "full": (full, make_text_model(3), make_text_model(4)),
        "folder": (of_folder, make_text_model(9), make_text_model(0)),
        "start": (of_start, make_text_model(0), make_text_model(9)),
    }
    expected = {name: directly(p, r, request_of_two) for name, (_, p, r) in by_hand.items()}
    worker = Generator(folder, threads=1, deadline_s=10)
    order = (
        "lora",
        "folder",
        "lora",
        "full",
        "lora",
        "start",
        "lora",
        "lora",
        "full",
        "start",
        "full",
        "folder",
    )
    for position, name in enumerate((*order, "full", "full", "lora")):
        found = generated(worker, request_of_two, by_hand[name][0])
        for part, ours, theirs in zip(("ids", "old", "reference"), found, expected[name], strict=True):
            assert np.array_equal(ours, theirs.astype(ours.dtype)), (position, name, part)


def test_an_evaluation_in_between_leaves_the_reference_adapter_in_force(
    folder, other, adapted, request_of_two
):
    policy = PolicyRef(0, adapter_weights(adapted(1), 3), adapter_weights(adapted(2), 2))
    evaluation = Request(request_of_two.prompts, 2, SAMPLING, 0)
    worker = Generator(folder, threads=1, deadline_s=10)
    before = generated(worker, request_of_two, policy)
    worker.generate(evaluation, policy_of_folder(other))
    after = generated(worker, request_of_two, policy)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert not np.array_equal(after[1], after[2])


def test_weights_that_are_loaded_already_are_not_fetched_again(
    folder, adapted, make_text_model, request_of_two, monkeypatch
):
    worker = Generator(folder, threads=1, deadline_s=10)
    for policy in (
        PolicyRef(0, adapter_weights(adapted(1), 3), adapter_weights(adapted(2), 0)),
        PolicyRef(0, full_weights(make_text_model(3), 3), full_weights(make_text_model(4), 0)),
    ):
        before = generated(worker, request_of_two, policy)
        with monkeypatch.context() as patch:
            patch.setattr(actors_policy.ray, "get", lambda *_, **__: pytest.fail("fetched again"))
            after = generated(worker, request_of_two, policy)
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_new_buckets_of_all_weights_need_no_reading_from_disk(
    folder, make_text_model, request_of_two, monkeypatch
):
    worker = Generator(folder, threads=1, deadline_s=10)
    generated(
        worker,
        request_of_two,
        PolicyRef(0, full_weights(make_text_model(3), 3), full_weights(make_text_model(4), 0)),
    )
    monkeypatch.setattr("actors.generator.load_model", lambda *_, **__: pytest.fail("read again"))
    policy = PolicyRef(0, full_weights(make_text_model(5), 4), full_weights(make_text_model(6), 1))
    found = generated(worker, request_of_two, policy)
    expected = directly(make_text_model(5), make_text_model(6), request_of_two)
    assert all(np.array_equal(a, b.astype(a.dtype)) for a, b in zip(found, expected, strict=True))


def test_weights_that_came_half_are_loaded_again(folder, make_text_model, request_of_two, monkeypatch):
    worker = Generator(folder, threads=1, deadline_s=10)
    tensors = make_text_model(3).state_dict()
    names = list(tensors)
    half = Weights(3, tuple(Parcel(0, 3, pack(tensors, part)) for part in (names[:4], names[4:])))
    policy = PolicyRef(0, half, full_weights(make_text_model(4), 0))
    calls = iter([True, False])

    def lost(bucket, timeout):
        if next(calls):
            return bucket
        raise TimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(actors_policy.ray, "get", lost)
        with pytest.raises(TimeoutError):
            generated(worker, request_of_two, policy)
    start = PolicyRef(0, Weights(0, folder=folder), policy.reference)
    for named, model in ((start, make_text_model(0)), (policy, make_text_model(3))):
        expected = directly(model, make_text_model(4), request_of_two)
        found = generated(worker, request_of_two, named)
        assert all(np.array_equal(a, b.astype(a.dtype)) for a, b in zip(found, expected, strict=True))


def test_a_reference_adapter_without_an_adapted_policy_is_refused(
    folder, adapted, make_text_model, request_of_two
):
    worker = Generator(folder, threads=1, deadline_s=10)
    policy = PolicyRef(0, full_weights(make_text_model(3), 3), adapter_weights(adapted(2), 0))
    with pytest.raises(ValueError, match="needs a policy that is an adapter"):
        worker.generate(request_of_two, policy)


@pytest.mark.parametrize("sent", [(1, 3), (0, 2)], ids=["incarnation", "version"])
def test_parcels_of_other_weights_than_those_asked_for_are_refused(
    folder, request_of_two, make_text_model, sent
):
    tensors = make_text_model(3).state_dict()
    policy = PolicyRef(0, Weights(3, (Parcel(*sent, pack(tensors, list(tensors))),)), Weights(0))
    with pytest.raises(RuntimeError, match=r"asked for weights 0\.3, got"):
        Generator(folder, 1, 10).generate(request_of_two, policy)


def test_too_little_memory_is_answered_by_smaller_parts_and_the_same_rollouts(
    monkeypatch, folder, request_of_two
):
    """Three prompts of two completions, in a memory that holds two completions at a time."""
    three = replace(
        request_of_two, prompts=tuple(replace(request_of_two.prompts[0], group_id=i) for i in range(3))
    )
    policy = replace(policy_of_folder(folder), reference=Weights(0, folder=folder))
    expected, _ = Generator(folder, 1, 10).generate(three, policy)
    sizes = []

    def small(model, prompts, config, seeds):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return sample(model, prompts, config, seeds)

    monkeypatch.setattr("d1ray.rl.rollout.sample", small)
    small_one = Generator(folder, 1, 10)
    for _ in range(2):
        table, notes = small_one.generate(three, policy)
        logps = ("sampler_logps", "old_logps", "reference_logps")
        for name in ("completion_ids", "step_map", *logps, "forwards", "text"):
            assert table[name].equals(expected[name]), name
        assert notes["parts"] == 4
    assert sizes == [6, 3, 2, 2, 2, 2, 2, 2]  # the second time it knows


def test_a_single_completion_that_has_no_memory_is_an_error(monkeypatch, folder, request_of_two):
    def none(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("d1ray.rl.rollout.sample", none)
    worker = Generator(folder, 1, 10)
    with pytest.raises(torch.OutOfMemoryError):
        worker.generate(request_of_two, policy_of_folder(folder))
    assert worker.parts == 2
