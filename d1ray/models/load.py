"""Loading a model folder: strictly by name and shape, tensor by tensor, safetensors only."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate.utils import set_module_tensor_to_device  # type: ignore[import-untyped]
from safetensors import SafetensorError, safe_open

from d1ray.config.errors import ModelError
from d1ray.config.lora import LoRAConfig
from d1ray.models.adapter_folder import base_folder, check_adapter, load_adapter
from d1ray.models.architectures import Architecture, config_values, configuration
from d1ray.models.empty import empty_weights
from d1ray.models.hub import TEXT_FILES, is_adapter_folder, model_folder
from d1ray.models.lora import targeted, unadapted
from d1ray.models.model import DiffusionLM

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
STORED_TYPES = ("F64", "F32", "F16", "BF16")
LISTED = 8


def load_model(
    source: Path | str, dtype: torch.dtype | None = torch.float32, device: torch.device | str = "cpu"
) -> DiffusionLM:
    """Loads a model in eval mode. Peak memory is the model's plus one weights file at most.

    Args:
        source: a folder or a hub id; or a PEFT adapter's, which is merged into the model it names.
            Remote code is never run.
        dtype: of the parameters; None for the type ``config.json`` names (fp32 if it names none).
        device: where the parameters go, each as soon as it is read.

    Raises:
        ModelError: as ``check_weights``, or a weight is not finite.
    """
    folder = model_folder(source)
    if is_adapter_folder(folder):
        adapted = load_adapter(load_model(base_folder(folder), dtype, device), folder)
        return unadapted(adapted).requires_grad_(True)
    architecture, model = _empty_model(folder)
    files = _check(folder, model, architecture)
    dtype = dtype or _stated_dtype(folder)
    for file in sorted(set(files.values())):
        with safe_open(file, framework="pt") as reader:
            for name in (name for name, place in files.items() if place == file):
                stored = reader.get_tensor(name)
                if not all(extreme.isfinite() for extreme in stored.aminmax()):  # NaN may give finite logits
                    raise ModelError(
                        f"{file}: {name} holds NaN or infinite values; use an earlier checkpoint"
                    )
                # A copy, even of the same type: the reader's tensors are the file, mapped into memory.
                tensor = stored.to(device, dtype, copy=True)
                set_module_tensor_to_device(model, name, device, tensor, dtype=dtype, clear_cache=False)
    return model.eval()


def check_weights(source: Path | str) -> dict[str, Path]:
    """Compares the tensors of a model with its ``config.json``, reading the files' headers only.

    Returns:
        The file that holds each tensor, by name.

    Raises:
        ModelError: no readable ``config.json`` or unsupported architecture; no weights, or only
            pickled ones; files that are missing or damaged; missing, unexpected or wrongly shaped
            tensors (listed). Of a PEFT adapter, what is wrong with its own files or its model's, or how
            the adapter does not fit the model.
    """
    folder = model_folder(source)
    if is_adapter_folder(folder):
        base = base_folder(folder)
        check_adapter(_empty_model(base)[1], folder)
        return check_weights(base)
    architecture, model = _empty_model(folder)
    return _check(folder, model, architecture)


def check_lora(source: DiffusionLM | Path | str, config: LoRAConfig) -> None:
    """Checks that a model has the projections an adapter is to be added to; reads no weights.

    Args:
        source: a folder or hub id (of a PEFT adapter, the model it names counts), or a model, which may
            be on the meta device.
        config: as for ``add_lora``.

    Raises:
        ModelError: a projection is not there (those that are, are listed); or as ``read_config``.
    """
    targeted(source if isinstance(source, DiffusionLM) else empty_model(source), config)


def empty_model(source: Path | str) -> DiffusionLM:
    """The model of a folder or hub id on the meta device; of a PEFT adapter, the model it names.

    Raises:
        ModelError: as ``read_config``.
    """
    folder = model_folder(source, TEXT_FILES)
    return _empty_model(base_folder(folder, TEXT_FILES) if is_adapter_folder(folder) else folder)[1]


def _empty_model(folder: Path) -> tuple[Architecture, DiffusionLM]:
    """The architecture and model of a folder's ``config.json``, on the meta device."""
    architecture, config = configuration(folder)
    with empty_weights():
        return architecture, architecture.build(config)


def _check(folder: Path, model: DiffusionLM, architecture: Architecture) -> dict[str, Path]:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="pt") as reader:
                for name in reader.keys():  # noqa: SIM118 - safe_open is not a mapping
                    entry = reader.get_slice(name)
                    if entry.get_dtype() not in STORED_TYPES:
                        raise ModelError(
                            f"{file}: {name} is stored as {entry.get_dtype()}; "
                            f"supported: {', '.join(STORED_TYPES)}"
                        )
                    found[name] = file, tuple(entry.get_shape())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} cannot be read: {error}; copy it again") from error
    if model.config.tied and architecture.head in found:
        _drop_tied_head(folder, architecture, found)
    problems = {
        "missing": sorted(expected.keys() - found),
        "unexpected": sorted(found.keys() - expected),
        "of another shape": [
            f"{name} {list(found[name][1])} instead of {list(expected[name])}"
            for name in sorted(expected.keys() & found)
            if found[name][1] != expected[name]
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {_listing(names)}" for kind, names in problems.items() if names)
        raise ModelError(f"{folder}: the weights do not fit config.json; {listed}")
    return {name: file for name, (file, _) in found.items()}


def _weight_files(folder: Path) -> list[Path]:
    """The single file, or the files that the index names, or every safetensors file."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            files = [folder / Path(name).name for name in names]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index} is not an index of safetensors files; copy it again") from error
        absent = [file.name for file in files if not file.is_file()]
        if absent or not files:
            raise ModelError(f"{index} names files that are not there: {_listing(absent)}; copy them again")
        return files
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted({file.name for pattern in PICKLES for file in folder.glob(pattern)})
        if pickles:
            raise ModelError(
                f"{folder} holds only pickled weights ({_listing(pickles)}), and reading a pickle can run "
                "any code; get the model as safetensors, or convert it where running code does no harm"
            )
        raise ModelError(f"{folder} holds no *.safetensors weights")
    return files


def _drop_tied_head(
    folder: Path, architecture: Architecture, found: dict[str, tuple[Path, tuple[int, ...]]]
) -> None:
    """Leaves out a stored head that repeats the embedding; some tools write tied weights twice."""
    tensors = []
    for name in (architecture.embedding, architecture.head):
        if name in found:
            with safe_open(found[name][0], framework="pt") as reader:
                tensors.append(reader.get_tensor(name))
    if not (len(tensors) == 2 and torch.equal(*tensors)):
        raise ModelError(
            f"{folder}: config.json ties the head to the embedding, but the weights hold a different "
            f"{architecture.head}"
        )
    del found[architecture.head]


def _stated_dtype(folder: Path) -> torch.dtype:
    values = config_values(folder)
    name = values.get("torch_dtype") or values.get("dtype") or "float32"
    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ModelError(f"{folder / 'config.json'}: torch_dtype is {name!r}; expected a floating-point type")
    return dtype


def _listing(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
