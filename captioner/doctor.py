"""Facts about this machine for a bug report, and the problems that keep `captioner up` from working, with remedies.

The module runs with the base dependencies alone and reports every other missing package. It never shows a secret.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from captioner import __version__, machine, wire
from captioner.artifacts.manifest import Manifest
from captioner.artifacts.version_store import VersionStore
from captioner.client import Client
from captioner.client.probe import TINY_IMAGE
from captioner.errors import ArtefactBroken, CaptionerError, StartupRefused
from captioner.launcher.ports import choose_ports
from captioner.launcher.triton_wheel import environment, triton_root
from captioner.machine import Facts
from captioner.serving.settings import Settings

DISTRIBUTION = "captioner"
# What differs between a server on the CPU and on a GPU: the extra that `captioner up` needs, a part of it, its runtime.
CPU, GPU = ("server", "embedded", "onnxruntime"), ("server-gpu", "embedded-gpu", "onnxruntime-gpu")
PORTS = {"HTTP": wire.HTTP_PORT, "gRPC": wire.GRPC_PORT, "metrics": wire.METRICS_PORT, "page": wire.PAGE_PORT}
VARIABLES = re.compile(r"(HF|HUGGINGFACE|TRANSFORMERS|CAPTIONER|CUDA|NVIDIA|OMP|RAY|TRITON)_|\w+_PROXY$", re.IGNORECASE)
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
SECRET_VALUE = re.compile(r"hf_\w{8,}|//[^/@\s]+@")  # a Hub token; user name and password in a URL
MIN_FREE_GIB, MIN_SHARED_GIB = 2.0, 0.25


@dataclass(frozen=True)
class Problem:
    """A sentence with a problem and its remedy. `blocks`: `captioner up` cannot work until the problem is solved."""

    sentence: str
    blocks: bool = True


@dataclass
class Report:
    """Facts by section, and the problems found."""

    facts: dict[str, Facts] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def blocked(self) -> bool:
        """Whether any problem keeps `captioner up` from working."""
        return any(problem.blocks for problem in self.problems)

    def text(self) -> str:
        """Return the report as text for people."""
        lines = []
        for section, facts in self.facts.items():
            lines += [section, *(f"  {name}: {_shown(value)}" for name, value in facts.items()), ""]
        problems = [f"{'✗' if problem.blocks else '!'} {problem.sentence}" for problem in self.problems]
        return "\n".join([*lines, *(problems or ["no problems found"])])


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


def about() -> Facts:
    """Return the version of this package, its folder, and the commit if it runs from a checkout."""
    root = Path(__file__).parents[1]
    commit = machine.output(["git", "-C", str(root), "rev-parse", "HEAD"]) if (root / ".git").exists() else ""
    return {"version": __version__, "commit": commit or None, "folder": str(root)}


def memory(repository: Path, problems: list[Problem]) -> Facts:
    """Return memory and disk space; report what is short."""
    facts = machine.memory(repository if repository.is_dir() else Path.cwd())
    if facts["available GiB"] < MIN_FREE_GIB:
        free = f"only {facts['available GiB']} GiB of memory are free"
        problems.append(Problem(f"{free}; end other programs, or the model may not load", blocks=False))
    if facts["disk free GiB"] is not None and facts["disk free GiB"] < MIN_FREE_GIB:
        free = f"only {facts['disk free GiB']} GiB are free on the disk of {repository}"
        problems.append(Problem(f"{free}; free some space, because a publish copies the model", blocks=False))
    if facts["shared memory free GiB"] is not None and facts["shared memory free GiB"] < MIN_SHARED_GIB:
        shared = f"only {facts['shared memory free GiB']} GiB are free in /dev/shm, which Triton's Python models use"
        problems.append(Problem(f"{shared}; start the container with --shm-size=1g", blocks=False))
    return facts


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
        facts["server"] = str(triton_root())
        facts["libpython"] = environment()["LD_LIBRARY_PATH"].split(os.pathsep)[-1]
    except StartupRefused as refusal:
        problems.append(Problem(str(refusal)))
    except ImportError as error:  # find_libpython, which `packages` reports
        facts["libpython"] = str(error)
    return facts


def ports(problems: list[Problem], ours: bool) -> Facts:
    """Return which ports are free. A port in use is a problem unless a Captioner server answers (`ours`)."""
    facts: Facts = {}
    for name, port in PORTS.items():
        try:
            choose_ports("127.0.0.1", {name: port})
            facts[f"{port} ({name})"] = "free"
        except StartupRefused as refusal:
            facts[f"{port} ({name})"] = "taken"
            if not ours:
                problems.append(Problem(str(refusal)))
    return facts


def published(repository: Path, problems: list[Problem]) -> Facts:
    """Return each version's model and whether its files are unchanged since the export; report broken versions."""
    facts: Facts = {"folder": str(repository)}
    if not repository.is_dir() or not any(repository.iterdir()):
        return facts | {"versions": "none; `captioner up` creates the repository and publishes the embedded model"}
    try:
        store = VersionStore(repository)
    except ArtefactBroken:
        sentence = f"{repository} is not a model repository of Captioner; name another with --repository"
        problems.append(Problem(sentence))
        return facts
    numbers = store.numbers()
    for version in numbers:
        try:
            manifest = Manifest.load(store.folder(wire.CAPTIONER, version))
            facts[f"version {version}"] = f"{manifest.model}@{manifest.revision[:12]}"
            manifest.verify(repository, str(version))
            facts[f"version {version}"] += ", files verified"
        except ArtefactBroken as broken:
            facts[f"version {version}"] = f"{facts.get(f'version {version}', '')} broken: {broken}".strip()
            sentence = f"version {version} is broken: {broken}"
            problems.append(Problem(sentence, blocks=version == numbers[-1]))
    for quarantined in store.quarantined().values():
        facts[f"version {quarantined.version}"] = f"{quarantined.state}: {quarantined.reason}"
    if not numbers:
        facts["versions"] = "none; `captioner up` publishes the embedded model"
    return facts


def variables(environment: Mapping[str, str], problems: list[Problem]) -> Facts:
    """Return the Hub cache and the environment variables that matter, with secrets hidden; report bad settings."""
    home = environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = Path(environment.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()
    models = sorted(path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*"))
    facts: Facts = {"Hub cache": f"{_masked('', str(cache))}{'' if cache.is_dir() else ' (does not exist)'}"}
    facts["models in it"] = models
    facts |= {name: _masked(name, value) for name, value in sorted(environment.items()) if VARIABLES.match(name)}
    try:
        Settings.parse({}, environment)
    except StartupRefused as refusal:
        problems.append(Problem(f"{_masked('', str(refusal))}; correct or unset the CAPTIONER_ variable"))
    return facts


def ask_server(address: str, timeout_s: float) -> Facts:
    """Return the card of the server at `address` and the caption of a tiny image, or the server's error."""
    try:
        with Client(address, stall_timeout_s=timeout_s) as client:
            facts: Facts = {"card": asdict(client.describe())}
            began = time.perf_counter()
            facts["caption"] = client.caption(TINY_IMAGE, max_tokens=4, priority_level=1).text
            facts["seconds"] = round(time.perf_counter() - began, 3)
            return facts
    except CaptionerError as error:
        return {"answer": error.wire()}


def _install(extra: str) -> str:
    return f"pip install {DISTRIBUTION}" if extra == machine.BASE else f"pip install '{DISTRIBUTION}[{extra}]'"


def _masked(name: str, value: str) -> str:
    if SECRET.search(name):
        return "set, hidden"
    return SECRET_VALUE.sub(lambda match: "//hidden@" if match[0].startswith("//") else "hidden", value)


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items() if isinstance(each, str | int) and each != "")
    return "–" if value is None else str(value)
