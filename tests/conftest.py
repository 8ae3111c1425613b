"""What every test shares: a quiet, offline, single-threaded environment, and the real data sets.

The environment is set while this file is imported, before any test imports torch or ray. Ray's workers
inherit it.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
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

REPOSITORY = Path(__file__).parents[1]


def pytest_report_header() -> str:
    import d1ray

    return f"d1ray: {Path(d1ray.__path__[0]).parent}"


@pytest.hookimpl(tryfirst=True)  # before -m chooses by mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use Ray, and run the fast ones first: a stable sort puts the marked ones last."""
    for item in items:
        if uses_ray(item.path):
            item.add_marker(pytest.mark.ray)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TIMEOUT_S))
    items.sort(key=lambda item: item.get_closest_marker("ray") is not None)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the real data sets (gsm8k, math, math500, countdown, sudoku4x4), as Parquet."""
    default = REPOSITORY.parent / "shared" / "data"
    path = Path(os.environ.get("D1RAY_DATA", default))
    if not path.is_dir():
        pytest.skip(f"the real data sets are not in {path}; set D1RAY_DATA to their folder")
    return path


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder called "tiny" with a small LLaDA of random weights that writes characters."""
    import torch

    from d1ray.models import LLaDA, LLaDAConfig, character_tokenizer, initialise, save_model

    folder, tokenizer = tmp_path_factory.mktemp("served") / "tiny", character_tokenizer()
    config = LLaDAConfig(
        d_model=32,
        n_layers=2,
        n_heads=4,
        mlp_hidden_size=64,
        vocab_size=len(tokenizer),
        max_sequence_length=256,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model = initialise(LLaDA(config), 3).eval()
    with torch.no_grad():  # sharp enough that the prompt, and every token, tells in what it writes
        for name, weight in model.named_parameters():
            weight *= 20 if "wte" in name else 3 if "q_proj" in name or "attn_out" in name else 1
    save_model(model, folder, tokenizer)
    return folder


@pytest.fixture(scope="session")
def serving_clients() -> ModuleType:
    """The module ``tests/serving_clients.py``: clients that put a server under load."""
    spec = importlib.util.spec_from_file_location(
        "serving_clients", Path(__file__).with_name("serving_clients.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


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


# One Ray cluster for the whole session, and a check that none of its processes outlives it

SMALL = [
    "sft=null",
    "rl.prompts_per_step=4",
    "rl.group_size=4",
    "rl.mu=2",
    "rl.validate_every=1",
    "rl.checkpoint_every=1",
    "rl.keep_checkpoints=10",
    "evaluation.examples=16",
    "evaluation.validation_examples=8",
    "cluster.generator_cpus=0.25",
    "cluster.deadline_s=120",
]

TIMEOUT_S = 300
SESSION = "D1RAY_TEST_SESSION"  # marks every process that descends from this session, orphans included


def uses_ray(file: Path) -> bool:
    """Whether a test file is one of those that start Ray."""
    return file.parent.name in ("ray", "chaos", "deploy", "benchmarks")


@pytest.fixture(scope="session")
def no_process_left_behind() -> Iterator[None]:
    """Fails the session's last Ray test when a process started during the session outlives it.

    A test that starts its own cluster, or a `d1ray` command, asks for this fixture; `ray_cluster` does.
    """
    import psutil

    session = uuid.uuid4().hex
    os.environ[SESSION] = session
    yield
    _, alive = psutil.wait_procs(_processes_of(session), timeout=20)
    left = [f"{process.pid} {' '.join(process.cmdline())[:120]}" for process in alive]
    for process in alive:
        process.kill()
    assert not left, "still running 20 s after the last Ray test:\n" + "\n".join(left)


@pytest.fixture(scope="session")
def processes() -> Callable[..., list[Any]]:
    """``processes(title, pid)``: those below ``pid``, this process by default, whose title begins so.

    Ray gives its workers titles: ``ray::Generator`` when idle, ``ray::Generator.generate`` in a call.
    """
    import psutil

    def found(title: str, pid: int | None = None) -> list[psutil.Process]:
        titled = []
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):  # it has just ended
                if " ".join(process.cmdline()).startswith(title):
                    titled.append(process)
        return titled

    return found


@pytest.fixture(scope="session")
def ray_cluster(no_process_left_behind: None) -> Iterator[None]:
    """A four-CPU Ray, addressed over loopback; on a smaller machine the four share what there is."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=0,
        object_store_memory=512 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        _node_ip_address="127.0.0.1",
    )
    yield
    ray.shutdown()


class StartedCluster:
    """A cluster as its administrator makes one: by `ray start`, a process a node, and protected by the token.

    Each node has a loopback address of its own (Linux answers at all of 127/8), and each port is a free one,
    so that several clusters fit on a machine. ``close`` ends every process of it.

    Args:
        environment: beyond this process's, of the nodes and so of what runs on them.
    """

    def __init__(self, **environment: str):
        self.folder = Path(tempfile.mkdtemp(prefix="d1ray", dir="/tmp"))  # the names of sockets must be short
        self.nodes: list[subprocess.Popen[bytes]] = []
        ports = _free_ports(5)
        self.address = f"127.0.0.2:{ports[0]}"  # for ray.init and RAY_ADDRESS
        self.dashboard = f"http://127.0.0.1:{ports[1]}"
        self._head = [
            "--head",
            f"--port={ports[0]}",
            f"--dashboard-port={ports[1]}",
            f"--ray-client-server-port={ports[2]}",
        ]
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {  # of commands like `ray job submit`, too
            **inherited,
            "PATH": programs,
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            "AUTOSCALER_METRIC_PORT": str(ports[3]),
            "DASHBOARD_METRIC_PORT": str(ports[4]),
            **environment,
        }

    def start(self, *options: str) -> None:
        """Starts a node, the first one as the head, and waits until it is up."""
        number = len(self.nodes)
        folder = self.folder / str(number)
        folder.mkdir()
        where = [f"--node-ip-address=127.0.0.{2 + number}", f"--temp-dir={folder}"]
        small = ["--num-gpus=0", f"--object-store-memory={100 * 2**20}", "--dashboard-agent-listen-port=0"]
        role = [f"--address={self.address}"] if number else self._head
        command = ["ray", "start", "--block", *where, *small, *role, *options]
        with (folder / "said").open("wb") as said:
            node = subprocess.Popen(
                command, env=self.environment, stdout=said, stderr=said, stdin=subprocess.DEVNULL
            )
        self.nodes.append(node)
        end = time.monotonic() + 120
        while "Ray runtime started" not in (text := (folder / "said").read_text()):
            assert node.poll() is None and time.monotonic() < end, text
            time.sleep(0.1)

    def close(self) -> None:
        import psutil

        for node in reversed(self.nodes):
            if node.poll() is None:
                processes = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
                node.terminate()
                alive = psutil.wait_procs(processes, timeout=5)[1]  # nodes that an autoscaler has added stay
                for process in alive:
                    process.kill()
                psutil.wait_procs(alive, timeout=20)
        shutil.rmtree(self.folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


@pytest.fixture(scope="module")
def started_cluster(no_process_left_behind: None) -> Iterator[Callable[..., StartedCluster]]:
    """``started_cluster(NAME=VALUE)``: a cluster without nodes yet, which ends with the module's tests."""
    clusters: list[StartedCluster] = []

    def make(**environment: str) -> StartedCluster:
        clusters.append(StartedCluster(**environment))
        return clusters[-1]

    yield make
    for cluster in clusters:
        cluster.close()


@pytest.fixture(autouse=True, scope="module")
def workers_can_load_this_module(request: pytest.FixtureRequest) -> None:
    """Actors and functions defined in a test file travel by value: its module is on no worker's path."""
    if not uses_ray(request.path):
        return
    import ray

    module = request.module
    assert isinstance(module, ModuleType)
    ray.cloudpickle.register_pickle_by_value(module)


def _processes_of(session: str) -> list[Any]:
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get(SESSION) == session
            ours = ours and "multiprocessing.resource_tracker" not in " ".join(
                process.cmdline()
            )  # pytest's own
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
        if ours and process.pid != os.getpid():
            found.append(process)
    return found


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned the answer format but not the puzzles: its rewards vary within a group."""
    from d1ray.demonstrations import Demonstrations, Phase
    from d1ray.diffusion import MaskedDiffusionLoss
    from d1ray.masked_training import training_step
    from d1ray.models import load_model, load_tokenizer, save_model
    from d1ray.recipe import load_config
    from d1ray.recipe_model import make_model
    from d1ray.rl.optimizer import adamw

    folder = tmp_path_factory.mktemp("model") / "start"
    config = load_config("sudoku-tiny", ["model.make.d_model=64", "model.make.n_layers=2"])
    assert config.model.make is not None
    make_model(config.model.make, 0, folder)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    phase = Phase(
        "pretrain", 0, config.model.make.pretraining[0].model_copy(update={"steps": 80, "batch_size": 32})
    )
    loss, optimizer = MaskedDiffusionLoss(model), adamw(model, phase.config.optimizer)
    demonstrations = Demonstrations(config, phase, tokenizer, model.config.eos_token_id)
    for step in range(phase.config.steps):
        training_step(loss, model, optimizer, demonstrations, step)
    save_model(model, folder, tokenizer)
    return folder


@pytest.fixture(scope="session")
def small_run(start: Path) -> Callable[..., list[str]]:
    """Overrides of `sudoku-tiny` for a run of seconds from ``start``: ``small_run(run_dir, *overrides)``."""

    def overrides(run_dir: Path, *more: str) -> list[str]:
        return [f"model.path={start}", "model.make=null", f"run_dir={run_dir}", *SMALL, *more]

    return overrides


@pytest.fixture(scope="session")
def config_of(small_run: Callable[..., list[str]]) -> Callable[..., Any]:
    """``config_of(run_dir, *overrides)``: the config of a small run."""
    from d1ray.recipe import load_config

    return lambda run_dir, *overrides: load_config("sudoku-tiny", small_run(run_dir, *overrides))


@pytest.fixture(scope="session")
def reinforced() -> Callable[..., Any]:
    """``reinforced(config, interrupt)``: the weights of the newest checkpoint after the run's diffu-GRPO."""
    from d1ray import checkpoint
    from d1ray.evaluate import held_out_prompts
    from d1ray.models import load_tokenizer
    from d1ray.progress import Progress
    from d1ray.run_folder import RunFolder
    from d1ray.tasks.source import open_data
    from d1ray.train import reinforce

    def run(config: Any, interrupt: Callable[[], bool] = lambda: False) -> Any:
        with RunFolder.open(config.run_dir, config) as folder, Progress() as progress:
            data = open_data(config.task, None, config.seed)
            validation = held_out_prompts(
                load_tokenizer(config.model.path),
                data.examples("validation", config.evaluation.validation_examples),
                config.data.max_prompt_length,
            )
            reinforce(config, config.model.path, data, validation, folder, progress, interrupt)
            newest = checkpoint.latest(config.checkpoint_root("rl"))
            assert newest is not None
            return dict(checkpoint.read_model(newest))

    return run
