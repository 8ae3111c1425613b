"""The folder of an evaluation: finished batches of completions, so that a killed one goes on where it was.

``evaluation.json`` says what is evaluated; ``batch-00000.parquet`` and so on hold the rollout tables
(``d1ray.rl.schema.SCORED``), each there whole or not at all.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from d1ray.config.errors import ConfigError
from d1ray.models.load import check_weights
from d1ray.rl.rollout import Prompt
from d1ray.rl.scoring import example_to_json
from d1ray.run.atomic import replacing, write_atomically

IDENTITY = "evaluation.json"


class EvaluationFolder:
    """Finished batches by their place.

    Args:
        path: the folder; made if need be.
        identity: JSON values that say what is evaluated; a folder holds one evaluation.

    Raises:
        ConfigError: the folder holds another evaluation; names what differs.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]):
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        file = path / IDENTITY
        wanted = json.loads(json.dumps(identity))
        if file.is_file():
            found = json.loads(file.read_text())
            other = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
            if other:
                raise ConfigError(
                    f"{path} holds an evaluation with another {', '.join(other)}; give another --output"
                )
        else:
            write_atomically(file, json.dumps(wanted, indent=2))

    def finished(self, batch: int) -> pa.Table | None:
        """The table of a batch that was finished before, or None."""
        file = self._file(batch)
        return pq.read_table(file) if file.is_file() else None

    def save(self, batch: int, table: pa.Table) -> None:
        """Keeps the table of a finished batch."""
        with replacing(self._file(batch)) as unfinished:
            pq.write_table(table, unfinished)

    def tables(self) -> list[pa.Table]:
        """All finished batches in their order."""
        return [pq.read_table(file) for file in sorted(self.path.glob("batch-*.parquet"))]

    def _file(self, batch: int) -> Path:
        return self.path / f"batch-{batch:05d}.parquet"


def digest_of_model(folder: Path) -> str:
    """Changes with the configuration and with the names, sizes and times of the weight files of a model."""
    files = sorted({*check_weights(folder).values(), *folder.glob("*.json"), *folder.glob("*.safetensors")})
    states = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()


def digest_of_prompts(prompts: Sequence[Prompt]) -> str:
    """Changes with any prompt's tokens, its example, or their order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps([prompt.group_id, prompt.ids, example_to_json(prompt.example)]).encode())
    return digest.hexdigest()
