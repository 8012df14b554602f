"""Ask PyPI for known vulnerabilities of the pinned packages, with pip-audit.

    python scripts/audit.py

Exits with 1 after a finding. Where PyPI's data cannot be reached, it says so in one line and exits with 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Print one line for each finding and one about what was checked; return the exit code."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    command += ["--no-deps", "--disable-pip", "--requirement", str(ROOT / "constraints.txt")]
    done = subprocess.run(command, capture_output=True, text=True)
    code, lines = report(json.loads(done.stdout)["dependencies"] if done.stdout else [], done.stderr)
    print("\n".join(lines))
    return code


def report(dependencies: list[dict[str, Any]], stderr: str) -> tuple[int, list[str]]:
    """Return the exit code and what to print for pip-audit's answer.

    pip-audit calls a package without data skipped, and a list of skipped packages free of vulnerabilities.
    """
    checked = [each for each in dependencies if "vulns" in each]
    if not checked:
        why = dependencies[0]["skip_reason"] if dependencies else (stderr.strip().splitlines() or ["no answer"])[-1]
        return 0, [f"audit: PyPI's vulnerability data cannot be reached, so nothing was checked: {why[:200]}"]
    found = [
        f"{each['name']} {each['version']}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions']) or 'no version'}"
        for each in checked
        for flaw in each["vulns"]
    ]
    skipped = len(dependencies) - len(checked)
    summary = f"audit: {len(found)} findings in {len(checked)} packages; {skipped} packages are unknown to PyPI"
    return int(bool(found)), [*found, summary]


if __name__ == "__main__":
    sys.exit(main())
