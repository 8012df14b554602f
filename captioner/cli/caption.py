"""`captioner caption`: stream the captions of a few files to the terminal, or run a bulk job."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.cli.caption_format import add_format, caption_edit, refuse, table_format
from captioner.cli.options import IN_PROCESS, LOCAL, RAY, SIDECARS, TABLES, add_parameters, add_server, parameters
from captioner.errors import CaptionerError, DeadlineExceeded
from captioner.image.formats import SYSTEM_FOLDERS

if TYPE_CHECKING:  # what captions is imported in `run`, so that `captioner --help` is quick
    from captioner.bulk.outputs.caption_edit import CaptionEdit
    from captioner.wire import Details

MAX_STREAMED = 8  # files; up to this number, files are captioned in order and each caption is streamed


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its options."""
    caption = verbs.add_parser("caption", help="caption images: files, folders, archives")
    caption.set_defaults(run=run)
    caption.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="files, folders, zip and tar archives, globs in quotes ('~/photos/**/*.{jpg,png}'), - for stdin, URLs",
    )
    caption.add_argument(
        "--allow-url", action="store_true", help="let this command fetch URLs, from public addresses only"
    )
    caption.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out files and folders of this name, or of this path if it has a /; repeatable; hidden ones and the "
        f"folders {', '.join(SYSTEM_FOLDERS)} are always left out",
    )
    caption.add_argument(
        "--dry-run", action="store_true", help="print what would be done with every file, and change nothing"
    )
    caption.add_argument("--json", action="store_true", help="short for --to jsonl: one object per file, with details")
    add_server(caption)
    output = caption.add_argument_group("output; a job that was stopped or killed resumes when it is run again")
    _add_output(output)
    add_format(output)
    _add_job(caption.add_argument_group("how a job runs"))
    add_parameters(caption)


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--to",
        choices=("stdout", *TABLES, *SIDECARS),
        default="stdout",
        help="stdout (default); one file of JSON lines or CSV; or for each image a .txt, an .xmp (dc:description and "
        "alternative text) or its own metadata (EXIF, XMP, and IPTC where the image has it, in JPEG, PNG, WebP and "
        "TIFF; pixels unchanged)",
    )
    group.add_argument(
        "--out", type=Path, help="FILE for jsonl and csv; FOLDER for sidecars, by default the folder of each image"
    )
    group.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="JSON lines of failures and of what is passed over: file, code, message",
    )


def _add_job(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--engine",
        choices=(LOCAL, IN_PROCESS, RAY),
        default=LOCAL,
        help="local: send requests to --server (default); in-process: run the model in this process, without a server; "
        "ray: send requests to --server from Ray workers",
    )
    group.add_argument(
        "--repository",
        type=Path,
        help="model repository of --engine in-process, which runs its live version; the embedded model is published "
        "first if there is none; default as for `captioner up`",
    )
    group.add_argument(
        "--workers", type=_at_least_one, metavar="N", help="number of workers for --engine ray, default 2"
    )
    # The default is captioner.client.DEFAULT_IN_FLIGHT, written out because importing it would delay `--help`.
    group.add_argument(
        "--in-flight", type=_at_least_one, default=32, metavar="N", help="concurrent requests, default %(default)s"
    )
    group.add_argument(
        "--retry-for",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="how long to retry while the server is busy, restarting or unreachable, default %(default)g",
    )
    group.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, help="progress bar, by default if stderr is a terminal"
    )


def run(arguments: argparse.Namespace) -> int:
    """Caption the images; see `cli.main` for the exit code."""
    from captioner.cli import caption_job

    if arguments.json and arguments.to == "stdout":
        arguments.to = "jsonl"
    _check(arguments)
    edit = caption_edit(arguments)
    caption_job.check_parameters(arguments)
    sources = caption_job.sources(arguments)
    if arguments.dry_run:
        return caption_job.run_dry(arguments, sources, edit)
    if arguments.engine == IN_PROCESS:
        caption_job.publish_embedded(arguments)
    else:
        asyncio.run(_wait_for_server(arguments.server, arguments.retry_for))
    files = sources.plain_files
    to_stdout = arguments.to == "stdout" or (arguments.to == "jsonl" and arguments.out is None)
    streams = arguments.engine == LOCAL and not arguments.report and caption_job.prompt_template(arguments) is None
    if to_stdout and files and len(files) <= MAX_STREAMED and streams:
        return _stream_files(arguments, files, edit)
    return asyncio.run(caption_job.run_job(arguments, sources, edit))


async def _wait_for_server(address: str, retry_for_s: float) -> None:
    """Return when a server answers. Raises the last error after `retry_for_s`, before any image is read."""
    from captioner.client import AsyncClient, RetryPolicy
    from captioner.client.retry import is_transient

    began = time.monotonic()
    try:
        async with AsyncClient(address) as client:
            await client.describe()
    except CaptionerError as error:
        left_s = began + retry_for_s - time.monotonic()
        if not is_transient(error) or left_s <= 0:
            raise
        print(f"{error.wire()}; trying again for {retry_for_s:g} s", file=sys.stderr, flush=True)
        async with AsyncClient(address, retry=RetryPolicy(left_s)) as client:
            await client.describe()


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _check(arguments: argparse.Namespace) -> None:
    """Raise OutputRefused for options that contradict each other."""
    to = arguments.to
    refuse(
        {
            f"--json is --to jsonl, not --to {to}": arguments.json and to != "jsonl",
            "--out needs --to, which says what is written": arguments.out is not None and to == "stdout",
            "--workers is for --engine ray": arguments.workers is not None and arguments.engine != RAY,
            "--repository is for --engine in-process": arguments.repository is not None
            and arguments.engine != IN_PROCESS,
            f"--retry-for is {arguments.retry_for:g}; it must be 0 or more seconds": not arguments.retry_for >= 0,
        }
    )


def _stream_files(arguments: argparse.Namespace, files: list[str], edit: CaptionEdit) -> int:
    """Print one line for each file, as the caption is written."""
    from captioner.bulk.sources.item import bytes_to_send
    from captioner.client import Client, RetryPolicy

    values, lines = parameters(arguments), table_format(arguments)
    failed = 0
    with Client(arguments.server, retry=RetryPolicy(arguments.retry_for)) as client:
        for path in files:
            lead = f"{path}: " if len(files) > 1 else ""
            try:
                image = bytes_to_send(path)
                if arguments.to == "jsonl":
                    caption = client.caption(image, **values)
                    _check_complete(caption.details)
                    print(lines.line(path, edit.decorated(caption.text), caption.details).decode(), end="")
                    continue  # the details say whether the image was shrunk
                with client.stream(image, **values) as stream:
                    if edit.streams:
                        lead += edit.prefix
                        for piece in stream:  # the lead comes with the first text: a refused image prints nothing
                            print(lead + piece, end="", flush=True)
                            lead = ""
                        print(edit.suffix)
                    else:
                        print(lead + edit.decorated("".join(stream)))
                if stream.details and (shrunk_from := stream.details.image.shrunk_from):
                    print(f"{path}: shrunk from {shrunk_from} before it was captioned", file=sys.stderr)
                _check_complete(stream.details)
            except (CaptionerError, OSError) as error:
                failed += 1
                sentence = error.wire() if isinstance(error, CaptionerError) else f"{error.strerror}"
                print(f"{path}: {sentence}", file=sys.stderr)
    return 0 if not failed else 2 if failed == len(files) else 1


def _check_complete(details: Details | None) -> None:
    """Raise DeadlineExceeded for a caption that the deadline cut."""
    if details is not None and details.finish_reason == "deadline":
        raise DeadlineExceeded(f"the deadline cut the caption after {details.tokens} tokens")
