"""Create the virtual environment of this checkout, or print one sentence that says why that is impossible.

    python3 scripts/environment.py [--venv .venv] [--system]

A second call returns at once if pyproject.toml and constraints.txt have not changed. The script uses only the standard
library and Python 3.8's syntax, so that an unsupported Python gets a sentence instead of a SyntaxError.
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
EXTRAS = "server,quantised,mcp,ray,training,dev"
USED = "captioner.serving.startup, captioner.launcher.up, export.export, frontend.page.page"
MIN_PYTHON, MAX_PYTHON = (3, 10), (3, 12)
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
MIN_FREE_GIB = 4
PROGRESS_SECONDS = 20
# a command → the Debian package that has it
SYSTEM = {
    "chromium": "chromium",
    "docker-compose": "docker-compose",
    "fc-list": "fontconfig fonts-dejavu-core",
    "nginx": "nginx-light",
    "strace": "strace",
}


class Refused(Exception):
    """The environment cannot be created; the message is one sentence that says why."""


def main() -> int:
    """Create what is missing; return 0, or 1 after one sentence on stderr."""
    parser = argparse.ArgumentParser(description="Create the virtual environment of this checkout.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="its folder (default %(default)s)")
    parser.add_argument("--system", action="store_true", help="also install the system packages that the tests use")
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
        print("environment: interrupted; the next call continues from here", file=sys.stderr)
        return 130
    return 0


def fingerprint() -> str:
    """Return a hash of everything that the environment is made from."""
    digest = hashlib.sha256()
    for part in (sys.version, str(ROOT), (ROOT / "pyproject.toml").read_text(), constraints().read_text()):
        digest.update(part.encode())
    return digest.hexdigest()


def constraints() -> Path:
    """Return the file with the pinned versions."""
    return ROOT / "constraints.txt"


def check_python() -> None:
    """Raise Refused for an unsupported Python version or a Python without venv; the message says what to install."""
    if not MIN_PYTHON <= sys.version_info[:2] <= MAX_PYTHON:
        raise Refused(
            f"{sys.executable} is Python {PYTHON}; Captioner needs Python 3.10, 3.11 or 3.12; "
            "name one with: make PYTHON=python3.11 ..."
        )
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise Refused(f"Python {PYTHON} has no venv module; on Debian or Ubuntu run: apt install python{PYTHON}-venv")


def check_libpython() -> None:
    """Raise Refused for a Python without its shared library, which tritonserver loads."""
    library = f"libpython{PYTHON}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR"), str(Path(sys.base_prefix) / "lib")]
    if not any(folder and (Path(folder) / library).exists() for folder in folders) and not loadable(library):
        raise Refused(
            f"Python {PYTHON} at {sys.base_prefix} has no shared library {library}, which tritonserver "
            f"loads; on Debian or Ubuntu run: apt install libpython{PYTHON} "
            "(with pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install)"
        )


def loadable(library: str) -> bool:
    """Return whether the dynamic loader finds `library`."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def check_machine(venv: Path) -> None:
    """Raise Refused for a platform without a wheel of tritonserver, and for a full disk."""
    target = f"{platform.system()} {platform.machine()} {platform.libc_ver()[0]}"
    if target != "Linux x86_64 glibc":
        raise Refused(
            f"this is {target.strip()}; tritonserver's wheel needs Linux x86_64 glibc; "
            "on other platforms use the containers: docker compose up"
        )
    folder = next(path for path in [venv, *venv.parents] if path.exists())
    free_gib = shutil.disk_usage(str(folder)).free / 2**30
    if free_gib < MIN_FREE_GIB:
        raise Refused(f"{folder} has {free_gib:.1f} GiB free; {MIN_FREE_GIB} GiB are needed")


def make(venv: Path) -> None:
    """Create `venv` and install everything at the pinned versions."""
    begin = time.monotonic()
    log_path = ROOT / "build" / "environment.log"
    log_path.parent.mkdir(exist_ok=True)
    python = venv / "bin" / "python"
    log_path.write_text("")
    if not same_python(python):
        run(f"creating {venv}", [sys.executable, "-m", "venv", "--clear", str(venv)], log_path, begin)
    install = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    install += ["--constraint", str(constraints())]
    # The pip of Python 3.11 needs three times as long to resolve the dependencies (measured: 160 s and 49 s).
    run("updating pip", [*install, "--upgrade", "pip"], log_path, begin)
    # Compiling all packages takes 80 s of CPU. Importing USED compiles only what is needed, and shows that it works.
    install += ["--no-compile", "--editable", f"{ROOT}[{EXTRAS}]"]
    run("installing packages (some minutes the first time)", install, log_path, begin)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    run("importing the packages once", [str(python), "-c", f"import {USED}"], log_path, begin)
    log(f"environment ready in {venv}", begin)


def same_python(python: Path) -> bool:
    """Return whether `python` runs and has this version, so that an interrupted installation can continue."""
    command = [str(python), "-c", "import sys, pip; print(sys.version)"]
    try:
        return subprocess.check_output(command, stderr=subprocess.DEVNULL).decode().strip() == sys.version
    except (OSError, subprocess.CalledProcessError):
        return False


def run(title: str, command: list[str], log_path: Path, begin: float) -> None:
    """Run `command` with its output in the log file, and print its progress now and then; raise Refused if it fails."""
    log(title, begin)
    start = log_path.stat().st_size if log_path.exists() else 0
    with log_path.open("ab") as log_file:
        process = subprocess.Popen(command, stdout=log_file, stderr=subprocess.STDOUT, cwd=str(ROOT))
        try:
            while True:
                try:
                    code = process.wait(PROGRESS_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    log("  " + progress(log_path.read_bytes()[start:].decode(errors="replace")), begin)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if code:
        last = [line[:200] for line in log_path.read_text(errors="replace").splitlines() if line.strip()][-5:]
        raise Refused("\n  ".join([f"{title} failed:", *last]) + f"\nthe whole log: {log_path}")


def progress(text: str) -> str:
    """Return a few words about what pip is doing, from its output so far."""
    if "Installing collected packages" in text:
        return f"unpacking {text.rpartition('Installing collected packages')[2].count(',') + 1} packages"
    found = text.count("Collecting ")
    return f"{found} packages found" if found else "still running"


def log(text: str, begin: float) -> None:
    """Print a line with the seconds since `begin`."""
    print(f"[{time.monotonic() - begin:6.1f} s] {text}", flush=True)


def install_system_packages() -> None:
    """Install the missing system packages of the tests; raise Refused where that is not allowed."""
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
