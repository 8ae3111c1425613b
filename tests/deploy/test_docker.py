"""The image: what it is built from, and its installation, by the script that its Dockerfile runs."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[2]
DOCKER = REPOSITORY / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
LOCK = (DOCKER / "requirements.lock").read_text()
PINNED = re.findall(r"^([a-z0-9.-]+)==([^ ]+)", LOCK, re.MULTILINE)


def makefiles_torch() -> str:
    [torch] = re.findall(r"^TORCH *\?= *(\S+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    return torch


def test_the_dockerfile_passes_hadolint(program: Callable[[str], Path]) -> None:
    done = subprocess.run([program("hadolint"), DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_lock_file_pins_every_dependency_within_its_bounds() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    versions = {canonicalize_name(name): version for name, version in PINNED}
    for dependency in map(Requirement, project["dependencies"]):
        if dependency.name != "torch":
            assert versions[canonicalize_name(dependency.name)] in dependency.specifier, dependency.name


def test_the_lock_file_is_hashed_names_no_index_and_leaves_torch_to_the_builder() -> None:
    entries = re.split(r"^(?=[a-z0-9])", LOCK, flags=re.MULTILINE)[1:]
    assert len(entries) == len(PINNED) > 100
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in LOCK and "index" not in LOCK
    assert not [name for name, _ in PINNED if re.match(r"torch$|triton$|nvidia-|cuda-", name)]


def test_one_torch_is_meant_everywhere() -> None:
    texts = [DOCKERFILE, *((path.read_text()) for path in (REPOSITORY / "deploy" / "ray-up").glob("*.yaml"))]
    for text in texts:
        assert set(re.findall(r"TORCH=(torch\S+)", text)) == {makefiles_torch()}


def test_the_build_context_holds_what_is_copied_and_nothing_else() -> None:
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for word in line.split()[:-1]
        if not word.startswith("--")
    }
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    assert all((REPOSITORY / path).exists() for path in copied)


def test_the_image_rebuilds_cheaply_and_runs_unprivileged() -> None:
    *_, wheel, final = DOCKERFILE.split("\nFROM ")
    assert "COPY d1ray" in wheel and "COPY d1ray" not in final  # sources invalidate no layer of dependencies
    order = [final.index(part) for part in ("COPY --from=dependencies", "install.sh d1ray", "USER 1000:1000")]
    assert order == sorted(order)
    assert "HEALTHCHECK" in final and "RAY_AUTH_MODE=token" in final
    [packages] = re.findall(r"--no-install-recommends ([a-z ]+)", final)
    assert packages.split() == ["wget"]  # of KubeRay's probes: no compiler


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_installation_of_the_image_works_in_an_empty_environment(tmp_path: Path) -> None:
    steps = re.findall(r"docker/install\.sh ((?:dependencies|wheel|d1ray).*)$", DOCKERFILE, re.MULTILINE)
    assert steps == ["dependencies", "wheel /dist", "d1ray /dist/*.whl"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "PATH": f"{tmp_path}/venv/bin:{os.environ['PATH']}",
        "TORCH": makefiles_torch(),
    }

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1500,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(f"{sys.executable} -m venv venv")
    for step in steps:
        run(f"{DOCKER}/install.sh {step.replace('/dist', str(tmp_path / 'dist'))}")
    assert "sudoku-tiny" in run("d1ray recipes")
    assert dict(PINNED)["ray"] in run("ray --version")
    assert f"{tmp_path}/venv" in run("python -c 'import d1ray; print(d1ray.__file__)'")
