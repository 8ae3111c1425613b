"""Broadcasts among threads over gloo: what is received is what was sent, and every failure ends in time."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch.distributed import HashStore

from actors import policy as actors_policy
from actors.broadcast import Circle, Member
from actors.generator import Generator
from actors.policy import Parcel, PolicyRef, Weights
from d1ray.config.lora import LoRAConfig
from d1ray.config.rng import generator
from d1ray.config.sampling import SamplerConfig
from d1ray.models.lora import add_lora
from d1ray.models.save import save_model
from d1ray.models.weights import live_tensors, pack
from d1ray.rl.rollout import Prompt, Request
from d1ray.tasks.sudoku import Sudoku

TASK = Sudoku(template="{puzzle}")
SAMPLING = SamplerConfig(gen_length=8, steps=4, block_length=4, temperature=1.0)
WAIT_S = 3.0


@pytest.fixture
def store():
    return HashStore()


@pytest.fixture
def circle(store):
    """``circle(size, **changes)``"""
    return lambda size, name="1.1", fresh=True: Circle(name, store, size, fresh, False, WAIT_S)


@pytest.fixture
def worker(tmp_path, make_text_model, tokenizer):
    """``worker(precision)``: a generator that starts from the model of seed 0."""
    save_model(make_text_model(0), tmp_path / "start", tokenizer)
    return lambda precision="fp32": Generator(tmp_path / "start", 1, 10, precision)


@pytest.fixture
def request_of_one():
    return Request((Prompt(0, (4, 5, 6), TASK.draw("test", generator(0, "test"))),), 1, SAMPLING, 0)


def parcels(model, version):
    """All weights, handed over themselves instead of references to them."""
    tensors = model.state_dict()
    return Weights(version, (Parcel(1, version, pack(tensors, list(tensors))),))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_generators_compute_with_what_was_sent_and_fetch_nothing(
    circle, worker, make_text_model, request_of_one, precision
):
    one, two = worker(precision), worker(precision)
    sender, dtype = Member(), one.dtype
    for version in (1, 2):  # the second time they have met
        model, group = make_text_model(version), circle(3, fresh=version == 1)
        with ThreadPoolExecutor(2) as threads:
            calls = [
                threads.submit(receiver.receive, group, rank, 1, Weights(version))
                for rank, receiver in enumerate((one, two), start=1)
            ]
            for tensor in live_tensors(model).values():
                sender.send(group, tensor.to(dtype))
            for call in calls:
                call.result(timeout=10)
        assert not sender.failed
        for receiver in (one, two):
            for name, tensor in live_tensors(receiver.model).items():
                assert torch.equal(tensor, model.state_dict()[name].to(dtype))
            _, notes = receiver.generate(request_of_one, PolicyRef(1, parcels(model, version)))
            assert notes["fetched_parcels"] == 0


def test_who_received_half_fetches_the_whole(circle, worker, make_text_model, request_of_one, monkeypatch):
    monkeypatch.setattr(actors_policy.ray, "get", lambda bucket, timeout: bucket)
    receiver, model, sender = worker(), make_text_model(3), Member()
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(receiver.receive, circle(2), 1, 1, Weights(3))
        for tensor in list(live_tensors(model).values())[:5]:
            sender.send(circle(2), tensor)
        with pytest.raises(RuntimeError):
            call.result(timeout=10 * WAIT_S)
    _, notes = receiver.generate(request_of_one, PolicyRef(1, parcels(model, 3)))
    assert notes["fetched_parcels"] == 1
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in live_tensors(receiver.model).items())


def test_a_sender_waits_for_a_missing_member_once(circle):
    sender, tensor = Member(), torch.ones(3)
    sender.send(circle(2), tensor)
    failed = dict(sender.failed)
    assert list(failed) == ["1.1"] and "wait timeout" in failed["1.1"].lower()
    sender.send(replace(circle(2), store=None), tensor)  # looks at no store
    assert sender.failed == failed


def test_another_process_than_the_one_that_met_is_refused(circle):
    with pytest.raises(ConnectionError, match=r"did not meet circle 1\.1"):
        Member().receive(circle(2, fresh=False), 1, [torch.ones(3)])


def test_a_generator_with_an_adapter_is_no_receiver(circle, worker):
    receiver = worker()
    add_lora(receiver.model, LoRAConfig(r=2))
    with pytest.raises(ValueError, match="without an adapter"):
        receiver.receive(circle(2), 1, 1, Weights(1))
