"""Where a model lies: a local folder, or a download from the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path

from d1ray.config.errors import ModelError
from d1ray.config.settings import HUB_ID

# Never code, never pickle. Text first: a tokenizer or a configuration needs no gigabytes of weights.
TEXT_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
ALL_FILES = (*TEXT_FILES, "*.safetensors")


ADAPTER_CONFIG = "adapter_config.json"


def is_adapter_folder(folder: Path) -> bool:
    """Whether the folder holds a PEFT adapter rather than a model."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def model_folder(source: Path | str, files: Sequence[str] = ALL_FILES) -> Path:
    """The local folder of a model.

    Args:
        source: a folder, or a hub id such as ``"GSAI-ML/LLaDA-8B-Instruct"``, which is downloaded
            into Hugging Face's cache unless it is there already. A folder of that name comes first.
        files: patterns of the files to download; only from the repository's top folder.

    Raises:
        ModelError: neither exists, or the hub cannot be reached.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"{source} is a file; give the model folder that holds it")
    if not HUB_ID.fullmatch(str(source)):
        raise ModelError(f"{source} is not there; give a model folder or a hub id such as org/name")
    from huggingface_hub import snapshot_download  # a model that is here needs none of it

    try:
        downloaded = snapshot_download(
            str(source), allow_patterns=list(files), ignore_patterns=["*/*"], library_name="d1ray"
        )
    except Exception as error:  # the client's own and its HTTP library's errors have no common base
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(
            f"{source} is not a folder here, and fetching it from the Hugging Face hub failed: {reason}. "
            "Check the name, the network (HF_HUB_OFFLINE) and, for a gated model, the token (HF_TOKEN)"
        ) from error
    return Path(downloaded)
