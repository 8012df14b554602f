"""Facts about this machine for a bug report, and the problems that keep `captioner up` from working, with remedies.

The module runs with the base dependencies alone and reports every other missing package. It never shows a secret.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from captioner import machine
from captioner.doctor.installation import about, devices, packages, tritonserver
from captioner.doctor.report import Problem, Report
from captioner.doctor.serving import ask_server, memory, ports, published
from captioner.doctor.variables import variables
from captioner.machine import Facts


def examine(repository: Path, server: str, timeout_s: float) -> Report:
    """Collect every section of the report. Nothing is changed."""
    report = Report()
    answer = ask_server(server, timeout_s)
    sections: dict[str, Callable[[list[Problem]], Facts]] = {
        "captioner": lambda _: about(),
        "system": lambda _: machine.system(),
        "processor": lambda _: machine.processor(),
        "memory": lambda problems: memory(repository, problems),
        "packages": packages,
        "devices": devices,
        "tritonserver": tritonserver,
        "ports": lambda problems: ports(problems, ours="caption" in answer),
        "model repository": lambda problems: published(repository, problems),
        "environment": lambda problems: variables(os.environ, problems),
        f"server at {server}": lambda _: answer,
    }
    for name, collect in sections.items():
        try:
            report.facts[name] = collect(report.problems)
        except Exception as error:  # a report without one section is better than no report
            report.facts[name] = {"error": f"{type(error).__name__}: {error}"}
    return report
