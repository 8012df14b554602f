"""A night's job over a folder as people have them: killed twice, its server restarted, every caption checked.

    python -m benchmarks.night [--photos 3000] [--repository build/soak]

It makes the folder (crops of the shipped examples; names of every kind, broken files, two folders of equal names, a
read-only folder, old captions, one of them in Latin-1), starts `captioner up` and runs

    captioner caption FOLDER --to txt --existing append --report FILE

until it ends by itself. The job is killed with SIGKILL after a quarter and after a half of the captions, and the server
is stopped and started again after three quarters. Then every photo must have exactly one right caption, behind its old
one if there was one, or one line in the report. Right is the caption that the client gets for this photo alone. The
last line of stdout is one JSON document; the exit code is 1 if a claim fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.measurement import machine
from benchmarks.night_folder import OLD, OLD_LATIN_1, Made, make
from benchmarks.running_stack import RunningStack
from captioner.client import AsyncClient

SEED = 16
KILL_AT = (0.25, 0.5)  # share of the captions
RESTART_AT = 0.75
POLL_S, JOB_S = 0.2, 3600
# root may write into a read-only folder; without these capabilities it may not
AS_A_USER = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")


class Night:
    """The job's runs over one folder."""

    def __init__(self, stack: RunningStack, folder: Path, report: Path, made: Made) -> None:
        self._stack, self._made, self.report = stack, made, report
        self._command = [
            *(AS_A_USER if os.geteuid() == 0 else ()),
            *(sys.executable, "-m", "captioner.cli", "caption", str(folder), "--server", stack.grpc),
            *("--to", "txt", "--existing", "append", "--report", str(report)),
        ]
        self.kills = self.restarts = 0
        self.last_exit: int | None = None
        self.summary = ""

    def run(self) -> None:
        """Run the job again and again, with what happens in the night, until it ends by itself."""
        kill_at = [share * len(self._made.sidecars) for share in KILL_AT]
        restart_at = RESTART_AT * len(self._made.sidecars)
        end = time.monotonic() + JOB_S
        while self.last_exit is None:
            with tempfile.TemporaryFile("w+") as log:
                job = subprocess.Popen(self._command, stderr=log)
                while job.poll() is None:
                    if time.monotonic() > end:
                        job.kill()
                        raise RuntimeError(f"the job did not end within {JOB_S} s")
                    captions = self._captions()
                    if kill_at and captions >= kill_at[0]:
                        del kill_at[0]
                        job.kill()
                    elif not self.restarts and captions >= restart_at:
                        self.restarts += 1
                        self._stack.restart()
                    time.sleep(POLL_S)
                if job.returncode == -9:
                    self.kills += 1
                    continue
                log.seek(0)
                self.last_exit, self.summary = job.returncode, log.read()

    def _captions(self) -> int:
        return sum(_text(path) not in ("", OLD) for path in self._made.sidecars.values())


def _text(path: Path) -> str:
    try:
        return path.read_text().removesuffix("\n")
    except FileNotFoundError:
        return ""


async def right_captions(grpc: str, photos: list[Path]) -> dict[Path, str]:
    """Return the caption of each photo."""
    found: dict[Path, str] = {}
    remaining = iter(photos)

    async def ask(client: AsyncClient) -> None:
        for photo in remaining:
            found[photo] = (await client.caption(photo.read_bytes())).text

    async with AsyncClient(grpc) as client:
        await asyncio.gather(*(ask(client) for _ in range(32)))
    return found


def faults(made: Made, folder: Path, right: dict[Path, str], reported: Counter[str], before: set[Path]) -> list[str]:
    """Return what is wrong with the folder after the night."""
    found = []
    for photo, sidecar in made.sidecars.items():
        expected = f"{OLD} {right[photo]}" if sidecar in before else right[photo]
        if _text(sidecar) != expected:
            found.append(f"{photo.relative_to(folder)}: {_text(sidecar)!r} is not {expected!r}")
    refused = Counter(str(photo.relative_to(folder)) for photo in made.refused)
    found += [
        f"{name}: reported {reported[name]} times" for name in {*reported, *refused} if reported[name] != refused[name]
    ]
    if (folder / "latin-1.txt").read_bytes() != OLD_LATIN_1:
        found.append("latin-1.txt was changed")
    expected_files = {*made.sidecars, *made.sidecars.values(), *made.refused, folder / "latin-1.txt"}
    surplus = {path for path in folder.rglob("*") if path.is_file()} - expected_files
    return found + [
        f"{path.relative_to(folder)}: nobody asked for this file" for path in surplus if path.suffix != ".journal"
    ]


def measure(photos: int, repository: Path) -> dict[str, Any]:
    """Run the night and return the JSON document."""
    with tempfile.TemporaryDirectory(prefix="captioner-night-") as name, RunningStack(repository) as stack:
        folder = Path(name) / "photos"
        made = make(folder, photos, SEED)
        before = {path for path in made.sidecars.values() if path.exists()}
        night = Night(stack, folder, Path(name) / "report.jsonl", made)
        began = time.perf_counter()
        night.run()
        seconds = time.perf_counter() - began
        lines = [json.loads(line) for line in night.report.read_text().splitlines()]
        right = asyncio.run(right_captions(stack.grpc, list(made.sidecars)))
        reported = Counter(line["file"] for line in lines if line["code"] != "PASSED_OVER")
        wrong = faults(made, folder, right, reported, before)
        (folder / "locked").chmod(0o755)
    print(night.summary)
    return {
        "benchmark": "night",
        "photos": photos,
        "captioned": len(made.sidecars),
        "different_captions": len(set(right.values())),
        "reported": dict(Counter(line["code"] for line in lines)),
        "kills": night.kills,
        "server_restarts": night.restarts,
        "exit_code": night.last_exit,
        "seconds": round(seconds, 1),
        "faults": wrong[:20],
        "machine": machine(),
    }


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=3000, help="files in the folder (default %(default)s)")
    parser.add_argument("--repository", type=Path, default=Path("build/soak"), help="default %(default)s")
    options = parser.parse_args()
    document = measure(options.photos, options.repository)
    print(json.dumps(document))
    sys.exit(bool(document["faults"]) or document["exit_code"] != 1)


if __name__ == "__main__":
    main()
