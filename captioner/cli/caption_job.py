"""Build and run the bulk job that the options of `captioner caption` describe. Imported only when a job runs."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from captioner.artifacts.repository_templates import default_repository
from captioner.bulk.engines.base import BulkEngine
from captioner.bulk.engines.in_process import INSTALL, InProcessEngine
from captioner.bulk.engines.server import ServerEngine
from captioner.bulk.job import Job
from captioner.bulk.outputs import sidecars, tables
from captioner.bulk.outputs.base import Output
from captioner.bulk.outputs.caption_edit import CaptionEdit
from captioner.bulk.outputs.journal import Journal
from captioner.bulk.progress import Progress
from captioner.bulk.sources.discover import Sources
from captioner.cli.caption_format import sidecar_format, table_format
from captioner.cli.options import IN_PROCESS, RAY, SIDECARS, parameters
from captioner.client import AsyncClient
from captioner.errors import OutputRefused, StartupRefused
from captioner.publish.ensure_published import ensure_published


def publish_embedded(arguments: argparse.Namespace) -> None:
    """Publish the embedded model into the repository of --engine in-process if nothing is published there.

    Call it outside the event loop, because Ctrl-C does not interrupt code that blocks the loop.
    """
    try:
        ensure_published(None, _repository(arguments), lambda text: print(text, file=sys.stderr, flush=True))
    except ImportError as error:
        raise StartupRefused(f"--engine in-process needs {error.name}; run: {INSTALL}") from error


async def run_job(arguments: argparse.Namespace, sources: Sources, edit: CaptionEdit) -> int:
    """Run a job over all images. An unreachable server fails the job before any image is read."""
    if arguments.engine != IN_PROCESS:
        async with AsyncClient(arguments.server) as client:
            await client.describe()
    to_stdout = arguments.to not in SIDECARS and arguments.out is None
    bar = arguments.progress
    progress = Progress(sys.stderr.isatty() and not (to_stdout and sys.stdout.isatty()) if bar is None else bar)
    job = Job(
        sources,
        _engine(arguments),
        _output(arguments, sources, edit, progress),
        progress,
        report=arguments.report,
        give_up_s=arguments.retry_for,
        resume_hint="" if to_stdout else "run the same command again to resume",
    )
    return await job.run()


def _engine(arguments: argparse.Namespace) -> BulkEngine:
    values, in_flight = _given_parameters(arguments), arguments.in_flight
    if arguments.engine == RAY:
        from captioner.bulk.engines import ray

        return ray.engine(
            server=arguments.server,
            workers=arguments.workers or 2,
            in_flight=in_flight,
            parameters=values,
            retry_for_s=arguments.retry_for,
        )
    if arguments.engine == IN_PROCESS:
        return InProcessEngine(_repository(arguments), in_flight=in_flight, parameters=values)
    return ServerEngine(arguments.server, in_flight=in_flight, retry_for_s=arguments.retry_for, parameters=values)


def _output(arguments: argparse.Namespace, sources: Sources, edit: CaptionEdit, progress: Progress) -> Output:
    to, out = arguments.to, arguments.out
    if to not in SIDECARS:
        lines = table_format(arguments)
        return tables.Stdout(lines, edit) if out is None else tables.Table(lines, edit, out)
    if out is not None and out.exists() and not out.is_dir():
        raise OutputRefused(f"{out} is a file; --to {to} needs a folder")
    journal, kind = None, sidecar_format(arguments)
    if edit.existing != "skip":
        folder = out or sources.folder
        # Relative paths: the folder may be moved together with its journal.
        locations = [os.path.relpath(location, folder) for location in sources.locations]
        job = [locations, to, arguments.extension, asdict(edit), _given_parameters(arguments)]
        name = hashlib.sha256(json.dumps(job).encode()).hexdigest()[:12]
        journal = Journal(folder / f".captioner-{name}.journal")
    return sidecars.Sidecars(kind, edit, out, journal, progress.log, arguments.keep_dates)


def _repository(arguments: argparse.Namespace) -> Path:
    return arguments.repository or default_repository()


def _given_parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in parameters(arguments).items() if value is not None}
