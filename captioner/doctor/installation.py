"""What is installed: this package, the packages of its extras, devices, and the embedded tritonserver."""

from __future__ import annotations

import os
from pathlib import Path

from captioner import __version__, machine
from captioner.doctor.report import Problem
from captioner.errors import StartupRefused
from captioner.launcher.preconditions import missing_files
from captioner.launcher.triton_wheel import environment, triton_root
from captioner.machine import Facts

DISTRIBUTION = "captioner"
# What differs between a server on the CPU and on a GPU: the extra that `captioner up` needs, a part of it, its runtime.
CPU, GPU = ("server", "embedded", "onnxruntime"), ("server-gpu", "embedded-gpu", "onnxruntime-gpu")


def about() -> Facts:
    """Return the version of this package, its folder, and the commit if it runs from a checkout."""
    root = Path(__file__).parents[2]
    commit = machine.output(["git", "-C", str(root), "rev-parse", "HEAD"]) if (root / ".git").exists() else ""
    return {"version": __version__, "commit": commit or None, "folder": str(root)}


def packages(problems: list[Problem]) -> Facts:
    """Return the packages of each extra with their versions, and the command that completes the extra.

    Problems in an extra that `captioner up` needs block. Of the other extras, only those are problems that have every
    package, but not in a suitable version.
    """
    gpu = machine.version(GPU[2]) is not None
    if gpu and machine.version(CPU[2]) is not None:
        both = f"{CPU[2]} and {GPU[2]} are both installed and overwrite each other's files"
        problems.append(Problem(f"{both}; pip uninstall both, then install the one you need"))
    server, alternative = (GPU[0], CPU[1]) if gpu else (CPU[0], GPU[1])
    extras = machine.requirements(DISTRIBUTION)
    needed = {machine.BASE, *(part for line in extras[server] for part in line.extras)}
    facts: Facts = {}
    blocking: list[str] = []
    for extra, lines in extras.items():
        if extra == alternative or any(line.name == DISTRIBUTION for line in lines):
            continue
        found = machine.packages(lines)
        faults = [str(package) for package in found if not package.suitable]
        command = f"; run: {_install(extra)}" if faults else ""
        facts[extra] = ", ".join(dict.fromkeys(map(str, found))) + command
        if extra in needed:
            blocking += faults
        elif faults and all(package.version for package in found):
            problems.append(Problem(f"{extra}: {', '.join(faults)}{command}", blocks=False))
    if blocking:
        problems.append(Problem(f"{', '.join(dict.fromkeys(blocking))}; run: {_install(server)}"))
    return facts


def devices(problems: list[Problem]) -> Facts:
    """Return the devices that torch and ONNX Runtime can use; report a GPU that one of them cannot."""
    facts: Facts = {"nvidia-smi": machine.gpus()}
    cuda = False
    try:
        import torch

        cuda = torch.cuda.is_available()
        facts |= {"torch threads": torch.get_num_threads(), "torch's CUDA": torch.version.cuda}
        facts["CUDA devices"] = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    except ImportError as error:
        facts["torch"] = f"cannot be imported: {error}"
    try:
        import onnxruntime

        facts["onnxruntime providers"] = onnxruntime.get_available_providers()
    except ImportError as error:
        facts["onnxruntime"] = f"cannot be imported: {error}"
    if facts["nvidia-smi"] and not cuda:
        problems.append(Problem("torch does not see the GPU; install a torch for the GPU's driver", blocks=False))
    if cuda and "CUDAExecutionProvider" not in facts.get("onnxruntime providers", []):
        unused = "the GPU is not used, because this onnxruntime has no CUDA; run: pip uninstall onnxruntime, then"
        problems.append(Problem(f"{unused} {_install(GPU[0])}", blocks=False))
    return facts


def tritonserver(problems: list[Problem]) -> Facts:
    """Return where the wheel's server and the libpython for it are; report what is missing."""
    facts: Facts = {"server": None, "libpython": None}
    try:
        if sentence := missing_files():
            problems.append(Problem(sentence))
        facts["server"] = str(triton_root())
        facts["libpython"] = environment()["LD_LIBRARY_PATH"].split(os.pathsep)[-1]
    except StartupRefused:  # the problem above
        pass
    except ImportError as error:  # find_libpython, which `packages` reports
        facts["libpython"] = str(error)
    return facts


def _install(extra: str) -> str:
    return f"pip install {DISTRIBUTION}" if extra == machine.BASE else f"pip install '{DISTRIBUTION}[{extra}]'"
