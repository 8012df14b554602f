"""The programs that check deploy/, which scripts/deploy_tools.py fetches."""

from __future__ import annotations

import subprocess
import tempfile
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.deploy_tools import FOLDER
from tests.support.served import ROOT

CHART = ROOT / "deploy" / "helm" / "captioner"
RELEASE, NAMESPACE = "prod", "captions"
Manifest = dict[str, Any]


def tool(name: str) -> Path:
    """Return the path of a program. Skips the test if it has not been fetched."""
    if not (FOLDER / name).is_file():
        pytest.skip(f"{name} is not in {FOLDER}; `make deploy-tools` fetches it")
    return FOLDER / name


def run(name: str, *arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; its exit code is the caller's to judge."""
    command = [tool(name), *arguments]
    return subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True, timeout=60)


def render(values: Manifest | None = None) -> list[Manifest]:
    """Return the manifests that Helm makes of the chart with `values`."""
    return deepcopy(_rendered(yaml.safe_dump(values or {})))


@cache
def _rendered(values: str) -> list[Manifest]:
    done = _template(values)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def refusal(values: Manifest) -> str:
    """Return in one line why Helm refuses to render the chart with `values`."""
    done = _template(yaml.safe_dump(values))
    assert done.returncode != 0, done.stdout
    return " ".join(done.stderr.split())


def _template(values: str) -> subprocess.CompletedProcess[str]:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(values)
        file.flush()
        return run("helm", "template", RELEASE, CHART, "--namespace", NAMESPACE, "--values", file.name)


def one(manifests: list[Manifest], kind: str, component: str) -> Manifest:
    """Return the manifest of a kind and component; there must be exactly one."""
    name = "app.kubernetes.io/component"
    (found,) = (each for each in manifests if each["kind"] == kind and each["metadata"]["labels"][name] == component)
    return found
