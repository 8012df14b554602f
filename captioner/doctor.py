"""What a bug report needs of this machine, and what would keep `captioner up` from working, each with what to do.

It works with the base dependencies alone: whatever else is missing is a finding. No secret is ever shown.
"""

from __future__ import annotations

import importlib.metadata
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
from captioner.launcher.supervisor import take_ports
from captioner.launcher.triton_wheel import environment, triton_root
from captioner.machine import Facts
from captioner.serving.settings import Settings

INSTALL = "pip install 'captioner[server,embedded,frontend,export]'"
# fmt: off
NEEDED = [
    "torch", "transformers", "tokenizers", "safetensors", "psutil", "nvidia-pytriton", "find_libpython", "gradio",
    "fastapi", "uvicorn", "python-multipart", "prometheus-client", "onnx", "onnxscript", "huggingface_hub",
]
USEFUL = [
    "numpy", "pillow", "tritonclient", "grpcio", "protobuf", "onnxruntime", "onnxruntime-gpu", "bitsandbytes",
    "accelerate", "ray", "pyarrow", "mcp",
]
# fmt: on
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
PORTS = {"HTTP": wire.HTTP_PORT, "gRPC": wire.GRPC_PORT, "metrics": wire.METRICS_PORT, "page": wire.PAGE_PORT}
VARIABLES = re.compile(r"(HF|HUGGINGFACE|TRANSFORMERS|CAPTIONER|CUDA|NVIDIA|OMP|RAY|TRITON)_|\w+_PROXY$", re.IGNORECASE)
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
IN_VALUE = re.compile(r"hf_\w{8,}|//[^/@\s]+@")  # a Hub's token, a name and password in a URL
LAST_PYARROW = 25  # that takes numpy 1
LITTLE_GIB, LITTLE_SHARED_GIB = 2.0, 0.25


@dataclass(frozen=True)
class Problem:
    """A sentence that says what is wrong and what to do; whether `captioner up` cannot work with it."""

    sentence: str
    blocks: bool = True


@dataclass
class Report:
    """Facts by section, and the problems among them."""

    facts: dict[str, Facts] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def blocked(self) -> bool:
        """Whether `captioner up` cannot work."""
        return any(problem.blocks for problem in self.problems)

    def text(self) -> str:
        """For people, and for a bug report."""
        lines = []
        for section, facts in self.facts.items():
            lines += [section, *(f"  {name}: {_shown(value)}" for name, value in facts.items()), ""]
        problems = [f"{'✗' if problem.blocks else '!'} {problem.sentence}" for problem in self.problems]
        return "\n".join([*lines, *(problems or ["nothing is wrong"])])


def examine(repository: Path, server: str, timeout_s: float) -> Report:
    """Looks at everything; changes nothing."""
    report = Report()
    answer = _server(server, timeout_s)
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
    for name, look in sections.items():
        try:
            report.facts[name] = look(report.problems)
        except Exception as error:  # a report with a hole says more than none
            report.facts[name] = {"error": f"{type(error).__name__}: {error}"}
    return report


def about() -> Facts:
    """This package: its version, and its commit where it stands in a checkout."""
    root = Path(__file__).parents[1]
    commit = machine.output(["git", "-C", str(root), "rev-parse", "HEAD"]) if (root / ".git").exists() else ""
    return {"version": __version__, "commit": commit or None, "folder": str(root)}


def memory(repository: Path, problems: list[Problem]) -> Facts:
    """Memory and disk, with a word where they are short."""
    facts = machine.memory(repository if repository.is_dir() else Path.cwd())
    if facts["available GiB"] < LITTLE_GIB:
        free = f"{facts['available GiB']} GiB of memory are free"
        problems.append(Problem(f"{free}; end other programs, or the model may not load", blocks=False))
    if facts["disk free GiB"] is not None and facts["disk free GiB"] < LITTLE_GIB:
        free = f"{facts['disk free GiB']} GiB of the disk of {repository} are free"
        problems.append(Problem(f"{free}; a model is copied when it is published, so make room", blocks=False))
    if facts["shared memory free GiB"] is not None and facts["shared memory free GiB"] < LITTLE_SHARED_GIB:
        shared = f"/dev/shm has {facts['shared memory free GiB']} GiB free, through which Triton's models talk"
        problems.append(Problem(f"{shared}; start the container with --shm-size=1g", blocks=False))
    return facts


def packages(problems: list[Problem]) -> Facts:
    """Versions; None is missing."""
    facts = {name: _version(name) for name in [*NEEDED, *USEFUL]}
    missing = [name for name in NEEDED if facts[name] is None]
    if not any(facts[name] for name in RUNTIMES):
        missing.append("onnxruntime")
    if missing:
        problems.append(Problem(f"{', '.join(missing)} missing; run: {INSTALL}"))
    if all(facts[name] for name in RUNTIMES):
        two = "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files"
        problems.append(Problem(f"{two}; pip uninstall both, then install the one you need"))
    if facts["nvidia-pytriton"] and not str(facts["numpy"]).startswith("1."):
        problems.append(Problem(f"numpy is {facts['numpy']}, tritonserver needs 1.x; run: pip install 'numpy<2'"))
    elif facts["pyarrow"] and int(facts["pyarrow"].split(".")[0]) > LAST_PYARROW:
        newer = f"pyarrow {facts['pyarrow']} needs numpy 2 and tritonserver numpy 1, so Ray cannot be used"
        problems.append(Problem(f"{newer}; run: pip install 'pyarrow<{LAST_PYARROW + 1}'", blocks=False))
    return facts


def devices(problems: list[Problem]) -> Facts:
    """What torch and ONNX Runtime would compute on."""
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
        problems.append(Problem("there is a GPU that torch does not see; install a torch for its driver", blocks=False))
    if cuda and "CUDAExecutionProvider" not in facts.get("onnxruntime providers", []):
        unused = "the GPU is left unused, for this onnxruntime has no CUDA; run: pip uninstall onnxruntime, then"
        problems.append(Problem(f"{unused} pip install 'captioner[embedded-gpu]'", blocks=False))
    return facts


def tritonserver(problems: list[Problem]) -> Facts:
    """Whether the wheel's server and a libpython for it are here."""
    facts: Facts = {"server": None, "libpython": None}
    try:
        facts["server"] = str(triton_root())
        facts["libpython"] = environment()["LD_LIBRARY_PATH"].split(os.pathsep)[-1]
    except StartupRefused as refusal:
        problems.append(Problem(str(refusal)))
    except ImportError as error:  # find_libpython, which `packages` names as well
        facts["libpython"] = str(error)
    return facts


def ports(problems: list[Problem], ours: bool) -> Facts:
    """Free or taken; taken by a Captioner that answers is as it should be."""
    facts: Facts = {}
    for name, port in PORTS.items():
        try:
            take_ports("127.0.0.1", {name: port})
            facts[f"{port} ({name})"] = "free"
        except StartupRefused as refusal:
            facts[f"{port} ({name})"] = "taken"
            if not ours:
                problems.append(Problem(str(refusal)))
    return facts


def published(repository: Path, problems: list[Problem]) -> Facts:
    """Every version of the captioner, its model, and whether its files are those that were exported."""
    facts: Facts = {"folder": str(repository)}
    try:
        found = VersionStore(repository)
    except ArtefactBroken:
        problems.append(Problem(f"{repository} is no model repository of Captioner; name one with --repository"))
        return facts
    numbers = found.numbers()
    for version in numbers:
        try:
            manifest = Manifest.load(found.folder(wire.CAPTIONER, version))
            facts[f"version {version}"] = f"{manifest.model}@{manifest.revision[:12]}"
            manifest.verify(repository, str(version))
            facts[f"version {version}"] += ", files verified"
        except ArtefactBroken as broken:
            facts[f"version {version}"] = f"{facts.get(f'version {version}', '')} broken: {broken}".strip()
            sentence = f"version {version} is broken: {broken}"
            problems.append(Problem(sentence, blocks=version == numbers[-1]))
    for aside in found.quarantined().values():
        facts[f"version {aside.version}"] = f"{aside.state}: {aside.reason}"
    if not numbers:
        facts["versions"] = "none; `captioner up` publishes the embedded model"
    return facts


def variables(environment: Mapping[str, str], problems: list[Problem]) -> Facts:
    """The Hub's cache and the variables that matter, secrets hidden."""
    home = environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = Path(environment.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()
    models = sorted(path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*"))
    facts: Facts = {"Hub cache": f"{_masked('', str(cache))}{'' if cache.is_dir() else ' (not there)'}"}
    facts["models in it"] = models
    facts |= {name: _masked(name, value) for name, value in sorted(environment.items()) if VARIABLES.match(name)}
    try:
        Settings.parse({}, environment)
    except StartupRefused as refusal:
        problems.append(Problem(f"{_masked('', str(refusal))}; set CAPTIONER_… anew or unset it"))
    return facts


def _server(address: str, timeout_s: float) -> Facts:
    try:
        with Client(address, stall_timeout_s=timeout_s) as client:
            facts: Facts = {"card": asdict(client.describe())}
            began = time.perf_counter()
            facts["caption"] = client.caption(TINY_IMAGE, max_tokens=4, priority_level=1).text
            facts["seconds"] = round(time.perf_counter() - began, 3)
            return facts
    except CaptionerError as error:
        return {"answer": error.wire()}


def _masked(name: str, value: str) -> str:
    if SECRET.search(name):
        return "set, hidden"
    return IN_VALUE.sub(lambda found: "//hidden@" if found[0].startswith("//") else "hidden", value)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items() if isinstance(each, str | int) and each != "")
    return "–" if value is None else str(value)
