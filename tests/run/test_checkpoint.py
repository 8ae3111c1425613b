"""Checkpoints: what was saved comes back to the bit, and a damaged one is never loaded."""

import errno
import itertools
import json
import os
import pathlib
import pickle
import shutil

import fsspec
import pytest
import torch
from upath import UPath

from d1ray.config.errors import DataError, RunFailed
from d1ray.config.lora import LoRAConfig
from d1ray.config.optimizer import OptimizerConfig
from d1ray.models.adapter_folder import base_of
from d1ray.models.load import load_model
from d1ray.models.lora import add_lora
from d1ray.models.save import save_model
from d1ray.models.tokenizer import load_tokenizer
from d1ray.rl.optimizer import adamw, optimizer_step
from d1ray.run import checkpoint, checkpoint_tensors, checkpoint_writer

ONLY = "manifest-00001-of-00001.json"
CONFIG = OptimizerConfig(learning_rate=1e-2)


@pytest.fixture
def save(tmp_path, make_text_model, tokenizer):
    """``save(step, keep=...)`` writes a checkpoint whose weights are those of seed ``step % 5``."""

    def write(step, keep=3, tensors=None, model=None):
        model = model or make_text_model(step % 5)
        return checkpoint_writer.save(
            tmp_path,
            step,
            model,
            tokenizer,
            tensors or {},
            {"step": step, "driver": {"cursor": 8 * step}},
            keep,
        )

    return write


def names(root):
    return sorted(path.name for path in root.iterdir())


def train(model, optimizer, updates):
    for update in updates:
        ids = torch.tensor([[update % 20, 3, 5, 1]])
        model(ids).float().log_softmax(-1)[0, :, update % 7].sum().neg().backward()
        optimizer_step(model, optimizer, 1e-2, CONFIG)


def test_model_tokenizer_and_state_come_back(tmp_path, save, make_text_model, tokenizer):
    folder = save(7)
    assert folder == checkpoint.latest(tmp_path)
    state, expected = load_model(folder / "model").state_dict(), make_text_model(2).state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert load_tokenizer(folder / "model").get_vocab() == tokenizer.get_vocab()
    assert checkpoint.load_state(folder) == {"step": 7, "driver": {"cursor": 56}}


def test_an_adapters_tokenizer_is_written_as_a_models(tmp_path, save, make_text_model, tokenizer):
    save_model(make_text_model(), tmp_path / "base", tokenizer)
    adapted = add_lora(make_text_model(), LoRAConfig(r=2))
    folder = (
        checkpoint_writer.save(tmp_path, 3, adapted, tokenizer, {}, {}, 3, base=tmp_path / "base") / "model"
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_text() == (tmp_path / "base" / name).read_text()
    assert load_tokenizer(folder).get_vocab() == tokenizer.get_vocab()
    assert base_of(folder) == str(tmp_path / "base")
    assert load_model(folder).state_dict().keys() == make_text_model().state_dict().keys()


def test_further_tensors_come_back_by_name(save):
    tensors = {"reference": {"a.b": torch.arange(3.0)}, "other": {"x": torch.tensor(2)}}
    folder = save(1, tensors=tensors)
    assert torch.equal(checkpoint_tensors.load_tensors(folder, "reference")["a.b"], torch.arange(3.0))
    assert checkpoint_tensors.load_tensors(folder, "other")["x"] == 2
    assert checkpoint_tensors.load_tensors(folder, "nothing") == {}


def test_training_that_was_stopped_goes_on_as_if_it_had_not_been(save, make_text_model):
    whole = make_text_model()
    train(whole, adamw(whole, CONFIG), range(6))

    first = make_text_model()
    optimizer = adamw(first, CONFIG)
    train(first, optimizer, range(3))
    folder = save(3, tensors={"optimizer": checkpoint_tensors.optimizer_tensors(optimizer)}, model=first)

    second = load_model(folder / "model")
    optimizer = adamw(second, CONFIG)
    checkpoint_tensors.restore_optimizer(optimizer, checkpoint_tensors.load_tensors(folder, "optimizer"))
    train(second, optimizer, range(3, 6))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor)


def test_an_optimiser_that_has_not_stepped_comes_back_as_such(save, make_text_model):
    model = make_text_model()
    folder = save(0, tensors={"optimizer": checkpoint_tensors.optimizer_tensors(adamw(model, CONFIG))})
    optimizer = adamw(model, CONFIG)
    checkpoint_tensors.restore_optimizer(optimizer, checkpoint_tensors.load_tensors(folder, "optimizer"))
    assert not optimizer.state


def test_restoring_an_optimiser_keeps_its_settings(save, make_text_model):
    model = make_text_model()
    optimizer = adamw(model, CONFIG)
    train(model, optimizer, range(2))
    tensors = checkpoint_tensors.optimizer_tensors(optimizer)
    other = adamw(model, CONFIG.model_copy(update={"weight_decay": 0.7}))
    checkpoint_tensors.restore_optimizer(other, tensors)
    assert [group["weight_decay"] for group in other.param_groups] == [0.7, 0.0]


def test_there_is_no_latest_in_an_empty_or_missing_folder(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "nothing") is None
    (tmp_path / "file").write_text("of a model")
    assert checkpoint.best(tmp_path / "file" / "checkpoints" / "rl") is None


def test_only_the_last_checkpoints_are_kept(tmp_path, save):
    for step in (4, 8, 12, 16):
        save(step, keep=2)
    assert names(tmp_path) == ["step-00012", "step-00016"]


def test_steps_beyond_five_digits_are_still_the_newest(tmp_path, save):
    for step in (99_998, 99_999, 100_000):
        folder = save(step, keep=2)
    assert checkpoint.latest(tmp_path) == folder
    assert names(tmp_path) == ["step-100000", "step-99999"]


def test_saving_a_step_again_replaces_it(tmp_path, save, make_text_model):
    save(4)
    folder = save(4, model=make_text_model(3))
    state, expected = load_model(folder / "model").state_dict(), make_text_model(3).state_dict()
    assert torch.equal(state["model.transformer.wte.weight"], expected["model.transformer.wte.weight"])
    assert checkpoint.latest(tmp_path) == folder


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: truncate(c / "model" / "model.safetensors"),
        lambda c: flip_a_bit(c / "model" / "model.safetensors"),
        lambda c: flip_a_bit(c / "optimizer.safetensors"),
        lambda c: (c / "model" / "config.json").unlink(),
        lambda c: (c / "state.json").write_text("{}"),
        lambda c: (c / ONLY).unlink(),
        lambda c: truncate(c / ONLY),
        lambda c: (c / ONLY).write_text("null"),
        lambda c: (c / ONLY).write_text('{"state.json": []}'),
        lambda c: (c / ONLY).write_bytes(b"\xff\xfe"),
        lambda c: (c / ONLY).rename(c / "manifest-00001-of-00002.json"),
        lambda c: shutil.rmtree(c / "model"),
    ],
)
def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path, save, damage):
    tensors = {"optimizer": {"0.exp_avg": torch.ones(4)}}
    before, newest = save(4, tensors=tensors), save(8, tensors=tensors)
    damage(newest)
    assert checkpoint.latest(tmp_path) == before


def test_when_all_are_damaged_there_is_none(tmp_path, save):
    for step in (4, 8):
        truncate(save(step) / "state.json")
    assert checkpoint.latest(tmp_path) is None


def test_a_checkpoint_written_after_a_fallback_stays_and_so_does_what_is_newer(tmp_path, save):
    # 8 is damaged, the run goes on from 4 and stops at 6: the damaged future must not push 6 out.
    save(4, keep=2)
    truncate(save(8, keep=2) / "state.json")
    folder = save(6, keep=1)
    assert checkpoint.latest(tmp_path) == folder
    assert names(tmp_path) == ["step-00006", "step-00008"]
    assert save(8, keep=1) == checkpoint.latest(tmp_path)
    assert names(tmp_path) == ["step-00008"]


@pytest.mark.parametrize(
    "meddle",
    [
        lambda c: (c / ONLY).write_bytes(b""),
        lambda c: (c / ONLY).write_bytes(b"[1, 2]"),
        lambda c: (c / "manifest-00002-of-00001.json").write_text("{}"),
        lambda c: (c.parent / "step-00010.bak").mkdir(),
        lambda c: (c.parent / "step-99").mkdir(),
        lambda c: (c.parent / "step-00010").write_text("a file"),
        lambda c: (c.parent / "step-00010").mkdir(),
        lambda c: (c.parent / "step-0001o").mkdir(),
    ],
)
def test_whatever_lies_there_is_no_reason_to_stop(tmp_path, save, meddle):
    """Looking, pruning and going on answer for empty manifests and for names that are not ours."""
    save(4)
    meddle(save(8))
    newest = checkpoint.latest(tmp_path)
    assert checkpoint.newest_step(tmp_path) == checkpoint.step_of(newest) in (4, 8)
    assert checkpoint.is_complete(newest) and not checkpoint.is_complete(tmp_path / "step-00010")
    save(12, keep=1)
    assert checkpoint.newest_step(tmp_path) == 12


STANDINGS = list(checkpoint.Standing)


@pytest.mark.parametrize("standings", list(itertools.product(STANDINGS, repeat=4)))
def test_what_is_kept_is_what_a_run_could_go_on_from_and_nothing_newer_goes(standings):
    found = [checkpoint.Found(2 * i, UPath(f"step-{2 * i:05d}"), s) for i, s in enumerate(standings, start=1)]
    whole = [f.step for f in found if f.standing is checkpoint.Standing.WHOLE]
    assert [f.step for f in checkpoint.resumable(found)] == sorted(whole, reverse=True)
    for newest, keep, best in itertools.product((2, 4, 6, 8), (1, 2, 3), (None, 2, 4)):
        gone = {f.step for f in checkpoint.superfluous(found, newest, keep, best)}
        kept = {f.step for f in found} - gone
        assert all(step <= newest for step in gone) and best not in gone
        past = [step for step in whole if step <= newest]
        assert set(past[-keep:]) <= kept
        assert kept <= {*past[-keep:], best, *(f.step for f in found if f.step >= newest)}


@pytest.fixture
def failing(monkeypatch):
    """``failing(name, error, times)``: so often a method of paths raises an error."""
    monkeypatch.setattr(checkpoint, "PAUSE_S", 0)

    def fail(name, error, times, only=lambda path: True):
        whole, left = getattr(pathlib.Path, name), [times]

        def method(self, *arguments, **named):
            if left[0] and only(self):
                left[0] -= 1
                raise error
            return whole(self, *arguments, **named)

        monkeypatch.setattr(pathlib.Path, name, method)

    return fail


ERRORS = [
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    PermissionError(errno.EACCES, "Permission denied"),
    TimeoutError("the storage does not answer"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__ + str(error.errno))
@pytest.mark.parametrize("name", ["iterdir", "read_text", "stat"])
def test_what_cannot_be_read_is_an_error_and_not_an_absence(tmp_path, save, failing, name, error):
    save(4), save(8)
    before = names(tmp_path)
    failing(name, error, 1000)
    for look in (checkpoint.latest, checkpoint.newest_step, checkpoint.survey, checkpoint.best):
        with pytest.raises(checkpoint.Unreachable, match=f"be read: {type(error).__name__}.*nothing was"):
            look(tmp_path)
    with pytest.raises(checkpoint.Unreachable):
        checkpoint.prune(tmp_path, 8, 1)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("name", ["iterdir", "read_text", "stat"])
def test_an_error_that_passes_is_waited_out(tmp_path, save, failing, name):
    save(4)
    newest = save(8)
    failing(name, ERRORS[0], 1)
    assert checkpoint.latest(tmp_path) == newest


def test_a_checkpoint_is_checked_again_where_it_is_read(save):
    folder = save(4)
    with checkpoint.fetched(folder) as there:
        assert there == folder
    flip_a_bit(folder / "model" / "model.safetensors")
    with pytest.raises(DataError, match="not what its manifest says"), checkpoint.fetched(folder):
        pass


def test_the_best_step_s_checkpoint_may_be_gone(tmp_path, save):
    save(4), save(8)
    assert checkpoint.of_step(tmp_path, 4).name == "step-00004"
    flip_a_bit(tmp_path / "step-00004" / "model" / "model.safetensors")
    assert checkpoint.of_step(tmp_path, 4).name == checkpoint.of_step(tmp_path, 6).name == "step-00008"


@pytest.mark.parametrize("broken", ["save_config", "save_file", "save_tokenizer", "digest"])
def test_a_full_disk_while_saving_leaves_the_checkpoint_before(tmp_path, save, monkeypatch, broken):
    before = save(4, keep=1)

    def full_disk(*_, **__):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_writer, broken, full_disk)
        with pytest.raises(RunFailed, match=r"step-00008 cannot be written: .*no space left"):
            save(8, keep=1, tensors={"optimizer": {"x": torch.ones(1)}})
    assert checkpoint.latest(tmp_path) == before
    after = save(8, keep=1)
    assert checkpoint.latest(tmp_path) == after
    assert names(tmp_path) == ["step-00008"]


def test_what_is_written_is_the_model_as_it_was_when_writing_began(tmp_path, make_text_model, tokenizer):
    model = make_text_model(3)
    writer = checkpoint_writer.CheckpointWriter(tmp_path, 4, model, tokenizer, {}, {}, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    state, expected = load_model(writer.finish() / "model").state_dict(), make_text_model(3).state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_the_best_checkpoint_stays_beside_the_last_ones(tmp_path, make_text_model, tokenizer):
    for step, best in ((2, 2), (4, 4), (6, 4), (8, 4), (10, 4)):
        state = {"driver": {"best_step": best}}
        checkpoint_writer.CheckpointWriter(
            tmp_path, step, make_text_model(step), tokenizer, {}, state, 2, best
        ).finish()
    assert names(tmp_path) == ["step-00004", "step-00008", "step-00010"]
    assert checkpoint.best(tmp_path).name == "step-00004"
    truncate(tmp_path / "step-00004" / "state.json")
    assert checkpoint.best(tmp_path).name == "step-00010"


def test_tensors_are_dealt_whole_and_evenly():
    sizes = {"a": 5, "b": 3, "c": 1, "d": 2, "e": 2}
    tensors = {name: torch.zeros(size) for name, size in sizes.items()}
    # a: 5 | b: 3, then c: 3 + 1, d: 4 + 2 | e to the first, which has 5 then
    assert checkpoint_writer.dealt(tensors, 2) == [["a", "e"], ["b", "c", "d"]]
    assert checkpoint_writer.dealt(tensors, 1) == [list(sizes)]


def test_a_half_written_checkpoint_is_ignored(tmp_path, save):
    folder = save(4)
    shutil.copytree(folder, tmp_path / "step-00008")
    (tmp_path / "step-00008" / ONLY).unlink()
    assert checkpoint.latest(tmp_path) == folder


def test_the_manifest_lists_every_file(save):
    folder = save(4, tensors={"optimizer": {"x": torch.ones(1)}})
    listed = set(json.loads((folder / ONLY).read_text()))
    there = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    assert listed == there - {ONLY}
    assert {"state.json", "optimizer.safetensors", "model/config.json", "model/model.safetensors"} <= listed


def test_a_checkpoint_moved_elsewhere_is_still_complete(tmp_path, save):
    shutil.move(save(4), tmp_path / "elsewhere")
    assert checkpoint.is_complete(tmp_path / "elsewhere")


def test_checkpoints_live_on_object_storage_as_well(bucket, make_text_model, tokenizer):
    for step in (2, 4, 6):
        model = make_text_model(step)
        optimizer = adamw(model, CONFIG)
        train(model, optimizer, range(2))
        tensors = {"optimizer": checkpoint_tensors.optimizer_tensors(optimizer)}
        checkpoint_writer.save(bucket, step, model, tokenizer, tensors, {"step": step}, 2)
    newest = checkpoint.latest(bucket)
    assert [folder.name for folder in checkpoint.by_step(bucket)] == ["step-00004", "step-00006"]
    assert checkpoint.load_state(newest) == {"step": 6}
    with checkpoint.fetched(newest) as folder:
        state, expected = load_model(folder / "model").state_dict(), model.state_dict()
        assert all(torch.equal(state[name], expected[name]) for name in expected)
        found = checkpoint_tensors.load_tensors(folder, "optimizer")
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors["optimizer"].items())
    assert not folder.exists()
    another = fsspec.filesystem("s3", skip_instance_cache=True)  # as in another process
    another.copy(f"{bucket.path}/step-00006", f"{bucket.path}/step-00008", recursive=True)
    assert checkpoint.of_step(bucket, 8).name == "step-00008"
    checkpoint.remove(bucket / "step-00008")
    weights = newest / "model" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-8] + bytes(8))
    with pytest.raises(DataError, match="not what its manifest says"), checkpoint.fetched(newest):
        pass
    weights.write_bytes(data[:-8])
    assert checkpoint.latest(bucket).name == "step-00004"


def test_that_checkpoints_cannot_be_read_can_be_said_by_an_actor(tmp_path, failing):
    failing("iterdir", ERRORS[0], 1000)
    with pytest.raises(checkpoint.Unreachable) as raised:
        checkpoint.latest(tmp_path)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


@pytest.mark.parametrize("damage", [lambda c: (c / ONLY).unlink(), lambda c: (c / "state.json").unlink()])
def test_what_was_removed_meanwhile_is_not_taken_for_whole(save, damage):
    folder = save(4)
    damage(folder)
    with pytest.raises(DataError, match="remove the checkpoint"), checkpoint.fetched(folder):
        pass
