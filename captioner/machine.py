"""This machine in facts: system, processor, memory, container, devices. Nothing here fails; what is unknown is None."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

Facts = dict[str, Any]
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8")


def system() -> Facts:
    """What runs here."""
    return {
        "os": platform.freedesktop_os_release().get("PRETTY_NAME") if Path("/etc/os-release").is_file() else None,
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "libc": " ".join(platform.libc_ver()) or None,
        "python": f"{platform.python_version()} {sys.executable}",
        "container": container(),
    }


def container() -> str | None:
    """The kind of container around this process, as far as it can be told."""
    for name, mark in {"docker": "/.dockerenv", "podman": "/run/.containerenv"}.items():
        if Path(mark).exists():
            return name
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    found = re.search(r"docker|containerd|kubepods|lxc", _text("/proc/1/cgroup"))
    return found[0] if found else None


def processor() -> Facts:
    """Model, cores and the instructions that matrices profit from."""
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
    """Cores this process may use: its affinity, cut to the cgroup's CPU quota; at least 1."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or the quota is "max"
        return cores


def has_vnni() -> bool:
    """Whether sums of eight-bit products are exact here; ONNX Runtime's overflow without these instructions."""
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(processor()["flags"])


def memory(folder: Path) -> Facts:
    """In GiB; `folder` says which disk."""
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
    """What nvidia-smi lists: name, driver, memory."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return output(command).splitlines() if shutil.which(command[0]) else []


def output(command: list[str]) -> str:
    """What a command prints; nothing if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


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
