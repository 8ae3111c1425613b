"""Writing a checkpoint: each rank copies its share of the tensors, then writes it beside what comes next.

Shares are of whole tensors, dealt out by size. Of sharded weights they are gathered one by one: no rank holds
more than its share and one tensor, and what is written does not depend on how weights were spread.
"""

import json
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from d1ray.config.errors import RunFailed
from d1ray.models.adapter_folder import PREFIX, save_adapter_config
from d1ray.models.exchange import told_by_all
from d1ray.models.load import INDEX
from d1ray.models.lora import adapter_tensors, has_lora
from d1ray.models.model import DiffusionLM
from d1ray.models.save import save_config
from d1ray.models.sharding import ranks, whole
from d1ray.models.tokenizer import save_tokenizer
from d1ray.run.atomic import sync, write_atomically
from d1ray.run.checkpoint import ADAPTER, MODEL, Place, digest, folder_of, prune, remove
from d1ray.run.claims import Claim, check


class CheckpointWriter:
    """A checkpoint under way. Every rank makes one, and calls ``finish``, in step with the others.

    Args:
        root: where checkpoints lie; this one becomes ``root/step-<step>``. What is left there of an earlier
            try is removed.
        model: with an adapter, of it only the adapter is written.
        tensors: further groups of tensors, e.g. ``{"optimizer": {...}}``; sharded where they are.
        state: JSON values: step, data position, incarnation, best validation.
        keep: so many checkpoints are left in the end.
        best: a step whose checkpoint is left as well.
        base: the folder of the model that an adapted ``model`` adapts.
        claims: what allows to write there. They are checked before anything is removed, and before each file
            that counts: what a writer of the last owner leaves never becomes a checkpoint.

    Raises:
        LeaseLost: a claim is no longer in force.

    Once it returns, model and tensors may change.
    """

    def __init__(  # noqa: PLR0913 - each is a part of what is saved, or of where
        self,
        root: Place,
        step: int,
        model: DiffusionLM,
        tokenizer: PreTrainedTokenizerBase,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        keep: int,
        best: int | None = None,
        base: Path | None = None,
        claims: Sequence[Claim] = (),
    ):
        self.root, self.step, self.keep, self.best = root, step, keep, best
        self.folder = folder_of(root, step)
        self.model, self.tokenizer, self.state, self.base = model, tokenizer, dict(state), base
        self.claims = claims
        check(claims)
        self.world, self.rank = ranks()
        if self.rank == 0:
            remove(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
        if self.world > 1:
            dist.barrier()
        adapted = has_lora(model)
        trained = adapter_tensors(model) if adapted else model.state_dict()
        prefix = PREFIX if adapted else ""
        self.weight_files: dict[str, str] = {}  # of a model in several files
        self.files = self._share(
            ADAPTER if adapted else MODEL,
            {prefix + name: tensor for name, tensor in trained.items()},
            1 if adapted else self.world,  # PEFT reads a single file
        )
        for group, members in tensors.items():
            self.files |= self._share(group, members, self.world)
        self.error = ""
        self.thread = threading.Thread(target=self._write, name=f"checkpoint {step}")
        self.thread.start()

    def finish(self) -> Place:
        """Waits until all ranks have written, and removes the checkpoints that are no longer kept.

        Raises:
            LeaseLost: a claim is no longer in force.
            RunFailed: a rank could not write; those before are left as they are.
        """
        self.thread.join()
        errors = told_by_all(self.error)
        check(self.claims)
        if any(errors):
            said = next(filter(None, errors))
            raise RunFailed(f"the checkpoint {self.folder} cannot be written: {said}; make room there")
        if self.rank == 0:
            prune(self.root, self.step, self.keep, self.best)
        return self.folder

    def _share(self, group: str, tensors: Mapping[str, Tensor], parts: int) -> dict[str, dict[str, Tensor]]:
        """This rank's file of a group, by name: copies of the tensors that are dealt to it."""
        names = dealt(tensors, parts)
        files = [f"{group}.safetensors"]
        if parts > 1:
            files = [f"{group}-{part + 1:05d}-of-{parts:05d}.safetensors" for part in range(parts)]
        if group == MODEL and parts > 1:
            own = {name: Path(file).name for file, mine in zip(files, names, strict=True) for name in mine}
            self.weight_files = own
        held = names[self.rank] if self.rank < parts else []
        copies = {}
        for name, tensor in tensors.items():
            full = whole(tensor.detach())  # on all ranks together
            if name in held:
                copies[name] = full.to("cpu", copy=True).contiguous()
        return {files[self.rank]: copies} if copies else {}

    def _write(self) -> None:
        """This rank's files, and its manifest last."""
        try:
            if isinstance(self.folder, Path):
                self._write_to(self.folder)
                return
            with tempfile.TemporaryDirectory(prefix="d1ray-") as place:
                for file in self._write_to(Path(place)):
                    target = self.folder / str(file.relative_to(place))
                    check(self.claims)
                    target.fs.put_file(str(file), target.path)
        except Exception as error:  # for whoever calls finish
            self.error = f"{type(error).__name__}: {error}"
        finally:
            self.files.clear()

    def _write_to(self, folder: Path) -> list[Path]:
        check(self.claims)
        (folder / "model").mkdir(exist_ok=True)
        written = []
        for name, tensors in self.files.items():
            file = folder / name
            file.touch()
            mode = file.stat().st_mode  # safetensors would keep others from reading it
            save_file(tensors, file, metadata={"format": "pt"})
            file.chmod(mode)
            written.append(file)
        if self.rank == 0:
            written += self._write_descriptions(folder)
        for path in (*written, folder / "model"):
            sync(path)
        manifest = folder / f"manifest-{self.rank + 1:05d}-of-{self.world:05d}.json"
        text = json.dumps({str(file.relative_to(folder)): digest(file) for file in written}, indent=2)
        check(self.claims)
        write_atomically(manifest, text)
        return [*written, manifest]

    def _write_descriptions(self, folder: Path) -> list[Path]:
        """What is not tensors: the model's configuration, tokenizer and index, and the state."""
        with tempfile.TemporaryDirectory(prefix="d1ray-") as place:
            own = Path(place)
            if has_lora(self.model):
                save_adapter_config(self.model, own, str(self.base or ""))
            else:
                save_config(self.model, own)
            save_tokenizer(self.tokenizer, own)
            if self.weight_files:
                index = {"metadata": {}, "weight_map": self.weight_files}
                (own / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
            described = [Path(shutil.copy(file, folder / "model" / file.name)) for file in own.iterdir()]
        state = folder / "state.json"
        state.write_text(json.dumps(self.state, indent=2))
        return [*described, state]


def save(  # noqa: PLR0913 - as of the writer
    root: Place,
    step: int,
    model: DiffusionLM,
    tokenizer: PreTrainedTokenizerBase,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int,
    base: Path | None = None,
    claims: Sequence[Claim] = (),
) -> Place:
    """Writes a checkpoint and waits for it; every rank calls it. Arguments as of ``CheckpointWriter``."""
    return CheckpointWriter(root, step, model, tokenizer, tensors, state, keep, None, base, claims).finish()


def dealt(tensors: Mapping[str, Tensor], parts: int) -> list[list[str]]:
    """Names for each of ``parts``: one after the other to whoever has the fewest bytes so far."""
    names: list[list[str]] = [[] for _ in range(parts)]
    sizes = [0] * parts
    for name, tensor in tensors.items():
        least = sizes.index(min(sizes))
        names[least].append(name)
        sizes[least] += tensor.numel() * tensor.element_size()  # of the whole, where it is sharded
    return names
