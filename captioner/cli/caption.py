"""`captioner caption`: a caption to the terminal as it is written, or a job over folders and archives."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.cli.options import add_parameters, add_server, parameters
from captioner.errors import CaptionerError, OutputRefused

if TYPE_CHECKING:  # what a job needs is imported when there is one: `captioner --help` stays quick
    from captioner.bulk.engines.base import BulkEngine
    from captioner.bulk.outputs.base import Output
    from captioner.bulk.outputs.caption_edit import Edit
    from captioner.bulk.progress import Progress
    from captioner.bulk.sources.discover import Sources

FEW = 8  # named files that are captioned one after the other, each as it is written
TABLES, SIDECARS = ("jsonl", "csv"), ("txt", "xmp", "exif")
PATHS = "files, folders, globs in quotes ('photos/**/*.jpg'), zip and tar archives"


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The verb and its options."""
    caption = verbs.add_parser("caption", help="caption images: files, folders, archives")
    caption.set_defaults(run=run)
    caption.add_argument("paths", nargs="+", metavar="PATH", help=PATHS)
    caption.add_argument("--json", action="store_true", help="short for --to jsonl: an object a file, with all details")
    add_server(caption)
    put = caption.add_argument_group("where captions go; a job that was stopped or killed goes on when run again")
    put.add_argument(
        "--to",
        choices=("stdout", *TABLES, *SIDECARS),
        default="stdout",
        help="stdout (default), one file of JSON lines or CSV, or each image's own .txt, .xmp (dc:description) or EXIF "
        "(ImageDescription in JPEG and PNG, pixels untouched)",
    )
    put.add_argument("--out", type=Path, help="FILE of jsonl or csv; FOLDER for sidecars, default beside each image")
    put.add_argument(
        "--existing",
        choices=("skip", "overwrite", "append", "prepend"),
        default="skip",
        help="where a caption is there: leave it (default), replace it, write behind or before it (sidecars alone)",
    )
    put.add_argument("--separator", help="between what is there and what is appended or prepended, default a space")
    put.add_argument("--prefix", default="", help="text in front of every caption")
    put.add_argument("--suffix", default="", help="text behind every caption")
    put.add_argument(
        "--trigger", default="", metavar="WORD", help="word in front of all, with a comma, as trainers ask"
    )
    put.add_argument("--report", type=Path, metavar="FILE", help="JSON lines of what failed: file, code, message")
    job = caption.add_argument_group("how a job runs")
    job.add_argument(
        "--engine",
        choices=("local", "in-process", "ray"),
        default="local",
        help="local: ask --server (default); in-process: load the published model here, without Triton; ray: spread "
        "over a Ray cluster",
    )
    job.add_argument("--repository", type=Path, help="model repository of --engine in-process")
    job.add_argument("--workers", type=_at_least_one, metavar="N", help="of --engine ray, default 2")
    # captioner.client.DEFAULT_IN_FLIGHT, which `--help` does not wait for.
    job.add_argument("--in-flight", type=_at_least_one, default=32, metavar="N", help="requests at once, default 32")
    job.add_argument(
        "--retry-for",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="how long a busy, restarting or absent server is asked again, default 120",
    )
    job.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, help="a bar, default where stderr is a terminal"
    )
    add_parameters(caption)


def run(arguments: argparse.Namespace) -> int:
    """A caption a file; see cli.main for the exit code."""
    from captioner.bulk.sources.discover import Sources

    if arguments.json and arguments.to == "stdout":
        arguments.to = "jsonl"
    edit = _edit(arguments)
    sources = Sources(arguments.paths)
    files = sources.plain_files
    shown = arguments.to == "stdout" or (arguments.to == "jsonl" and arguments.out is None)
    if shown and files and len(files) <= FEW and arguments.engine == "local" and not arguments.report:
        return _one_by_one(arguments, files, edit)
    return asyncio.run(_job(arguments, sources, edit))


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _edit(arguments: argparse.Namespace) -> Edit:
    """What is asked of the texts; whatever does not go together is refused by name."""
    from captioner.bulk.outputs.caption_edit import Edit

    to, existing, joins = arguments.to, arguments.existing, arguments.existing in ("append", "prepend")
    refusals = {
        f"--json is --to jsonl, not --to {to}": arguments.json and to != "jsonl",
        "--out needs --to, which says what is written": arguments.out is not None and to == "stdout",
        f"--existing {existing} is for sidecars (txt, xmp, exif); {to} takes skip or overwrite": joins and to in TABLES,
        f"--existing {existing} needs an output that is kept, see --to": existing != "skip"
        and (to == "stdout" or (to in TABLES and arguments.out is None)),
        "--separator is for --existing append and prepend": arguments.separator is not None and not joins,
        "--workers is for --engine ray": arguments.workers is not None and arguments.engine != "ray",
        "--repository is for --engine in-process": arguments.repository is not None
        and arguments.engine != "in-process",
        f"--retry-for is {arguments.retry_for:g}; it must be 0 or more seconds": not arguments.retry_for >= 0,
    }
    for sentence, refused in refusals.items():
        if refused:
            raise OutputRefused(sentence)
    separator = " " if arguments.separator is None else arguments.separator
    return Edit(existing, arguments.prefix, arguments.suffix, arguments.trigger, separator)


def _one_by_one(arguments: argparse.Namespace, files: list[str], edit: Edit) -> int:
    """A line a file, written as the caption comes."""
    from captioner.bulk.outputs.tables import Jsonl
    from captioner.client import Client

    asked = parameters(arguments)
    failed = 0
    with Client(arguments.server) as client:
        for path in files:
            lead = (f"{path}: " if len(files) > 1 else "") + edit.lead
            try:
                if arguments.to == "jsonl":
                    caption = client.caption(path, **asked)
                    print(Jsonl().line(path, edit.decorated(caption.text), caption.details).decode(), end="")
                    continue
                with client.stream(path, **asked) as stream:
                    for piece in stream:  # nothing is printed for an image that is refused
                        print(lead + piece, end="", flush=True)
                        lead = ""
                    print(edit.suffix)
            except (CaptionerError, OSError) as error:
                failed += 1
                sentence = error.wire() if isinstance(error, CaptionerError) else f"{error.strerror}"
                print(f"{path}: {sentence}", file=sys.stderr)
    return 0 if not failed else 2 if failed == len(files) else 1


async def _job(arguments: argparse.Namespace, sources: Sources, edit: Edit) -> int:
    """A job over all the images; the server is asked first, so that none is read in vain."""
    from captioner.bulk.job import Job
    from captioner.bulk.progress import Progress
    from captioner.client import AsyncClient

    if arguments.engine != "in-process":
        async with AsyncClient(arguments.server) as client:
            await client.describe()
    to_stdout = arguments.to not in SIDECARS and arguments.out is None
    shown = arguments.progress
    progress = Progress(sys.stderr.isatty() and not (to_stdout and sys.stdout.isatty()) if shown is None else shown)
    job = Job(
        sources,
        _engine(arguments),
        _output(arguments, sources, edit, progress),
        progress,
        report=arguments.report,
        give_up_s=arguments.retry_for,
        again="" if to_stdout else "the same command goes on with what is left",
    )
    return await job.run()


def _asked(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in parameters(arguments).items() if value is not None}


def _engine(arguments: argparse.Namespace) -> BulkEngine:
    asked = _asked(arguments)
    if arguments.engine == "ray":
        from captioner.bulk.engines import ray

        return ray.engine(
            server=arguments.server,
            workers=arguments.workers or 2,
            in_flight=arguments.in_flight,
            parameters=asked,
            retry_for_s=arguments.retry_for,
        )
    if arguments.engine == "in-process":
        return _in_process(arguments, asked)
    from captioner.bulk.engines.server import ServerEngine

    return ServerEngine(
        arguments.server, in_flight=arguments.in_flight, retry_for_s=arguments.retry_for, parameters=asked
    )


def _in_process(arguments: argparse.Namespace, asked: dict[str, Any]) -> BulkEngine:
    from captioner.artifacts.repository_templates import default_repository
    from captioner.bulk.engines.in_process import InProcessEngine
    from captioner.publish.ensure_published import ensure_published

    repository = arguments.repository or default_repository()
    ensure_published(None, repository, lambda text: print(text, file=sys.stderr, flush=True))
    return InProcessEngine(repository, in_flight=arguments.in_flight, parameters=asked)


def _output(arguments: argparse.Namespace, sources: Sources, edit: Edit, progress: Progress) -> Output:
    from captioner.bulk.outputs import sidecars, tables
    from captioner.bulk.outputs.journal import Journal

    to, out = arguments.to, arguments.out
    if to not in SIDECARS:
        form = tables.FORMS[to]()
        return tables.Stdout(form, edit) if out is None else tables.Table(form, edit, out)
    if out is not None and out.exists() and not out.is_dir():
        raise OutputRefused(f"{out} is a file; --to {to} wants a folder")
    journal = None
    if edit.existing != "skip":
        folder = out or sources.folder
        # Relative: the photos may be moved, journal and all.
        places = [os.path.relpath(place, folder) for place in sources.places]
        name = hashlib.sha256(json.dumps([places, to, asdict(edit), _asked(arguments)]).encode()).hexdigest()[:12]
        journal = Journal(folder / f".captioner-{name}.journal")
    return sidecars.Sidecars(sidecars.FORMS[to](), edit, out, journal, progress.say)
