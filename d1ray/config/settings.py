"""What every settings model shares: strictness, and the types of numbers and paths."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# Whole numbers are strict: YAML reads `yes` as true, which pydantic would take for 1. Real numbers are not:
# YAML reads 1e-4 as a string.
PositiveInt = Annotated[int, Field(strict=True, gt=0)]
NonNegativeInt = Annotated[int, Field(strict=True, ge=0)]
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # of a model or a data set on the Hugging Face hub


def local_or_hub(path: Path) -> Path:
    """An absolute path, unless nothing is there and the name is one of the hub's: ``org/name``."""
    return path if not path.exists() and HUB_ID.fullmatch(str(path)) else path.absolute()


AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]  # Ray Train changes the working directory
LocalOrHub = Annotated[Path, AfterValidator(local_or_hub)]
Probability = Annotated[float, Field(ge=0, le=1)]
MomentumDecay = Annotated[float, Field(ge=0, lt=1)]


class Strict(BaseModel):
    """A frozen group of settings: an unknown key, a wrong type or a number that is not finite is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Named(Strict):
    """One of several kinds and its options: what ``name`` names (``d1ray.config.registry``)."""

    name: str
