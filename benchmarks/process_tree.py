"""The processes of a running stack by their part, and what each of them holds: memory, descriptors, threads."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import psutil

MODELS = ("captioner", "caption", "vision_encoder", "preprocess")
ENDED = (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError)


@dataclass(frozen=True)
class Usage:
    """What one process holds. PSS divides a page among the processes that share it."""

    rss_mib: float
    pss_mib: float
    descriptors: int
    threads: int


def part(process: psutil.Process) -> str:
    """Return the name of the part that a process is: a model's instance, such as captioner_0_0, or a program."""
    words = process.cmdline()
    if not words:  # a zombie
        return process.name()
    if "triton_python_backend_stub" in words[0]:
        named = [word for word in words if word.startswith(MODELS)]
        return named[-1] if named else "stub"
    if "-m" in words[:6]:
        return {"frontend": "page", "captioner.cli": "launcher"}.get(words[words.index("-m") + 1], "python")
    return "reaper" if any(word.endswith("reaper.py") for word in words[:6]) else process.name()


def parts(root: int) -> dict[str, psutil.Process]:
    """Return the living processes below and including `root`, by part. Equal parts get a number."""
    found: dict[str, psutil.Process] = {}
    with suppress(*ENDED):
        top = psutil.Process(root)
        for process in (top, *sorted(top.children(recursive=True), key=lambda each: each.pid)):
            with suppress(*ENDED):
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                name, number = part(process), 2
                while name in found:
                    name = f"{part(process)} {number}"
                    number += 1
                found[name] = process
    return found


def usage(process: psutil.Process) -> Usage | None:
    """Return what a process holds now, or None if it has ended."""
    try:
        memory = process.memory_full_info()
        return Usage(memory.rss / 2**20, memory.pss / 2**20, process.num_fds(), process.num_threads())
    except ENDED:
        return None
