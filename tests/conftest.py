"""What every test shares: a quiet, offline, single-threaded environment, and the real data sets.

The environment is set while this file is imported, before any test imports torch or ray. Ray's workers
inherit it.
"""

import os
import uuid
from pathlib import Path

import pytest

os.environ.update(
    RAY_AUTH_MODE="token",  # Ray listens on every interface; unset, it would keep a token in the home folder
    RAY_AUTH_TOKEN=uuid.uuid4().hex,
    RAY_USAGE_STATS_ENABLED="0",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",  # torch's thread count decides the order of its sums
    MKL_NUM_THREADS="1",
)

REPOSITORY = Path(__file__).parents[1]


def pytest_report_header() -> str:
    import d1ray

    return f"d1ray: {Path(d1ray.__path__[0]).parent}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the fast tests first: a stable sort puts those that use Ray last."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is not None)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the real data sets (gsm8k, math, math500, countdown, sudoku4x4), as Parquet."""
    default = REPOSITORY.parent / "shared" / "data"
    path = Path(os.environ.get("D1RAY_DATA", default))
    if not path.is_dir():
        pytest.skip(f"the real data sets are not in {path}; set D1RAY_DATA to their folder")
    return path
