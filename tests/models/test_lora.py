"""Adapters: what they compute, what they leave alone, and PEFT's own reading of what is saved."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from d1ray.config.errors import ModelError
from d1ray.config.lora import LoRAConfig
from d1ray.models.adapter_folder import load_adapter, save_adapter
from d1ray.models.architectures import read_config
from d1ray.models.llada import LLaDA
from d1ray.models.load import check_lora, check_weights, load_model
from d1ray.models.lora import REFERENCE, adapter_tensors, add_lora, has_lora, unadapted, using_adapter
from d1ray.models.save import save_model

IDS = torch.tensor([[4, 11, 5, 2, 1, 1], [7, 9, 3, 3, 1, 1]])
CONFIG = LoRAConfig(r=3, alpha=6)


def randomise(model, name="policy", seed=0):
    """A trained adapter: B is no longer 0."""
    draw = np.random.default_rng(seed)
    for tensor in adapter_tensors(model, name).values():
        tensor.copy_(torch.from_numpy(draw.standard_normal(tuple(tensor.shape)).astype(np.float32)) * 0.3)
    return model


@pytest.fixture
def lora(model):
    return randomise(add_lora(model, CONFIG))


def test_a_new_adapter_changes_no_output_bit(make_model):
    with torch.no_grad():
        assert torch.equal(add_lora(make_model(), CONFIG, seed=3)(IDS), make_model()(IDS))


def test_only_the_adapters_are_trained(model):
    add_lora(model, CONFIG)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 4 * model.config.n_layers  # A and B of q, k, v and up in each block
    assert all(".lora_" in name for name in trained)
    model(IDS).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_the_vocabulary_projection_gets_no_adapter_even_where_a_block_has_one_of_its_name(model):
    add_lora(model, LoRAConfig(targets=("ff_out",)))
    adapted = {name.partition(".lora_")[0] for name in adapter_tensors(model)}
    assert adapted == {f"model.transformer.blocks.{i}.ff_out" for i in range(model.config.n_layers)}


def test_the_first_matrix_is_keyed_by_the_seed_and_uniform(make_model):
    def first(seed):
        model = add_lora(make_model(), LoRAConfig(r=16), seed)
        return {k: t.clone() for k, t in adapter_tensors(model).items()}

    one, same, other = first(1), first(1), first(2)
    assert all(torch.equal(one[k], same[k]) for k in one)
    for name, tensor in one.items():
        if name.endswith("lora_B.weight"):
            assert not tensor.any()
        else:
            assert not torch.equal(tensor, other[name])
            bound = tensor.shape[1] ** -0.5
            assert tensor.abs().max() <= bound
            # The variance of U(-b, b) is b^2 / 3; its sample's standard deviation is b^2 (4/45 / n)^.5.
            error = (tensor**2).mean() - bound**2 / 3
            assert abs(float(error)) < 5 * bound**2 * (4 / 45 / tensor.numel()) ** 0.5


def test_the_adapted_projections_are_w_plus_b_a(make_model, lora):
    by_hand = make_model()
    state = by_hand.state_dict()
    for name, a in adapter_tensors(lora).items():
        if name.endswith("lora_A.weight"):
            b = adapter_tensors(lora)[name.replace("lora_A", "lora_B")]
            state[name.replace(".lora_A", "")] += 6 / 3 * b @ a
    with torch.no_grad():
        assert torch.allclose(lora(IDS), by_hand(IDS), atol=1e-4)
        assert not torch.allclose(lora(IDS), make_model()(IDS), atol=1e-2)


def test_without_its_adapter_the_model_is_the_start_model_to_the_bit(make_model, lora):
    with torch.no_grad():
        adapted = lora(IDS)
        with using_adapter(lora, None):
            assert torch.equal(lora(IDS), make_model()(IDS))
        assert torch.equal(lora(IDS), adapted)


def test_a_second_adapter_is_another_policy_over_the_same_weights(make_model, lora):
    randomise(add_lora(lora, CONFIG, name=REFERENCE), REFERENCE, seed=1)
    alone = randomise(add_lora(make_model(), CONFIG), seed=1)
    with torch.no_grad():
        adapted = lora(IDS)
        with using_adapter(lora, REFERENCE):
            assert torch.equal(lora(IDS), alone(IDS))
        assert torch.equal(lora(IDS), adapted)
    assert not torch.allclose(adapted, alone(IDS))


def test_using_another_adapter_leaves_what_is_trained_as_it_was(lora):
    add_lora(lora, CONFIG, name=REFERENCE)
    for name in (None, REFERENCE):
        with using_adapter(lora, name):
            pass
    trained = {name for name, p in lora.named_parameters() if p.requires_grad}
    assert trained
    with pytest.raises(KeyError), using_adapter(lora, None):
        raise KeyError
    assert {name for name, p in lora.named_parameters() if p.requires_grad} == trained


def test_an_adapter_that_is_not_there_is_an_error_and_no_frozen_weights(model, lora):
    for use in (using_adapter(lora, "nope"), using_adapter(lora, REFERENCE)):
        with pytest.raises(ModelError, match=r"no adapter '\w+'; it has 'policy'"), use:
            pass
    with pytest.raises(ModelError, match="no adapter 'nope'; it has 'policy'"):
        unadapted(lora, "nope")


def test_a_plain_model_has_no_adapter_to_use_or_save(model, tmp_path):
    with (
        pytest.raises(ModelError, match="no adapter 'reference'; it has none"),
        using_adapter(model, REFERENCE),
    ):
        pass
    with pytest.raises(ModelError, match="no adapter 'policy'; it has none"):
        save_adapter(model, tmp_path / "adapter")
    with using_adapter(model, None) as same:
        assert same is model


def test_leaving_an_inner_context_gives_back_what_the_outer_one_set(make_model, lora):
    randomise(add_lora(lora, CONFIG, name=REFERENCE), REFERENCE, seed=1)
    with torch.no_grad():
        policy = lora(IDS)
        with using_adapter(lora, REFERENCE):
            reference = lora(IDS)
            with using_adapter(lora, None), using_adapter(lora, "policy"):
                assert torch.equal(lora(IDS), policy)
            assert torch.equal(lora(IDS), reference)
        with using_adapter(lora, None):
            with using_adapter(lora, "policy"):
                assert torch.equal(lora(IDS), policy)
            assert torch.equal(lora(IDS), make_model()(IDS))
        assert torch.equal(lora(IDS), policy)


def test_a_second_adapter_in_other_places_stays_inactive(lora):
    with torch.no_grad():
        adapted = lora(IDS)
        randomise(add_lora(lora, LoRAConfig(r=2, targets=("v_proj", "attn_out")), name="other"), "other")
        assert torch.equal(lora(IDS), adapted)
        merged, other = unadapted(lora), unadapted(lora, "other")
        assert torch.allclose(merged(IDS), adapted, atol=1e-4)
        with using_adapter(lora, "other"):
            assert torch.allclose(other(IDS), lora(IDS), atol=1e-4)
    assert all(".other." not in name for name, p in lora.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["transformer", "blocks", "0", "q_proj", "lora_A", "weight", "model"])
def test_an_adapters_name_may_be_part_of_a_path(make_model, lora, name, tmp_path):
    randomise(add_lora(lora, CONFIG, name=name), name, seed=1)
    alone = randomise(add_lora(make_model(), CONFIG), seed=1)
    ours, theirs = adapter_tensors(lora, name), adapter_tensors(alone)
    assert ours.keys() == theirs.keys() == adapter_tensors(lora).keys()
    assert all(torch.equal(ours[path], theirs[path]) for path in theirs)
    save_adapter(lora, tmp_path / "adapter", name=name)
    loaded = load_adapter(make_model(), tmp_path / "adapter")
    with torch.no_grad(), using_adapter(lora, name):
        assert torch.equal(loaded(IDS), lora(IDS))


def test_an_adapters_name_is_taken_once(lora, tmp_path):
    save_adapter(lora, tmp_path)
    before = {path: tensor.clone() for path, tensor in adapter_tensors(lora).items()}
    with pytest.raises(ModelError, match="already has an adapter 'policy'"):
        add_lora(lora, LoRAConfig(r=8))
    with pytest.raises(ModelError, match="already has an adapter 'policy'"):
        load_adapter(lora, tmp_path)
    assert all(torch.equal(tensor, before[path]) for path, tensor in adapter_tensors(lora).items())
    assert all(p.requires_grad == (".lora_" in name) for name, p in lora.named_parameters())


def test_merged_weights_compute_what_the_adapted_model_computes(make_model, lora):
    with torch.no_grad():
        adapted = lora(IDS)
        assert torch.allclose(unadapted(lora)(IDS), adapted, atol=1e-4)
        assert torch.equal(unadapted(lora, None)(IDS), make_model()(IDS))
        assert torch.equal(lora(IDS), adapted)
    assert unadapted(lora).state_dict().keys() == make_model().state_dict().keys()


def test_a_model_without_adapters_is_its_own_plain_model(model):
    assert unadapted(model) is model


def test_a_saved_adapter_loads_back_exactly(make_model, lora, tmp_path):
    save_adapter(lora, tmp_path / "adapter", base="some/model")
    loaded = load_adapter(make_model(), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(loaded(IDS), lora(IDS))
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == ("some/model")


def test_an_adapter_folder_loads_as_the_merged_model(lora, make_model, tmp_path):
    save_model(make_model(), tmp_path / "base")
    save_adapter(lora, tmp_path / "adapter", base=str(tmp_path / "base"))
    loaded = load_model(tmp_path / "adapter")
    assert loaded.state_dict().keys() == make_model().state_dict().keys()
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    with torch.no_grad():
        assert torch.equal(loaded(IDS), unadapted(lora)(IDS))
    assert check_weights(tmp_path / "adapter") == check_weights(tmp_path / "base")


def test_an_adapter_whose_model_is_unknown_or_gone_says_so(lora, tmp_path):
    save_adapter(lora, tmp_path / "adapter")
    with pytest.raises(ModelError, match="does not say which model it adapts"):
        load_model(tmp_path / "adapter")
    save_adapter(lora, tmp_path / "adapter", base=str(tmp_path / "gone"))
    with pytest.raises(ModelError, match="gone is not there"):
        load_model(tmp_path / "adapter")


def test_an_adapters_config_is_its_models(lora, make_model, tmp_path):
    save_model(make_model(), tmp_path / "base")
    save_adapter(lora, tmp_path / "adapter", base=str(tmp_path / "base"))
    assert read_config(tmp_path / "adapter") == make_model().config


def test_a_relative_base_counts_from_the_adapters_folder(lora, make_model, tmp_path, monkeypatch):
    save_model(make_model(), tmp_path / "base")
    save_adapter(lora, tmp_path / "adapter", base="../base")
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "adapter")(IDS), unadapted(lora)(IDS))
    assert check_weights(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    save_adapter(lora, tmp_path / "adapter", base="base")  # not beside the adapter, but here
    assert load_model("adapter").state_dict().keys() == make_model().state_dict().keys()


@pytest.mark.parametrize("read", [load_model, check_weights, read_config])
def test_an_adapter_of_an_adapter_is_refused(lora, make_model, tmp_path, read):
    save_adapter(lora, tmp_path / "itself", base=str(tmp_path / "itself"))
    save_adapter(lora, tmp_path / "one", base="../other")
    save_adapter(lora, tmp_path / "other", base="../one")
    for name in ("itself", "one", "other"):
        with pytest.raises(ModelError, match="which is an adapter itself; save the merged model"):
            read(tmp_path / name)


def test_checking_a_folder_compares_the_adapter_with_its_model(lora, make_model, tmp_path):
    save_model(make_model(), tmp_path / "base")
    save_adapter(lora, tmp_path / "adapter", base=str(tmp_path / "base"))
    edit(tmp_path / "adapter", r=8)
    with pytest.raises(ModelError, match="does not fit the model; differing: model"):
        check_weights(tmp_path / "adapter")
    edit(tmp_path / "adapter", r=3, target_modules=["nope"])
    with pytest.raises(ModelError, match="no projection nope"):
        check_weights(tmp_path / "adapter")


def test_targets_are_checked_without_reading_weights(lora, make_model, tmp_path):
    wrong = LoRAConfig(targets=("q_proj", "nope"))
    save_model(make_model(), tmp_path / "base")
    save_adapter(lora, tmp_path / "adapter", base="../base")
    (tmp_path / "base" / "model.safetensors").unlink()
    with torch.device("meta"):
        empty = LLaDA(make_model().config)
    for source in (tmp_path / "base", str(tmp_path / "base"), tmp_path / "adapter", empty, lora):
        check_lora(source, CONFIG)
        with pytest.raises(
            ModelError, match=r"lora\.targets: the model has no projection nope; it has .*q_proj"
        ):
            check_lora(source, wrong)
    with pytest.raises(ModelError, match="is not there"):
        check_lora(tmp_path / "gone", CONFIG)


def test_a_model_with_adapters_is_not_saved_as_a_whole_one(lora, tmp_path):
    with pytest.raises(ModelError, match=r"save_adapter, or the merged model with save_model\(unadapted"):
        save_model(lora, tmp_path / "model")
    assert not list(tmp_path.iterdir())
    save_model(unadapted(lora), tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "model")(IDS), unadapted(lora)(IDS))


def test_peft_itself_reads_the_saved_adapter(make_model, lora, tmp_path):
    save_adapter(lora, tmp_path)
    theirs = PeftModel.from_pretrained(make_model(), tmp_path)
    with torch.no_grad():
        assert torch.equal(theirs.base_model.model(IDS), lora(IDS))


def test_an_adapter_that_peft_saved_is_read(make_model, lora, tmp_path):
    save_adapter(lora, tmp_path / "ours")
    PeftModel.from_pretrained(make_model(), tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    loaded = load_adapter(make_model(), tmp_path / "theirs")
    with torch.no_grad():
        assert torch.equal(loaded(IDS), lora(IDS))


def test_a_projection_that_is_not_there_is_named_with_those_that_are(model):
    with pytest.raises(ModelError, match=r"no projection o_proj, gate_proj; it has .*attn_out.*q_proj"):
        add_lora(model, LoRAConfig(targets=("q_proj", "o_proj", "gate_proj")))
    assert not has_lora(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_a_tensor(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.popitem()
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "is no adapter folder"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "is no adapter folder"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"xx"), "cannot be read"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "cannot be read"),
        (lambda f: edit(f, peft_type="IA3"), "peft_type is 'IA3'; supported: 'LORA'"),
        (lambda f: edit(f, use_dora=True), "use_dora is True"),
        (
            lambda f: edit(f, init_lora_weights="pissa"),
            "init_lora_weights is 'pissa'; supported: True, False",
        ),
        (lambda f: edit(f, init_lora_weights="olora"), "init_lora_weights is 'olora'"),
        (lambda f: edit(f, fan_in_fan_out=True), "fan_in_fan_out is True"),
        (lambda f: edit(f, lora_bias=True), "lora_bias is True"),
        (lambda f: edit(f, layers_to_transform=[0]), r"layers_to_transform is \[0\]"),
        (lambda f: edit(f, modules_to_save=["ln_f"]), "modules_to_save is"),
        (lambda f: edit(f, rank_pattern={"q_proj": 2}), "rank_pattern is"),
        (lambda f: edit(f, alora_invocation_tokens=[3]), "alora_invocation_tokens is"),
        (lambda f: edit(f, target_modules="all-linear"), "does not fit"),
        (lambda f: edit(f, target_modules=["nope"]), "no projection nope"),
        (lambda f: edit(f, r=5), "does not fit the model; differing: model.transformer."),
        (drop_a_tensor, "does not fit the model"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_refused_with_the_reason(
    make_model, lora, tmp_path, damage, message
):
    save_adapter(lora, tmp_path)
    damage(tmp_path)
    model = make_model()
    with pytest.raises(ModelError, match=message):
        load_adapter(model, tmp_path)
    assert not has_lora(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("kind", [True, False, "gaussian"])
def test_how_the_adapter_was_drawn_does_not_matter(make_model, lora, tmp_path, kind):
    save_adapter(lora, tmp_path)
    edit(tmp_path, init_lora_weights=kind, modules_to_save=[], rank_pattern=None)
    with torch.no_grad():
        assert torch.equal(load_adapter(make_model(), tmp_path)(IDS), lora(IDS))
