"""`d1ray doctor`: whether a cluster can run a recipe, and what it would take; before any GPU is paid for."""

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.table import Table
from rich.text import Text

from actors.placement import connected, unmet
from actors.probe import Probe
from d1ray.config.errors import UserError
from d1ray.config.run import Config
from d1ray.programs.estimates import Estimate, estimate

PROBE_S = 60  # longest wait for a node's answer
STYLES = {"ok": "green", "warning": "yellow", "failed": "red"}


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    outcome: Literal["ok", "warning", "failed"]
    said: str


def examine(config: Config) -> list[Finding]:
    """Runs every check; one that cannot be made says so and fails."""
    findings: list[Finding] = []
    needs: Estimate | None = None
    try:
        needs = estimate(config) if config.rl else None
    except UserError as error:
        findings.append(Finding("model", "failed", str(error)))
    with connected(config.cluster):
        nodes = [node for node in ray.nodes() if node["Alive"]]
        probes = {node["NodeID"]: _probe(node) for node in nodes}
        checks: list[Callable[[], Iterator[Finding]]] = [
            lambda: _authentication(),
            lambda: _placement(config),
            lambda: _nodes(config, probes),
            lambda: _storage(config, nodes, probes),
            lambda: _checks(nodes, probes),
            lambda: _ports(nodes, probes),
            lambda: _object_store(nodes, needs),
            lambda: _memory(config, needs),
        ]
        try:
            for check in checks:
                try:
                    findings += check()
                except (ray.exceptions.RayError, TimeoutError) as error:
                    said = str(error).strip().splitlines()[0]
                    findings.append(Finding("cluster", "failed", f"a node does not answer: {said}"))
        finally:
            for probe in probes.values():
                ray.kill(probe)
    return findings


def as_table(findings: list[Finding]) -> Table:
    """The findings, worst last."""
    table = Table(box=None, pad_edge=False)
    for heading in ("Check", "", "Found"):
        table.add_column(heading, overflow="fold")
    for finding in sorted(findings, key=lambda finding: list(STYLES).index(finding.outcome)):
        outcome = Text(finding.outcome, style=STYLES[finding.outcome])
        table.add_row(finding.check, outcome, Text(finding.said))
    return table


def _probe(node: dict[str, Any]) -> Any:
    place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(Probe).options(num_cpus=0, scheduling_strategy=place).remote()


def _authentication() -> Iterator[Finding]:
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if mode == "token":
        yield Finding("authentication", "ok", "RAY_AUTH_MODE=token")
    else:
        yield Finding(
            "authentication",
            "warning",
            f"RAY_AUTH_MODE={mode or 'unset'}: whoever reaches the dashboard or the GCS runs code; set "
            f"RAY_AUTH_MODE=token on every node",
        )


def _placement(config: Config) -> Iterator[Finding]:
    missing = unmet(config, learner=config.rl is not None)
    for line in missing:
        yield Finding("resources", "failed", line)
    if not missing:
        c, free, whole = config.cluster, ray.available_resources(), ray.cluster_resources()
        named = [name for name in ("CPU", "GPU") if name in whole]
        now = ", ".join(f"{free.get(name, 0):g} of {whole[name]:g} {name}" for name in named)
        yield Finding(
            "resources",
            "ok",
            f"room for {c.generators} generators, {c.scorers} scorers and {c.learners} learner ranks at "
            f"once; free now: {now}",
        )


def _nodes(config: Config, probes: dict[str, Any]) -> Iterator[Finding]:
    assert config.run_dir is not None
    facts = ray.get([probe.facts.remote(config.run_dir) for probe in probes.values()], timeout=PROBE_S)
    for name in facts[0]["versions"]:
        found = {fact["versions"][name] for fact in facts}
        if len(found) > 1:
            where = ", ".join(f"{fact['host']} {fact['versions'][name]}" for fact in facts)
            yield Finding("versions", "failed", f"{name} differs between nodes: {where}")
        elif "missing" in found:
            yield Finding("versions", "failed", f"{name} is not installed")
    if len({str(fact["versions"]) for fact in facts}) == 1:
        versions = ", ".join(f"{name} {version}" for name, version in facts[0]["versions"].items())
        yield Finding("versions", "ok", f"{len(facts)} node(s), all with {versions}")
    for fact in facts:
        gpus = ", ".join(f"{size / 2**30:.0f} GiB" for size in fact["gpu_memory"]) or "none"
        yield Finding(
            "node",
            "ok",
            f"{fact['host']}: GPUs {gpus}; /dev/shm {fact['shm'] / 2**30:.1f} GiB; "
            f"{fact['disk'] / 2**30:.0f} GiB free for the run folder",
        )


def _storage(config: Config, nodes: list[dict[str, Any]], probes: dict[str, Any]) -> Iterator[Finding]:
    """Whether all nodes see one run folder and can write to it; where only scorers are placed, read it."""
    assert config.run_dir is not None
    folder, said = config.run_dir.parent, uuid.uuid4().hex
    name = f".d1ray-doctor-{said}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(said)
    except OSError as error:
        yield Finding("storage", "failed", f"{folder} cannot be written: {error}; set run_dir=DIR")
        return
    reading = {node["NodeID"] for node in nodes if _only_scores(config, node)}
    try:
        answers = ray.get(
            [probe.sees.remote(folder, name, said, node not in reading) for node, probe in probes.items()],
            timeout=PROBE_S,
        )
    finally:
        for file in folder.glob(f"{name}*"):
            file.unlink(missing_ok=True)
    for wrong in filter(None, answers):
        yield Finding("storage", "failed", f"{wrong}; put run_dir on storage that every node shares")
    if not any(answers):
        yield Finding("storage", "ok", f"{len(probes) - len(reading)} node(s) read and write {folder}")


def _only_scores(config: Config, node: dict[str, Any]) -> bool:
    scorer, learner = config.cluster.scorer_resources, config.cluster.learner_resources
    has = node["Resources"].keys()
    return bool(scorer) and scorer.keys() <= has and bool(learner) and not learner.keys() <= has


def _checks(nodes: list[dict[str, Any]], probes: dict[str, Any]) -> Iterator[Finding]:
    """Whether the processes that check completions are confined."""
    said = ray.get([probes[node["NodeID"]].unconfined.remote() for node in nodes], timeout=PROBE_S)
    for sentence in sorted(set(filter(None, said))):
        where = ", ".join(n["NodeManagerHostname"] for n, s in zip(nodes, said, strict=True) if s == sentence)
        yield Finding("checks", "warning", f"not fully confined on {where}: {sentence} (docs/security.md)")
    if not any(said):
        yield Finding("checks", "ok", f"{len(nodes)} node(s) keep checks from files, network and programs")


def _ports(nodes: list[dict[str, Any]], probes: dict[str, Any]) -> Iterator[Finding]:
    """Whether ranks on any node could meet at a free port of any other."""
    failures = 0
    for node in nodes:
        host = node["NodeManagerAddress"]
        for other in nodes:
            if other["NodeID"] == node["NodeID"]:
                continue
            port = ray.get(probes[node["NodeID"]].listen.remote(host), timeout=PROBE_S)
            wrong = ray.get(probes[other["NodeID"]].reaches.remote(host, port), timeout=PROBE_S)
            if wrong:
                failures += 1
                yield Finding(
                    "network", "failed", f"{other['NodeManagerAddress']} cannot reach {host}:{port}: {wrong}"
                )
    if not failures:
        yield Finding("network", "ok", f"{len(nodes)} node(s) reach each other at free ports")


def _object_store(nodes: list[dict[str, Any]], needs: Estimate | None) -> Iterator[Finding]:
    if needs is None:
        return
    smallest = min(int(node["Resources"].get("object_store_memory", 0)) for node in nodes)
    said = (
        f"weights and rollouts take up to {needs.stored / 2**30:.2f} GiB on a node; the smallest store has "
        f"{smallest / 2**30:.2f} GiB"
    )
    if needs.stored > smallest:
        yield Finding(
            "object store", "warning", f"{said}: it will spill to disk; raise --object-store-memory"
        )
    else:
        yield Finding("object store", "ok", said)


def _memory(config: Config, needs: Estimate | None) -> Iterator[Finding]:
    if needs is None:
        return
    note = ""
    if needs.offloaded:
        note = f", {needs.offloaded / 2**30:.1f} GiB of it in CPU memory"
    if config.cluster.colocated:
        most = max(needs.generator, needs.learner - needs.offloaded) / 2**30
        note += f" (they take turns on a GPU, which needs {most:.1f} GiB)"
    shares = ", ".join(f"{name} {share:.0%}" for name, share in needs.shares.items())
    yield Finding(
        "estimate",
        "ok",
        f"{needs.parameters / 1e9:.2f}B parameters, {needs.trained / 1e6:.1f}M trained; memory of a "
        f"generator {needs.generator / 2**30:.1f} GiB, of a learner rank {needs.learner / 2**30:.1f} GiB"
        f"{note}, beside what torch takes itself; {needs.published / 2**30:.2f} GiB published a step; "
        f"time: {shares}",
    )
