"""Facts about this machine: system, processor, memory, container, GPUs, installed packages. An unknown fact is None."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

Facts = dict[str, Any]
BASE = "base"  # the name here for what a package requires without any extra
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8")


def system() -> Facts:
    """Return the operating system, its libc, this Python and the container."""
    return {
        "os": platform.freedesktop_os_release().get("PRETTY_NAME") if Path("/etc/os-release").is_file() else None,
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "libc": " ".join(platform.libc_ver()) or None,
        "python": f"{platform.python_version()} {sys.executable}",
        "container": container(),
    }


def container() -> str | None:
    """Return the kind of container that this process runs in, None if no sign of one is found."""
    for name, marker in {"docker": "/.dockerenv", "podman": "/run/.containerenv"}.items():
        if Path(marker).exists():
            return name
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    match = re.search(r"docker|containerd|kubepods|lxc", _text("/proc/1/cgroup"))
    return match[0] if match else None


def processor() -> Facts:
    """Return the model, the core counts, and the instruction sets that speed up matrix products."""
    text = _text("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.+)$", text, re.MULTILINE)
    known = flags[1].split() if flags else []
    return {
        "model": model[1] if model else platform.processor() or None,
        "cores": os.cpu_count(),
        "usable cores": usable_cores(),
        "flags": [flag for flag in FLAGS if flag in known],
    }


def usable_cores() -> int:
    """Return the number of cores that this process may use: its affinity, cut to the cgroup's CPU quota; at least 1."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or the quota is "max"
        return cores


def has_vnni() -> bool:
    """Return whether the processor has VNNI; without it, int8 sums of ONNX Runtime overflow."""
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(processor()["flags"])


def memory(folder: Path) -> Facts:
    """Return memory, shared memory, and free space on the disk of `folder`, in GiB."""
    kib = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _text("/proc/meminfo"), re.MULTILINE))
    limit = _text("/sys/fs/cgroup/memory.max").strip()
    disk, shared = _free_gib(folder), _free_gib(Path("/dev/shm"))
    return {
        "total GiB": _gib(int(kib.get("MemTotal", 0)) * 1024),
        "available GiB": _gib(int(kib.get("MemAvailable", 0)) * 1024),
        "container's limit GiB": _gib(int(limit)) if limit.isdecimal() else None,
        "shared memory free GiB": shared,
        "disk free GiB": disk,
    }


def gpus() -> list[str]:
    """Return the GPUs that nvidia-smi lists: name, driver, memory."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return output(command).splitlines() if shutil.which(command[0]) else []


@dataclass(frozen=True)
class Package:
    """A requirement and the version that is installed, None if the package is missing."""

    requirement: Requirement
    version: str | None

    @property
    def suitable(self) -> bool:
        """Whether a version is installed that satisfies the requirement."""
        return self.version is not None and self.requirement.specifier.contains(self.version, prereleases=True)

    def __str__(self) -> str:
        name = self.requirement.name
        if self.version is None:
            return f"{name} missing"
        return f"{name} {self.version}" + ("" if self.suitable else f" (must be {self.requirement.specifier})")


def requirements(distribution: str) -> dict[str, list[Requirement]]:
    """Return what an installed package requires by its own metadata: BASE, then each extra.

    Raises importlib.metadata.PackageNotFoundError if the package is not installed.
    """
    extras = importlib.metadata.metadata(distribution).get_all("Provides-Extra") or []
    lines = [Requirement(line) for line in importlib.metadata.requires(distribution) or []]
    base = [line for line in lines if _applies(line)]
    added = {extra: [line for line in lines if line not in base and _applies(line, extra)] for extra in extras}
    return {BASE: base} | added


def packages(lines: Iterable[Requirement]) -> list[Package]:
    """Return the package of each requirement, and those that the requirement's own extras add, in any version.

    For example, `gradio[mcp]>=6` gives gradio, which must be 6 or later, and mcp.
    """
    found = []
    for line in lines:
        found.append(Package(line, version(line.name)))
        if line.extras and found[-1].version:
            extras = requirements(line.name)
            added = [Requirement(inner.name) for extra in sorted(line.extras) for inner in extras.get(extra, ())]
            found += [Package(each, version(each.name)) for each in added]
    return found


def version(name: str) -> str | None:
    """Return the version of an installed package, None if the package is missing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def output(command: list[str]) -> str:
    """Return what a command prints, "" if it fails or takes longer than 20 s."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _applies(line: Requirement, extra: str = "") -> bool:
    return line.marker is None or line.marker.evaluate({"extra": extra})


def _text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:
        return ""


def _free_gib(folder: Path) -> float | None:
    try:
        return _gib(shutil.disk_usage(folder).free)
    except OSError:
        return None


def _gib(size: int) -> float:
    return round(size / 2**30, 1)
