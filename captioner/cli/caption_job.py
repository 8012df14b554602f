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

from captioner import wire
from captioner.artifacts.repository_templates import default_repository
from captioner.bulk.dry_run import ReadJournal, ReadTable, dry_run
from captioner.bulk.engines.base import BulkEngine
from captioner.bulk.engines.in_process import INSTALL, InProcessEngine
from captioner.bulk.engines.server import ServerEngine
from captioner.bulk.job import Job
from captioner.bulk.outputs import owner, sidecars, tables
from captioner.bulk.outputs.base import Output
from captioner.bulk.outputs.caption_edit import CaptionEdit
from captioner.bulk.outputs.journal import Journal
from captioner.bulk.progress import Progress
from captioner.bulk.prompt_template import PromptTemplate
from captioner.bulk.report import Report
from captioner.bulk.sources.discover import Sources
from captioner.bulk.sources.leave_out import LeaveOut
from captioner.bulk.sources.streams import STDIN, is_url
from captioner.cli.caption_format import sidecar_format, table_format
from captioner.cli.options import IN_PROCESS, RAY, SIDECARS, parameters
from captioner.errors import ImageRefused, OutputRefused, StartupRefused
from captioner.publish.ensure_published import ensure_published


def publish_embedded(arguments: argparse.Namespace) -> None:
    """Publish the embedded model into the repository of --engine in-process if nothing is published there.

    Call it outside the event loop, because Ctrl-C does not interrupt code that blocks the loop.
    """
    try:
        ensure_published(None, _repository(arguments), lambda text: print(text, file=sys.stderr, flush=True))
    except ImportError as error:
        raise StartupRefused(f"--engine in-process needs {error.name}; run: {INSTALL}") from error


def sources(arguments: argparse.Namespace) -> Sources:
    """Return the images of the command's PATHs, without what is left out.

    Raises ImageMissing for a missing path, and ImageRefused for a URL without --allow-url.
    """
    if url := next(filter(is_url, arguments.paths), None):
        if not arguments.allow_url:
            raise ImageRefused(f"{url} is on the web; give --allow-url to fetch it")
        try:
            import captioner.client.image_fetcher  # noqa: F401
        except ImportError as error:
            raise StartupRefused(f"--allow-url needs {error.name}; run: pip install httpcore anyio") from error
    copies = Path(os.path.abspath(arguments.out)) if arguments.to == "exif" and arguments.out else None  # noqa: PTH100
    leave_out = LeaveOut(
        arguments.exclude, lambda folder: folder == copies or owner.holds_copies(folder), arguments.extension
    )
    return Sources(arguments.paths, leave_out)


def check_parameters(arguments: argparse.Namespace) -> None:
    """Raise a ParameterRefused for a value that no model takes."""
    prompt_template(arguments)
    values = _given_parameters(arguments)
    wire.check_prompt(values.pop("prompt", ""))
    wire.parse_parameters(wire.encode_parameters(values))


def run_dry(arguments: argparse.Namespace, sources: Sources, edit: CaptionEdit) -> int:
    """Print what the job would do."""
    progress, report = Progress(shown=False), Report(arguments.report)
    try:
        return dry_run(sources, _output(arguments, sources, edit, progress), progress, report)
    except BrokenPipeError:
        return 1


async def run_job(arguments: argparse.Namespace, sources: Sources, edit: CaptionEdit) -> int:
    """Run a job over all images."""
    is_table = arguments.to not in SIDECARS
    to_stdout = is_table and arguments.out is None
    bar = arguments.progress
    progress = Progress(sys.stderr.isatty() and not (to_stdout and sys.stdout.isatty()) if bar is None else bar)
    job = Job(
        sources,
        _engine(arguments),
        _output(arguments, sources, edit, progress),
        progress,
        report=Report(arguments.report),
        give_up_s=arguments.retry_for,
        in_order=is_table,
        can_resume=not to_stdout,
        prompt=prompt_template(arguments),
    )
    return await job.run()


def prompt_template(arguments: argparse.Namespace) -> PromptTemplate | None:
    """Return the prompt if it has fields that each image fills. Raises ParameterInvalid for a missing name."""
    return PromptTemplate.of(arguments.prompt, arguments.name)


def _engine(arguments: argparse.Namespace) -> BulkEngine:
    values, in_flight = _given_parameters(arguments), arguments.in_flight
    if prompt_template(arguments) is not None:
        del values["prompt"]
        values.pop("name", None)
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
    """Return the output, and claim it for the sources. A dry run gets one that only reads."""
    to, out, folder = arguments.to, arguments.out, arguments.to in SIDECARS
    if folder and out is None and sources.named_archives:
        raise OutputRefused(
            f"nothing can be written beside an image in {sources.named_archives[0]}; name a folder with --out"
        )
    if folder and out is not None and out.exists() and not out.is_dir():
        raise OutputRefused(f"{out} is a file; --to {to} needs a folder")
    if sources.streams and (folder or (out is not None and STDIN in sources.streams)):
        raise OutputRefused(
            f"{sources.streams[0]} is no file, so its caption goes to stdout, or for a URL to jsonl or csv"
        )
    written = out if out is None or folder else tables.written_path(out, edit)
    prefix, used = None, False
    if written is not None and sources.base is not None:
        prefix, used = owner.owned_prefix(written, sources.base, folder=folder), owner.is_used(written)
        sources.key_prefix = prefix or ""
    output = _sidecars(arguments, sources, edit, progress) if folder else _table(arguments, edit)
    if written is None or sources.base is None:
        return output
    if used and prefix is None:
        progress.log(f"{written} names no folder of images; its captions are taken for those of {sources.base}")
    if not arguments.dry_run:
        if prefix is None:
            owner.own(written, sources.base, folder=folder)
        if to == "exif":
            owner.mark_copies(written)
    return output


def _table(arguments: argparse.Namespace, edit: CaptionEdit) -> Output:
    lines, out = table_format(arguments), arguments.out
    if arguments.dry_run:
        return ReadTable(lines, None if out is None else tables.written_path(out, edit))
    return tables.Stdout(lines, edit) if out is None else tables.Table(lines, edit, out)


def _sidecars(arguments: argparse.Namespace, sources: Sources, edit: CaptionEdit, progress: Progress) -> Output:
    to, out, journal, kind = arguments.to, arguments.out, None, sidecar_format(arguments)
    if edit.existing != "skip":
        folder = out or sources.folder
        # Relative paths: the folder may be moved together with its journal.
        locations = [os.path.relpath(location, folder) for location in sources.locations]
        job = [locations, to, arguments.extension, asdict(edit), _given_parameters(arguments)]
        name = hashlib.sha256(json.dumps(job).encode()).hexdigest()[:12]
        path = folder / f".captioner-{name}.journal"
        journal = ReadJournal(path) if arguments.dry_run else Journal(path)
    return sidecars.Sidecars(kind, edit, out, journal, progress.log, arguments.keep_dates)


def _repository(arguments: argparse.Namespace) -> Path:
    return arguments.repository or default_repository()


def _given_parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in parameters(arguments).items() if value is not None}
