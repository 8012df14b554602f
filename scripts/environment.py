"""Makes the virtual environment that everything here runs in, or says in one sentence why it cannot.

    python3 scripts/environment.py [--venv .venv] [--system]

A second call returns at once while pyproject.toml and constraints.txt are as they were. Only the standard
library is used, in Python 3.8's syntax, so that a wrong Python gets a sentence in place of a SyntaxError.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = "server,quantised,embedded,frontend,mcp,ray,export,training,dev"
USED = "captioner.serving.startup, captioner.launcher.up, export.export, frontend.page.page"
OLDEST, NEWEST = (3, 10), (3, 12)
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
NEEDED_GIB = 4
HEARTBEAT_SECONDS = 20
# command that tells that it is there → Debian's package
SYSTEM = {
    "chromium": "chromium",
    "docker-compose": "docker-compose",
    "fc-list": "fontconfig fonts-dejavu-core",
    "nginx": "nginx-light",
}


class Refused(Exception):
    """Why there can be no environment, in one sentence."""


def main() -> int:
    """Makes what is missing; 0, or 1 after one sentence on stderr."""
    parser = argparse.ArgumentParser(description="Makes Captioner's virtual environment.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="folder, default %(default)s")
    parser.add_argument("--system", action="store_true", help="also the system packages that the tests use")
    options = parser.parse_args()
    venv = options.venv.absolute()
    try:
        if options.system:
            install_system_packages()
        check_python()
        stamp, key = venv / "captioner-environment", fingerprint()
        if stamp.is_file() and stamp.read_text() == key:
            return 0
        check_libpython()
        check_machine(venv)
        make(venv)
        stamp.write_text(key)
    except Refused as refusal:
        print(f"environment: {refusal}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("environment: interrupted; the next call goes on from here", file=sys.stderr)
        return 130
    return 0


def fingerprint() -> str:
    """Changes with whatever the environment is made from."""
    digest = hashlib.sha256()
    for part in (sys.version, str(ROOT), (ROOT / "pyproject.toml").read_text(), constraints().read_text()):
        digest.update(part.encode())
    return digest.hexdigest()


def constraints() -> Path:
    """The pinned versions."""
    return ROOT / "constraints.txt"


def check_python() -> None:
    """Refuses a Python that cannot run this, with what to install."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        raise Refused(
            f"{sys.executable} is Python {PYTHON}; Captioner needs Python 3.10, 3.11 or 3.12; "
            "name one with: make PYTHON=python3.11 ..."
        )
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise Refused(f"Python {PYTHON} has no venv module; on Debian or Ubuntu run: apt install python{PYTHON}-venv")


def check_libpython() -> None:
    """Refuses a Python without its shared library."""
    library = f"libpython{PYTHON}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR"), str(Path(sys.base_prefix) / "lib")]
    if not any(folder and (Path(folder) / library).exists() for folder in folders) and not loadable(library):
        raise Refused(
            f"Python {PYTHON} at {sys.base_prefix} has no shared library {library}, which tritonserver "
            f"loads; on Debian or Ubuntu run: apt install libpython{PYTHON} "
            "(with pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install)"
        )


def loadable(library: str) -> bool:
    """Whether the system's loader finds `library`."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def check_machine(venv: Path) -> None:
    """Refuses a machine for which the wheel with tritonserver does not exist, and a full disk."""
    machine = f"{platform.system()} {platform.machine()} {platform.libc_ver()[0]}"
    if machine != "Linux x86_64 glibc":
        raise Refused(
            f"this is {machine.strip()}; the tritonserver that is used here needs Linux x86_64 glibc; "
            "elsewhere use the containers: docker compose up"
        )
    folder = next(path for path in [venv, *venv.parents] if path.exists())
    free_gib = shutil.disk_usage(str(folder)).free / 2**30
    if free_gib < NEEDED_GIB:
        raise Refused(f"{folder} has {free_gib:.1f} GiB free; {NEEDED_GIB} GiB are needed")


def make(venv: Path) -> None:
    """Creates `venv` and installs everything at the pinned versions."""
    begin = time.monotonic()
    log_path = ROOT / "build" / "environment.log"
    log_path.parent.mkdir(exist_ok=True)
    python = venv / "bin" / "python"
    log_path.write_text("")
    if not same_python(python):
        run(f"creating {venv}", [sys.executable, "-m", "venv", "--clear", str(venv)], log_path, begin)
    install = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    install += ["--constraint", str(constraints())]
    # Resolving takes the pip that Python 3.11 brings three times as long (measured: 160 s and 49 s).
    run("updating pip", [*install, "--upgrade", "pip"], log_path, begin)
    # Compiling everything takes 80 s of CPU; importing what is used compiles that, and shows that it works.
    install += ["--no-compile", "--editable", f"{ROOT}[{EXTRAS}]"]
    run("installing packages, some minutes the first time", install, log_path, begin)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    run("importing them once", [str(python), "-c", f"import {USED}"], log_path, begin)
    say(f"environment ready in {venv}", begin)


def same_python(python: Path) -> bool:
    """Whether `python` runs and is this version, so that an interrupted installation can go on."""
    command = [str(python), "-c", "import sys, pip; print(sys.version)"]
    try:
        return subprocess.check_output(command, stderr=subprocess.DEVNULL).decode().strip() == sys.version
    except (OSError, subprocess.CalledProcessError):
        return False


def run(what: str, command: list[str], log_path: Path, begin: float) -> None:
    """Runs `command` with its output in the log and a sign of life now and then."""
    say(what, begin)
    start = log_path.stat().st_size if log_path.exists() else 0
    with log_path.open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=str(ROOT))
        try:
            while True:
                try:
                    code = process.wait(HEARTBEAT_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    say("  " + progress(log_path.read_bytes()[start:].decode(errors="replace")), begin)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if code:
        last = [line[:200] for line in log_path.read_text(errors="replace").splitlines() if line.strip()][-5:]
        raise Refused("\n  ".join([f"{what} failed:", *last]) + f"\nthe whole log: {log_path}")


def progress(text: str) -> str:
    """What pip is doing, in a few words, from its output so far."""
    if "Installing collected packages" in text:
        return f"unpacking {text.rpartition('Installing collected packages')[2].count(',') + 1} packages"
    found = text.count("Collecting ")
    return f"{found} packages found" if found else "still at it"


def say(text: str, begin: float) -> None:
    print(f"[{time.monotonic() - begin:6.1f} s] {text}", flush=True)


def install_system_packages() -> None:
    """Installs what the tests use beside Python where that is missing and allowed."""
    packages = " ".join(package for command, package in SYSTEM.items() if shutil.which(command) is None)
    if not packages:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Refused(f"the tests need system packages; run: sudo apt-get install {packages}")
    begin = time.monotonic()
    log_path = ROOT / "build" / "system-packages.log"
    log_path.parent.mkdir(exist_ok=True)
    log_path.write_text("")
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    run("updating the list of system packages", ["apt-get", "update"], log_path, begin)
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *packages.split()]
    run(f"installing {packages}", install, log_path, begin)


if __name__ == "__main__":
    sys.exit(main())
