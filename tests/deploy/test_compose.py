"""docker-compose.yml by profile, resolved by the current Docker Compose. tests/project/test_compose.py uses 1.29."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml

from captioner import cli
from captioner.publish.warm_standby import DRAIN_SECONDS
from frontend.options import Options
from tests.support.deploy_tools import Manifest, run
from tests.support.served import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
OBSERVABILITY = {"prometheus", "grafana", "otel-collector", "jaeger"}
STARTED = {
    ("gpu",): {"server", "frontend"},
    ("cpu",): {"server-cpu", "frontend"},
    ("scale",): {"servers", "envoy", "frontend"},
    ("gpu", "follow"): {"server", "follow", "frontend"},
    ("cpu", "observability"): {"server-cpu", "frontend", *OBSERVABILITY},
}
SERVERS = ("server", "server-cpu", "servers")


@cache
def services(*profiles: str) -> dict[str, Manifest]:
    """The services that `up` starts with these profiles."""
    options = [word for profile in profiles for word in ("--profile", profile)]
    done = run("docker-compose", *options, "config", "--format", "json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Manifest] = json.loads(done.stdout)["services"]
    return found


def seconds(duration: str) -> int:
    """Return the seconds of `1m30s`."""
    minutes, rest = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration).groups()  # type: ignore[union-attr]
    return 60 * int(minutes or 0) + int(rest or 0)


@pytest.mark.parametrize("profiles", STARTED, ids="+".join)
def test_a_profile_starts(profiles: tuple[str, ...]) -> None:
    assert set(services(*profiles)) == STARTED[profiles]


def test_every_service_is_confined() -> None:
    for name, service in services("*").items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"], name
        assert "/tmp" in service["tmpfs"], name
    assert DOCKERFILE.count("\nUSER 1000:1000\n") == 2


def test_nothing_is_called_latest() -> None:
    for name, service in services("*").items():
        repository, _, tag = service["image"].partition(":")
        assert tag not in ("", "latest") or repository.startswith("captioner-"), name


def test_drain_times_add_up() -> None:
    found = services("*")
    for name in SERVERS:
        drain = int(found[name]["environment"]["CAPTIONER_DRAIN_SECONDS"])
        assert seconds(found[name]["stop_grace_period"]) >= drain + 10, name
    assert seconds(found["frontend"]["stop_grace_period"]) > Options.drain_s + 5
    assert seconds(found["follow"]["stop_grace_period"]) > DRAIN_SECONDS + 10, (
        "a publish gives the old version this time"
    )


def test_a_gpu_is_required_where_one_is_reserved() -> None:
    for name, required in (("server", True), ("server-cpu", False), ("servers", False)):
        service = services("*")[name]
        reserved = bool(service.get("deploy", {}).get("resources"))
        assert (service["environment"]["CAPTIONER_REQUIRE_GPU"] == "1", reserved) == (required, required)
        assert (service["image"] == "captioner-server") == required, "the image for CPUs has another name"
        assert ("CUDA_VISIBLE_DEVICES" in service["environment"]) != required


def test_the_address_of_the_page_is_the_server_or_envoy() -> None:
    for profile, name in (("gpu", "server"), ("cpu", "server-cpu"), ("scale", "envoy")):
        named = {
            each for each, service in services(profile).items()
            if "captioner" in ((service["networks"]["default"] or {}).get("aliases") or [])
        }  # fmt: skip
        assert named == {name}
    scaled = services("scale")["servers"]
    assert scaled["networks"]["default"]["aliases"] == ["captioner-servers"], "the name in deploy/envoy/envoy.yaml"
    assert not scaled.get("ports"), "three servers cannot share a port of the host"
    assert scaled["deploy"]["replicas"] == 3


def test_the_follower_ends_without_a_model_and_else_follows_its_branch() -> None:
    service = services("*")["follow"]
    assert service["restart"] == "on-failure", "an end without a fault is an end"
    (script,) = [text.replace("$$", "$") for text in service["command"]]
    shell = [
        "env",
        "-i",
        "PATH=/usr/bin:/bin",
        "sh",
        "-c",
        "captioner() { :; }; " + script.replace("exec captioner", "echo"),
    ]
    done = subprocess.run(shell, check=True, capture_output=True, text=True, timeout=20)
    assert done.stdout == "CAPTIONER_MODEL is empty: nothing to follow\n"
    shell[2:2] = ["CAPTIONER_MODEL=owner/model"]
    done = subprocess.run(shell, check=True, capture_output=True, text=True, timeout=20)
    arguments = cli.parser().parse_args(shlex.split(done.stdout))
    assert arguments.model == "owner/model@main"


def test_every_mounted_file_exists() -> None:
    mounted = [volume for service in services("*").values() for volume in service.get("volumes", ())]
    paths = [Path(each["source"]) for each in mounted if each["type"] == "bind"]
    assert len(paths) >= 6
    assert [path for path in paths if not path.is_file()] == []
    assert all(each.get("read_only") for each in mounted if each["type"] == "bind")


def test_the_chart_and_the_stack_run_the_same_envoy() -> None:
    chart = yaml.safe_load((ROOT / "deploy" / "helm" / "captioner" / "values.yaml").read_text())
    image = chart["balancer"]["image"]
    assert services("scale")["envoy"]["image"] == f"{image['repository']}:{image['tag']}"


def test_the_server_image_mends_what_the_review_found() -> None:
    server = DOCKERFILE.partition(" AS server\n")[2].partition("\nFROM ")[0]
    for variable in ("ORT_DISABLE_TELEMETRY=1", "MALLOC_ARENA_MAX=2", "HOME=/tmp"):
        assert f"{variable} " in server
    assert '"onnxruntime==1.27.0"' in server, "the release of Triton 26.07's own backend"
    assert 'ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh", ' in server
    assert "PIP_BREAK_SYSTEM_PACKAGES" not in server and "PATH=/opt/captioner/venv/bin:" in server
