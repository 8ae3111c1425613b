"""Weights in transit: what arrives is what was sent, and nobody else's memory is touched."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from d1ray.config.lora import LoRAConfig
from d1ray.models.lora import REFERENCE, add_lora
from d1ray.models.weights import bucket_names, copy_into, live_tensors, pack


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def pair(request, make_model):
    return make_model(0).to(request.param), make_model(1).to(request.param)


@pytest.mark.parametrize("limit", [1, 5000, 2**28])
def test_a_model_sent_in_buckets_arrives_bit_for_bit(pair, limit):
    sender, receiver = pair
    for names in bucket_names(live_tensors(sender), limit):
        copy_into(live_tensors(receiver), pack(live_tensors(sender), names))
    sent, received = sender.state_dict(), receiver.state_dict()
    assert all(torch.equal(sent[name], received[name]) for name in sent)


def test_nan_payloads_and_signed_zeros_are_copied_as_bits(make_model):
    sender, receiver = make_model(0), make_model(1)
    with torch.no_grad():
        sender.model.transformer.ln_f.weight[:3] = torch.tensor([float("nan"), -0.0, float("-inf")])
    copy_into(live_tensors(receiver), pack(live_tensors(sender), list(sender.state_dict())))
    bits = [m.model.transformer.ln_f.weight.view(torch.int32) for m in (sender, receiver)]
    assert torch.equal(*bits)


def test_every_name_is_in_exactly_one_bucket_in_order(model):
    buckets = bucket_names(live_tensors(model), 6000)
    assert [name for names in buckets for name in names] == list(model.state_dict())
    assert len(buckets) > 2


def test_no_bucket_exceeds_the_limit_unless_one_tensor_does(model):
    # Matrices of 32 x 48 floats are 6,144 bytes: alone in their buckets at a limit of 6,000.
    sizes = {name: tensor.nbytes for name, tensor in model.state_dict().items()}
    for names in bucket_names(live_tensors(model), 6000):
        assert sum(sizes[name] for name in names) <= 6000 or len(names) == 1


def test_consecutive_buckets_could_not_have_been_one(model):
    sizes = {name: tensor.nbytes for name, tensor in model.state_dict().items()}
    buckets = bucket_names(live_tensors(model), 10_000)
    for names, following in pairwise(buckets):
        assert sum(sizes[name] for name in names) + sizes[following[0]] > 10_000


def test_a_bucket_is_packed_without_a_copy_and_cast_when_asked(model):
    name = "model.transformer.ln_f.weight"
    weight = live_tensors(model)[name]
    assert pack(live_tensors(model), [name])[name].ctypes.data == weight.data_ptr()
    cast = pack(live_tensors(model), [name], dtype=torch.bfloat16)[name]
    assert torch.equal(torch.from_numpy(cast).view(torch.bfloat16), weight.bfloat16())


def test_the_receiver_does_not_follow_the_bucket(make_model):
    sender, receiver = make_model(0), make_model(1)
    bucket = pack(live_tensors(sender), list(sender.state_dict()))
    sent = sender.model.transformer.wte.weight.detach().clone()
    copy_into(live_tensors(receiver), bucket)
    for data in bucket.values():
        data[:] = 0
    assert torch.equal(receiver.model.transformer.wte.weight, sent)


def test_the_receivers_parameters_stay_the_same_objects(make_model):
    # An optimiser or a compiled graph holds them.
    sender, receiver = make_model(0), make_model(1)
    parameters = {name: p.data_ptr() for name, p in receiver.named_parameters()}
    copy_into(live_tensors(receiver), pack(live_tensors(sender), list(sender.state_dict())))
    assert {name: p.data_ptr() for name, p in receiver.named_parameters()} == parameters


def test_read_only_memory_is_enough(make_model):
    sender, receiver = make_model(0), make_model(1)
    bucket = pack(live_tensors(sender), list(sender.state_dict()))
    for data in bucket.values():
        data.flags.writeable = False
    copy_into(live_tensors(receiver), bucket)
    assert torch.equal(receiver.model.transformer.wte.weight, sender.model.transformer.wte.weight)


def test_a_name_the_model_lacks_is_refused(model):
    with pytest.raises(KeyError, match="nothing"):
        copy_into(live_tensors(model), {"nothing": np.zeros(4, np.uint8)})


@pytest.mark.parametrize("size", [64, 256])  # of 32 floats in 128 bytes: half (bf16 sent to fp32) and twice
def test_a_tensor_of_another_size_is_refused(model, size):
    with pytest.raises(RuntimeError):
        copy_into(live_tensors(model), {"model.transformer.ln_f.weight": np.zeros(size, np.uint8)})


def test_of_an_adapted_model_only_the_adapter_travels(make_model):
    sender, receiver = (add_lora(make_model(0), LoRAConfig(r=2), seed) for seed in (1, 2))
    add_lora(receiver, LoRAConfig(r=2), name=REFERENCE)
    assert all(".lora_" in name for name in live_tensors(sender))
    bucket = pack(live_tensors(sender), live_tensors(sender))
    assert sum(data.nbytes for data in bucket.values()) == 2 * 4 * 2 * (3 * (32 + 32) + 32 + 48)
    copy_into(live_tensors(receiver, REFERENCE), bucket)
    for name, tensor in live_tensors(sender).items():
        assert torch.equal(live_tensors(receiver, REFERENCE)[name], tensor)
    assert not torch.equal(*(next(iter(live_tensors(m).values())) for m in (sender, receiver)))
