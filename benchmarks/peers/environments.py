"""An environment for each peer, under build/peers. All share one torch and transformers: this environment's."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / "build" / "peers"


def python(name: str, requirements: tuple[str, ...]) -> Path:
    """Return the interpreter of the peer's environment; make it first if it lacks the requirements.

    Raises subprocess.CalledProcessError if a package cannot be installed.
    """
    if not requirements:
        return Path(sys.executable)
    folder = ENVIRONMENTS / name
    interpreter, installed = folder / "bin" / "python", folder / "installed.txt"
    wanted = "\n".join(requirements)
    if installed.is_file() and installed.read_text() == wanted:
        return interpreter
    venv.create(folder, clear=True, with_pip=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    shared = sysconfig.get_path("purelib")
    (site_packages / "shared.pth").write_text(f"import site; site.addsitedir({shared!r})\n")
    install = [str(interpreter), "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements]
    subprocess.run(install, check=True)
    installed.write_text(wanted)
    return interpreter
