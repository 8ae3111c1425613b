"""`d1ray export`: a checkpoint or run as a Hugging Face folder, merged or as a PEFT adapter. Needs no Ray."""

import json
import os
import shutil
from pathlib import Path
from typing import Literal

import torch

from d1ray.config.errors import ModelError
from d1ray.evaluation.config import model_folder
from d1ray.models.hub import is_adapter_folder
from d1ray.models.load import check_weights, load_model
from d1ray.models.save import save_model
from d1ray.models.tokenizer import load_tokenizer

Form = Literal["merged", "peft"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def export(
    source: Path, target: Path, form: Form = "merged", dtype: str | None = None, base: str | None = None
) -> Path:
    """Writes the model of ``source`` to the new folder ``target``, which appears only once it is complete.

    Args:
        source: a checkpoint, run folder, model folder or PEFT folder.
        form: "merged" for a whole model by the original parameter names, an adapter merged into it; "peft"
            for the adapter alone.
        dtype: of merged weights: "fp32", "bf16" or "fp16"; None for the one they are stored in (fp32 for an
            adapter's model, so that the merge is exact).
        base: what "peft" names as the adapted model, e.g. a hub id; None leaves what the checkpoint names.

    Returns:
        The model folder that was exported.

    Raises:
        ModelError: the source is damaged or no model, ``target`` is there already, or there is no adapter.
    """
    folder = model_folder(source)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"{target} is there already; give a new folder, or remove it first")
    adapter = is_adapter_folder(folder)
    if form == "peft" and not adapter:
        raise ModelError(f"{folder} is a whole model, not an adapter: export it with --format merged")
    if (form == "peft" and dtype is not None) or (form == "merged" and base is not None):
        raise ModelError("--dtype belongs to --format merged, --base to --format peft")
    writing = target.absolute().with_name(f".{target.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    if form == "peft":
        check_weights(folder)
        shutil.copytree(folder, writing)
        if base is not None:
            file = writing / "adapter_config.json"
            file.write_text(
                json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}, indent=2)
            )
    else:
        model = load_model(folder, torch.float32 if adapter else DTYPES.get(dtype or ""))
        save_model(model.to(DTYPES[dtype]) if dtype else model, writing, load_tokenizer(folder))
        check_weights(writing)
    os.replace(writing, target)
    return folder
