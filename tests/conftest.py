"""What every test shares: a quiet, offline, single-threaded environment, and the real data sets.

The environment is set while this file is imported, before any test imports torch or ray. Ray's workers
inherit it.
"""

import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

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

pytest_plugins = ["browsers", "tiny_models", "clusters", "small_runs"]  # in tests/plugins

TESTS = Path(__file__).parent
RAY_TIMEOUT_S = 300


def pytest_report_header() -> str:
    import d1ray

    return f"d1ray: {Path(d1ray.__path__[0]).parent}"


@pytest.hookimpl(tryfirst=True)  # before -m chooses by mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use Ray, and run the fast ones first: a stable sort puts the marked ones last, of
    these the files that may take longest first, so that no process is left with one at the end."""
    for item in items:
        if uses_ray(item.path):
            item.add_marker(pytest.mark.ray)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(RAY_TIMEOUT_S))
    limits: dict[Path, float] = {}
    for item in items:
        limit = item.get_closest_marker("timeout") if item.get_closest_marker("ray") else None
        limits[item.path] = limits.get(item.path, 0.0) + (limit.args[0] if limit else 0.0)
    items.sort(key=lambda item: (item.get_closest_marker("ray") is not None, -limits[item.path]))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the real data sets (gsm8k, math, math500, countdown, sudoku4x4), as Parquet."""
    default = TESTS.parents[1] / "shared" / "data"
    path = Path(os.environ.get("D1RAY_DATA", default))
    if not path.is_dir():
        pytest.skip(f"the real data sets are not in {path}; set D1RAY_DATA to their folder")
    return path


@pytest.fixture(scope="session")
def program() -> Callable[[str], Path]:
    """``program(name)``: a tool that a wheel of the dev extra brings, such as kubectl."""
    return lambda name: Path(sys.executable).with_name(name)


@pytest.fixture(scope="session")
def kustomize(program: Callable[[str], Path]) -> Callable[[Path], list[dict[str, Any]]]:
    """``kustomize(folder)``: the Kubernetes objects that `kubectl apply -k folder` would send."""
    import yaml

    def build(folder: Path) -> list[dict[str, Any]]:
        command = [program("kubectl"), "kustomize", folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return list(yaml.safe_load_all(done.stdout))

    return build


def uses_ray(file: Path) -> bool:
    """Whether a test file is one of those that start Ray."""
    return not {TESTS / "ray", TESTS / "benchmarks"}.isdisjoint(file.parents)


@pytest.fixture(autouse=True, scope="module")
def workers_can_load_this_module(request: pytest.FixtureRequest) -> None:
    """Actors and functions defined in a test file travel by value: its module is on no worker's path."""
    if not uses_ray(request.path):
        return
    import ray

    module = request.module
    assert isinstance(module, ModuleType)
    ray.cloudpickle.register_pickle_by_value(module)
