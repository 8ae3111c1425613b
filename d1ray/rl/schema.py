"""The one Arrow schema of a rollout: what generators return, scorers extend, learners read and
``rollouts/*.parquet`` stores. One row per completion; a group's rows are adjacent, in rollout order.

Shapes: P prompt, L completion, M inner updates, K views of each.
"""

import pyarrow as pa

_ids = pa.list_(pa.int32())
_floats = pa.list_(pa.float32())

GENERATED = pa.schema(
    [
        pa.field("group_id", pa.int64(), nullable=False),
        pa.field("rollout", pa.int32(), nullable=False),  # index within the group
        pa.field("incarnation", pa.int32(), nullable=False),  # of the learner whose policy sampled
        pa.field("policy_version", pa.int32(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("example", pa.string(), nullable=False),  # JSON: prompt text and the checker's fields
        pa.field("prompt_ids", _ids, nullable=False),  # [P]
        pa.field("completion_ids", _ids, nullable=False),  # [L]
        pa.field("step_map", _ids, nullable=False),  # [L] denoising step that committed the token, or -1
        pa.field("sampler_logps", _floats, nullable=False),  # [L]
        pa.field("old_logps", pa.list_(_floats), nullable=False),  # [M K, L], or [] if unused
        pa.field("reference_logps", pa.list_(_floats), nullable=False),  # [M K, L], or [] if unused
        pa.field("forwards", pa.int32(), nullable=False),  # denoising steps the row took
        pa.field("text", pa.string(), nullable=False),  # up to the first EOS
        pa.field("generator", pa.int32(), nullable=False),  # its place in the pool; -1 outside of one
        pa.field("started_generate", pa.float64(), nullable=False),  # Unix seconds, by the actor's clock
        # Seconds are those of the whole call, shared by its rows: it loads, generates, then takes log-probs.
        pa.field("seconds_load", pa.float32(), nullable=False),
        pa.field("seconds_generate", pa.float32(), nullable=False),
        pa.field("seconds_logprob", pa.float32(), nullable=False),
    ]
)
SCORED = pa.schema(
    [
        *GENERATED,
        pa.field("reward", pa.float32(), nullable=False),
        pa.field("components", pa.map_(pa.string(), pa.float32()), nullable=False),
        pa.field("correct", pa.bool_(), nullable=False),
        pa.field("partial", pa.float32(), nullable=False),
        pa.field("formatted", pa.bool_(), nullable=False),
        pa.field("parsed", pa.string()),  # the answer that was read; null if none
        pa.field("failure", pa.string(), nullable=False),  # of the check: "", "timeout" or "crash"
        pa.field("scorer", pa.int32(), nullable=False),  # its place in the pool; -1 outside of one
        pa.field("started_score", pa.float64(), nullable=False),  # Unix seconds, by the actor's clock
        pa.field("seconds_score", pa.float32(), nullable=False),
    ]
)
ROLLOUT = pa.schema([*SCORED, pa.field("advantage", pa.float32(), nullable=False)])
