"""What is installed: the SBOM lists it, and an audit fails for a known vulnerability only."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts import audit
from tests.support.served import ROOT


def pins() -> dict[str, str]:
    """The pinned version of each package, for this Python."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        canonicalize_name(each.name): str(each.specifier).removeprefix("==")
        for each in wanted
        if each.marker is None or each.marker.evaluate()
    }


@pytest.mark.exhaustive
def test_the_sbom_lists_every_pinned_package_that_is_installed(tmp_path: Path) -> None:
    path = tmp_path / "sbom.json"
    recipe = (ROOT / "Makefile").read_text().partition("\nsbom:")[2].partition("\n\n")[0].splitlines()[-1]
    command = recipe.replace("$(BIN)/cyclonedx-py", f"{sys.executable} -m cyclonedx_py").split()
    command = [str(path) if word.endswith(".json") else word for word in command]
    subprocess.run([*command[:-1], sys.executable], cwd=ROOT, check=True, capture_output=True, timeout=120)
    document = json.loads(path.read_text())
    assert document["bomFormat"] == "CycloneDX" and document["metadata"]["component"]["name"] == "captioner"
    listed: dict[str, str] = {
        canonicalize_name(each["name"]): each["version"].partition("+")[0] for each in document["components"]
    }
    installed = {canonicalize_name(each.metadata["Name"]) for each in distributions()}
    pinned = {name: version for name, version in pins().items() if name in installed}
    assert len(pinned) > 100
    assert pinned.items() <= listed.items()


def test_an_audit_fails_for_a_vulnerability_and_not_for_missing_data() -> None:
    clean = {"name": "a", "version": "1", "vulns": []}
    flawed = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
    skipped = {"name": "c", "skip_reason": "not found on PyPI"}
    assert audit.report([clean, skipped], "") == (
        0, ["audit: 0 findings in 1 packages; 1 packages are unknown to PyPI"],
    )  # fmt: skip
    code, lines = audit.report([clean, flawed], "")
    assert code == 1 and lines[0] == "b 2: PYSEC-1, fixed in 3"
    for dependencies, stderr in (([], "warning\nno route to host"), ([skipped], "")):
        code, lines = audit.report(dependencies, stderr)
        assert code == 0 and len(lines) == 1 and "nothing was checked" in lines[0]
