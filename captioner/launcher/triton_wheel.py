"""The tritonserver inside the wheel `nvidia-pytriton`: its files, and the environment it needs.

It knows files and environment variables, not processes.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from pathlib import Path

from captioner.errors import StartupRefused
from captioner.machine import usable_cores

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 12)
_STUB = "triton_python_backend_stub"
_BACKENDS = Path(__file__).parent / "backends"


def triton_root() -> Path:
    """Return the wheel's folder with `bin`, `backends` and one stub executable per Python version.

    Raises StartupRefused if the wheel or the stub of this Python version is missing.
    """
    if not OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        raise StartupRefused(f"this is Python {_python()}; Captioner needs Python 3.10, 3.11 or 3.12")
    package = importlib.util.find_spec("pytriton")
    if package is None or not package.submodule_search_locations:
        raise StartupRefused(
            "the package nvidia-pytriton, which brings tritonserver, is not installed in "
            f"{sys.prefix}; run: {sys.executable} -m pip install 'captioner[server]'"
        )
    root = Path(package.submodule_search_locations[0]) / "tritonserver"
    if not (root / "python_backend_stubs" / _python() / _STUB).is_file():
        raise StartupRefused(f"nvidia-pytriton in {root.parent} brings no tritonserver for Python {_python()}")
    return root


def build(folder: Path) -> Path:
    """Copy the `python` backend for this Python version and our `onnxruntime` backend into `folder`; return it.

    They are copies because tritonserver refuses a symbolic link to a backend library outside the folder.
    """
    root = triton_root()
    python = folder / "python"
    python.mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copy2(root / "backends" / "python" / name, python)
    shutil.copy2(root / "python_backend_stubs" / _python() / _STUB, python)
    shutil.copytree(_BACKENDS, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def environment() -> dict[str, str]:
    """Return the environment in which the server and its stubs find this Python, its packages and its libraries.

    Raises StartupRefused if there is no shared libpython.
    """
    from find_libpython import find_libpython

    libpython = find_libpython()
    if libpython is None or ".so" not in Path(libpython).name:
        raise StartupRefused(
            f"Python {_python()} at {sys.base_prefix} has no shared libpython{_python()}.so, which "
            f"tritonserver loads; on Debian or Ubuntu run: apt install libpython{_python()} (with pyenv, "
            "build Python with PYTHON_CONFIGURE_OPTS=--enable-shared)"
        )
    wheel_libraries = triton_root().parents[1] / "nvidia_pytriton.libs"
    return {
        # From Python 3.11 on, the stub ignores PYTHONPATH and takes its prefix from the first python3 on PATH.
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ.get("PATH", os.defpath)]),
        "LD_LIBRARY_PATH": os.pathsep.join([str(wheel_libraries), str(Path(libpython).parent)]),
        # Torch counts the host's cores, not the container's share of them: too many threads make it slow.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(usable_cores())),
        # The decoder's threads wait awake from one operation to the next, but soon leave the cores to the encoder.
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "20000"),
        # With a GPU in sight, KIND_AUTO would use it, which a CPU build of ONNX Runtime cannot.
        **({} if _has("onnxruntime-gpu") else {"CUDA_VISIBLE_DEVICES": ""}),
    }


def _has(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _python() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"
