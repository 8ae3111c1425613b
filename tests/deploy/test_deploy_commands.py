"""What manifests and scripts make run: commands that exist, on clusters that have room for them."""

import importlib
import importlib.util
import inspect
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray.scripts.scripts
import typer
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config

from actors.placement import kinds
from d1ray.cli import app
from d1ray.config.recipe import load_config
from d1ray.config.run import Config

REPOSITORY = Path(__file__).parents[2]
OVERLAYS = REPOSITORY / "deploy" / "kuberay" / "overlays"
RAY_UP = sorted((REPOSITORY / "deploy" / "ray-up").glob("*.yaml"))
SCRIPTS = [*(REPOSITORY / "docker").glob("*.sh"), REPOSITORY / "deploy" / "slurm" / "train.sbatch"]
TRAINING = ["cpu-demo", "gpu-8b", "gpu-8b-kueue", "gpu-8b-volcano"]

Objects = list[dict[str, Any]]
Kustomize = Callable[[Path], Objects]


# Command lines


def parsed(command: str) -> tuple[str, dict[str, Any]]:
    """The subcommand and its parameters, as the `d1ray` program itself reads them; nothing is run."""
    words = shlex.split(command)
    assert words.pop(0) == "d1ray"
    program = typer.main.get_command(app)
    context = program.make_context("d1ray", words)
    name, subcommand, rest = program.resolve_command(context, [*context._protected_args, *context.args])
    with subcommand.make_context(name, rest, parent=context) as inner:
        return name, dict(inner.params)


def config_of(command: str) -> Config:
    """The config of a `d1ray train` and the like; raises what is wrong with it."""
    _, parameters = parsed(command)
    return load_config(parameters["recipe"], parameters["overrides"] or [])


def commands_in(text: str) -> Iterator[str]:
    """Command lines that name a recipe: at the start of a line, after a comment sign, `--` or `&&`."""
    for match in re.finditer(
        r"(?:^|^# |^\$ |-- |&& |auto )[ ]*(d1ray (?:train|sft|doctor) [^'#\n]*)", text, re.M
    ):
        yield match[1].strip().removesuffix(" &")


DOCUMENTS = [
    *RAY_UP,
    *(REPOSITORY / "deploy").rglob("*.sbatch"),
    REPOSITORY / "docs" / "cluster.md",
    REPOSITORY / "README.md",
]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_commands_that_are_written_down_are_understood(path: Path) -> None:
    for command in commands_in(path.read_text()):
        if "$" not in command:  # a script's variables
            assert config_of(command.replace(" DIR", " dir"))


def test_commands_are_found_and_wrong_ones_fail() -> None:
    assert list(commands_in("# d1ray train a b=c\nsrun -- d1ray doctor x  # why\n  d1ray train y &\n")) == [
        "d1ray train a b=c",
        "d1ray doctor x",
        "d1ray train y",
    ]
    with pytest.raises(Exception, match="No such command"):
        parsed("d1ray trian sudoku-tiny")
    with pytest.raises(Exception, match="unknown key"):
        config_of("d1ray train sudoku-tiny cluster.generator_resource.generator=1")
    with pytest.raises(Exception, match="unknown recipe"):
        config_of("d1ray train llada-9b")


# Room for what runs, by the autoscaler that Ray brings


def node_types(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The kinds of nodes of a RayCluster's spec, as Ray's own autoscaler reads it."""
    resource = {"metadata": {"name": "d1ray", "namespace": "d1ray"}, "spec": cluster}
    types: dict[str, dict[str, Any]] = _derive_autoscaling_config_from_ray_cr(resource)[
        "available_node_types"
    ]
    return types


def room(types: dict[str, dict[str, Any]], bundle: dict[str, float], nodes: str) -> dict[str, int]:
    """How many actors of ``bundle`` each kind of node takes, with its "min_workers" or "max_workers"."""
    fits = {}
    for name, kind in types.items():
        each = min(kind["resources"].get(resource, 0) // amount for resource, amount in bundle.items())
        if each * kind[nodes]:
            fits[name] = int(each * kind[nodes])
    return fits


def faults(config: Config, types: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Pools without room, or not tied to one group of their own."""
    c = config.cluster
    most = {"generator": c.max_generators or c.generators}
    for kind in kinds(c, "rl", learner=True):
        fits, pool = room(types, kind.bundle, "max_workers"), kind.name.split()[0]
        if not {pool, f"{pool}s"} & set(fits) or len(fits) > 1:
            yield f"a {kind.name} ({kind.bundle}) belongs to {sorted(fits) or 'no group'}"
        elif sum(fits.values()) < most.get(pool, kind.count):
            yield f"no room for {most.get(pool, kind.count)} {pool}s: {fits}"
    for kind in kinds(c, "sft", learner=True) if config.sft else []:
        for resource, amount in kind.bundle.items():
            there = sum(own["resources"].get(resource, 0) * own["min_workers"] for own in types.values())
            if kind.count * amount > there:
                yield f"SFT does not ask the autoscaler, and {kind} is more than there is from the start"


def job_of(kustomize: Kustomize, name: str) -> dict[str, Any]:
    [job] = [item for item in kustomize(OVERLAYS / name) if item["kind"] == "RayJob"]
    spec: dict[str, Any] = job["spec"]
    return spec


@pytest.mark.parametrize("name", TRAINING)
def test_an_overlays_command_has_room_on_its_cluster(name: str, kustomize: Kustomize) -> None:
    job = job_of(kustomize, name)
    config, types = config_of(job["entrypoint"]), node_types(job["rayClusterSpec"])
    assert list(faults(config, types)) == []
    assert types["headgroup"]["resources"]["CPU"] == 0
    if not job["rayClusterSpec"]["enableInTreeAutoscaling"]:
        assert all(kind["min_workers"] == kind["max_workers"] for kind in types.values())


def test_too_little_room_and_untied_pools_are_found(kustomize: Kustomize) -> None:
    job = job_of(kustomize, "gpu-8b")
    types = node_types(job["rayClusterSpec"])
    for change, said in (
        ("cluster.max_generators=7", "no room for 7 generators"),
        ("cluster.learners=3", "no room for 3 learners"),
        ("cluster.generator_resources={}", "a generator .* belongs to .*generators', 'learner"),
        ("cluster.scorer_resources={scorers: 1}", "a scorer .* belongs to no group"),
        ("cluster.learner_gpus=3", "a learner .* belongs to no group"),
    ):
        changed = f"{job['entrypoint']} {shlex.quote(change)}"
        [fault] = faults(config_of(changed), types)
        assert re.match(said, fault), fault


@pytest.mark.parametrize("name", sorted(path.name for path in OVERLAYS.iterdir()))
def test_the_shell_kuberay_and_the_autoscaler_read_the_same_resources(
    name: str, kustomize: Kustomize
) -> None:
    """KubeRay writes `ray start --KEY=VALUE ...` for a shell, and strips quotes itself to add GPUs."""
    for item in kustomize(OVERLAYS / name):
        spec = item.get("spec", {})
        cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
        if "headGroupSpec" not in cluster:
            continue
        types = node_types(cluster)
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            arguments = " ".join(f"--{key}={value}" for key, value in group["rayStartParams"].items())
            words = subprocess.run(
                ["bash", "-c", f"printf '%s\\n' {arguments}"], capture_output=True, text=True, check=True
            ).stdout.splitlines()
            read = ray.scripts.scripts.start.make_context("start", words).params
            resources = types[group.get("groupName", "headgroup")]["resources"]
            custom = {k: v for k, v in resources.items() if k not in ("CPU", "GPU", "memory")}
            assert json.loads(read["resources"]) == custom
            if custom:
                assert json.loads(group["rayStartParams"]["resources"].strip("'\"` ")) == custom
            assert read["num_gpus"] == resources.get("GPU")


def test_the_served_application_exists_and_has_room(kustomize: Kustomize) -> None:
    [service] = [i["spec"] for i in kustomize(OVERLAYS / "gpu-serve") if i["kind"] == "RayService"]
    [application] = yaml.safe_load(service["serveConfigV2"])["applications"]
    module, _, name = application["import_path"].partition(":")
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"there is no {module}")
    build = getattr(importlib.import_module(module), name)
    [settings] = inspect.signature(build).parameters.values()
    replicas = settings.annotation.model_validate(application["args"]).replicas
    fits = room(
        node_types(service["rayClusterConfig"]), {"CPU": replicas.cpus, "GPU": replicas.gpus}, "max_workers"
    )
    assert fits == {"replicas": replicas.max}


# Clusters by ssh, and scripts


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_a_cluster_of_ray_up_is_valid_and_asks_for_a_token(path: Path) -> None:
    config = prepare_config(yaml.safe_load(path.read_text()))
    validate_config(config)
    [head] = [c for c in config["head_start_ray_commands"] if "ray start" in c]
    [worker] = [c for c in config["worker_start_ray_commands"] if "ray start" in c]
    assert "RAY_AUTH_MODE=token" in head and "RAY_AUTH_MODE=token" in worker
    assert "--dashboard-host=127.0.0.1" in head
    assert "~/.ray/auth_token" in config["file_mounts"]


def test_a_typo_in_a_cluster_of_ray_up_is_found() -> None:
    config = yaml.safe_load(RAY_UP[0].read_text())
    with pytest.raises(Exception, match="head_start_commands"):
        validate_config(prepare_config({**config, "head_start_commands": []}))


def test_the_run_written_in_aws_has_room_there() -> None:
    text = (REPOSITORY / "deploy" / "ray-up" / "aws.yaml").read_text()
    [command] = commands_in(text)
    types = prepare_config(yaml.safe_load(text))["available_node_types"]
    types["head"] |= {"min_workers": 1, "max_workers": 1}
    types["scorers"] = types.pop("head")
    assert list(faults(config_of(command), types)) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_passes_shellcheck(path: Path, program: Callable[[str], Path]) -> None:
    done = subprocess.run([program("shellcheck"), "-s", "bash", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
