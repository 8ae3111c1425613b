"""A learner's batch against the table it was read from."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from d1ray.rl import schema
from d1ray.rl.batch import batch_of, up_to_first_eos

EOS, GROUPS, G, M, L = 0, 2, 3, 2, 4
PROMPTS = [[4, 11, 5], [7]]  # ragged
COMPLETIONS = np.arange(GROUPS * G * L).reshape(GROUPS, G, L) + 2
COMPLETIONS[0, 1] = [9, EOS, 5, EOS]
COMPLETIONS[1, 0] = EOS
OLD = np.linspace(-9, -1, GROUPS * G * M * L, dtype=np.float32).reshape(GROUPS, G, M, L)
REFERENCE = OLD[::-1] / 3


STEP_MAP = np.tile([3, 1, 0, 2], (GROUPS, G, 1))
ADVANTAGES = np.array([[0.5, -0.5, 0.0], [0.0, 0.0, 0.0]], np.float32)


def a_table(reference=True):
    rows = [(g, i) for g in range(GROUPS) for i in range(G)]
    columns = {
        "group_id": [40 + g for g, _ in rows],
        "rollout": [i for _, i in rows],
        "prompt_ids": [PROMPTS[g] for g, _ in rows],
        "completion_ids": [COMPLETIONS[g, i].tolist() for g, i in rows],
        "step_map": [STEP_MAP[g, i].tolist() for g, i in rows],
        "old_logps": [OLD[g, i].tolist() for g, i in rows],
        "reference_logps": [REFERENCE[g, i].tolist() if reference else [] for g, i in rows],
    }
    for field in schema.SCORED:
        if field.name not in columns:
            blank = {pa.string(): "", pa.bool_(): False, pa.float32(): 0.0, pa.float64(): 0.0, pa.int32(): 0}
            columns[field.name] = [blank.get(field.type, [])] * len(rows)
    return pa.table(columns, schema=schema.SCORED)


def read(table, views=1):
    return batch_of(table, ADVANTAGES, EOS, views, torch.device("cpu"))


def in_two_chunks(table, _):
    return pa.concat_tables([table.slice(0, 4), table.slice(4)])


def cut_from_a_larger_one(table, _):
    return pa.concat_tables([table, table, table]).combine_chunks().slice(6, 6)


def through_parquet(table, folder):
    pq.write_table(table, folder / "rollouts.parquet")
    return pq.read_table(folder / "rollouts.parquet")


def through_ipc(table, _):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


@pytest.mark.parametrize(
    "way", [lambda table, _: table, in_two_chunks, cut_from_a_larger_one, through_parquet, through_ipc]
)
def test_a_batch_holds_the_tables_values_exactly(way, tmp_path):
    batch = read(way(a_table(), tmp_path))
    assert [group.group_id for group in batch.groups] == [40, 41]
    assert [group.prompt.tolist() for group in batch.groups] == PROMPTS
    for g, group in enumerate(batch.groups):
        assert (group.completions == COMPLETIONS[g]).all()
        assert (group.step_map == STEP_MAP[g]).all()
    assert (batch.old.numpy() == OLD[:, :, :, None]).all()
    assert (batch.reference.numpy() == REFERENCE[:, :, :, None]).all()
    assert batch.advantages.tolist() == ADVANTAGES.tolist()


def test_log_probabilities_are_stored_by_inner_update_and_view():
    batch = read(a_table(), views=2)
    assert batch.old.shape == (GROUPS, G, 1, 2, L)
    assert (batch.old.numpy() == OLD[:, :, None]).all()


def test_tokens_count_up_to_and_including_the_first_eos():
    groups = read(a_table()).groups
    assert groups[0].scored.tolist() == [[True] * 4, [True, True, False, False], [True] * 4]
    assert groups[1].scored[0].tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("completion", "scored"),
    [([5, 5, 5], [1, 1, 1]), ([5, 5, 0], [1, 1, 1]), ([0, 5, 0], [1, 0, 0]), ([5, 0, 0], [1, 1, 0])],
)
def test_up_to_first_eos(completion, scored):
    assert up_to_first_eos(np.array(completion), EOS).astype(int).tolist() == scored


def test_without_reference_log_probabilities_there_is_no_reference():
    assert read(a_table(reference=False)).reference is None


def test_writing_to_a_batch_leaves_the_table_alone():
    table = a_table()
    before = table.to_pylist()
    batch = read(table)
    for tensor in (batch.old, batch.reference, batch.advantages):
        tensor.zero_()
    for group in batch.groups:
        group.prompt[:] = group.completions[:] = group.step_map[:] = 0
    assert table.to_pylist() == before


def test_selecting_groups_keeps_their_rows_together_and_in_the_order_asked():
    batch = read(a_table())
    swapped = batch.select(np.array([1, 0]))
    assert swapped.groups == batch.groups[::-1]
    assert torch.equal(swapped.old, batch.old.flip(0))
    assert torch.equal(swapped.reference, batch.reference.flip(0))
    assert torch.equal(swapped.advantages, batch.advantages.flip(0))


def test_selecting_no_group_is_an_empty_batch():
    assert read(a_table()).select(np.array([], np.int64)).groups == ()


def test_a_table_that_ends_within_a_group_is_refused():
    with pytest.raises(ValueError, match="reshape"):
        read(a_table().slice(0, 5))
