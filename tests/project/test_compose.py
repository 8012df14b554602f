"""The Docker stack, checked without a container engine: parsed, linted and compared with the embedded server."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from captioner import cli, wire
from captioner.artifacts.version_store import VersionStore
from captioner.launcher import triton_process
from captioner.publish.model_control import admin_key
from frontend.options import Options
from tests.support.processes import read_until, running

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SERVE = (ROOT / "deploy" / "serve.sh").read_text()


@cache
def compose(*options: str, **variables: str) -> dict[str, Any]:
    """Return the services of docker-compose.yml by name, as docker-compose resolves them."""
    command = ["docker-compose", *options, "config"]
    done = subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, env=os.environ | variables, timeout=60
    )
    assert done.returncode == 0, done.stderr
    services: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    return services


def started(services: dict[str, Any], profile: str) -> set[str]:
    """Return the services that `up` would start with a profile."""
    return {name for name, service in services.items() if profile in service.get("profiles", [profile])}


@pytest.mark.parametrize(("profile", "server"), [("gpu", "server"), ("cpu", "server-cpu")])
def test_each_profile_starts_the_page_and_one_server(profile: str, server: str) -> None:
    services = compose("--profile", profile)
    assert started(services, profile) == {server, "frontend"}
    healthcheck = services[server]["healthcheck"]["test"]
    assert healthcheck[:3] == ["CMD", "captioner", "probe"], "health is a caption, not an open port"
    assert cli.parser().parse_args(healthcheck[2:]).server == f"127.0.0.1:{wire.GRPC_PORT}"
    assert services[server]["shm_size"] == "1gb"
    assert {volume.split(":")[1] for volume in services[server]["volumes"]} == {"/models", "/huggingface"}
    assert all(services[name]["restart"] == "unless-stopped" for name in (server, "frontend"))


def test_the_default_profile_is_the_server_with_a_gpu() -> None:
    assert "COMPOSE_PROFILES=gpu" in (ROOT / ".env").read_text().splitlines()
    devices = compose()["server"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert "deploy" not in compose()["server-cpu"]


def test_the_page_has_time_to_drain_and_takes_its_keys_from_the_environment() -> None:
    page = compose(CAPTIONER_API_KEYS="one,two", CAPTIONER_AUTH="ann:secret")["frontend"]
    assert page["environment"] == {"CAPTIONER_API_KEYS": "one,two", "CAPTIONER_AUTH": "ann:secret"}
    assert int(page["stop_grace_period"].removesuffix("s")) > Options.drain_s + 5
    assert "--insecure" in page["command"], "the container listens on 0.0.0.0; compose decides who reaches it"
    assert "/healthz" in DOCKERFILE, "a health check of the container has no key"


def test_the_page_finds_either_server_by_the_same_name() -> None:
    services = compose()
    address = services["frontend"]["command"][1]
    for server in ("server", "server-cpu"):
        assert f"{services[server]['networks']['default']['aliases'][0]}:{wire.GRPC_PORT}" == address


def test_every_port_is_bound_to_the_loopback_address_unless_bind_is_set() -> None:
    for bind, variables in (("127.0.0.1", {}), ("0.0.0.0", {"BIND": "0.0.0.0"})):
        ports = [port for service in compose(**variables).values() for port in service.get("ports", ())]
        assert len(ports) == 13
        assert all(port.startswith(f"{bind}:") for port in ports)


def test_the_defaults_in_env_equal_those_in_the_compose_file(tmp_path: Path) -> None:
    empty = tmp_path / "empty.env"
    empty.touch()
    assert compose("--env-file", str(empty)) == compose()


def test_every_file_names_the_same_triton_release() -> None:
    named = re.findall(r"\b\d\d\.\d\d-py3\b", DOCKERFILE + (ROOT / "docker-compose.yml").read_text())
    named += re.findall(r"^TRITON_TAG=(.*)$", (ROOT / ".env").read_text(), re.MULTILINE)
    assert len(named) == 3
    assert len(set(named)) == 1, named
    assert named[0] >= "26.04", "before 26.04 a server with a dead model calls itself ready"


def test_hadolint_finds_no_fault_in_the_dockerfile() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, "Dockerfile"], cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_that_the_dockerfile_copies_exists_and_is_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY .*", DOCKERFILE, re.MULTILINE):
        for source in shlex.split(line)[1:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, f"{source} does not reach the build"


def test_every_extra_command_and_module_used_in_the_images_exists() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    extras = set(",".join(re.findall(r"captioner\[([\w,]+)\]", DOCKERFILE)).split(","))
    assert extras == {"models", "quantised", "export", "frontend"}
    assert all(f"\n{extra} = [" in project for extra in extras)
    assert "\n[project.scripts]\ncaptioner = " in project
    for module in set(re.findall(r"-m\W+([a-z][\w.]+)", DOCKERFILE + SERVE)) - {"pip", "venv"}:
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def test_package_data_covers_every_file_that_is_not_python() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    patterns = dict(
        re.findall(r"^(\w+) = (\[.*\])$", project.partition("[tool.setuptools.package-data]")[2], re.MULTILINE)
    )
    for package in ("captioner", "frontend"):
        packaged = {path for pattern in yaml.safe_load(patterns[package]) for path in (ROOT / package).glob(pattern)}
        present = {path for path in (ROOT / package).rglob("*.*") if path.suffix not in (".py", ".pyc", ".pyi")}
        assert present <= packaged, sorted(present - packaged)


def test_the_image_keeps_the_native_onnx_runtime_backend() -> None:
    assert "/opt/tritonserver" not in DOCKERFILE + SERVE, "our Python backend must not replace Triton's own"


def test_the_container_starts_triton_with_the_flags_of_the_embedded_server() -> None:
    assert subprocess.run(["sh", "-n", ROOT / "deploy" / "serve.sh"], check=False, timeout=10).returncode == 0
    differ = {
        "--model-repository",
        "--backend-directory",
        "--backend-config",
        "--cache-directory",
        "--exit-timeout-secs",
    }
    differ |= {f"--{name}-{end}" for name in ("http", "grpc", "metrics") for end in ("address", "port")}
    for text in triton_flags():
        name = text.partition("=")[0]
        if name in differ:
            continue
        if name.endswith(("-restricted-api", "-restricted-protocol")):
            assert f"{triton_process.RESTRICTED}:{wire.ADMIN_HEADER}=" in SERVE and name in SERVE
            continue
        assert text in SERVE.replace("'", ""), f"deploy/serve.sh starts Triton without {text}"


@pytest.mark.exhaustive
def test_the_entry_point_publishes_into_an_empty_volume_and_passes_its_key_to_triton(tmp_path: Path) -> None:
    """tritonserver is a script that prints its arguments: the container's is not here."""
    volume, programs = tmp_path / "models", tmp_path / "bin"
    volume.mkdir()
    programs.mkdir()
    (programs / "tritonserver").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (programs / "tritonserver").chmod(0o755)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    variables = os.environ | {"PATH": path, "MODEL_REPOSITORY": str(volume), "CAPTIONER_MODEL": ""}
    with running(["sh", ROOT / "deploy" / "serve.sh", "--log-verbose=1"], env=variables, seconds=280) as server:
        arguments = read_until(server, "--log-verbose=1")
    assert f"--model-repository={volume}\n" in arguments
    assert {f"--load-model={model}\n" for model in wire.MODELS} <= set(arguments)
    key = admin_key(volume)
    assert f"--http-restricted-api={triton_process.RESTRICTED}:{wire.ADMIN_HEADER}={key}\n" in arguments
    assert list(VersionStore(volume).versions()) == [1]


def triton_flags() -> list[str]:
    """Return the flags of the embedded server."""
    options = triton_process.ServerOptions(
        repository=Path("repository"),
        models=tuple(wire.MODELS),
        host="127.0.0.1",
        http_port=1,
        grpc_port=2,
        metrics_port=3,
        log_path=Path("log"),
        admin_key="key",
        start_seconds=1,
        drain_seconds=1,
    )
    return triton_process._arguments(options, Path("backends"), "prefix")
