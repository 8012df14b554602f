"""The options of `captioner caption` that say how a text is edited and how its file looks. They are checked here."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from captioner.artifacts.prompts import lists_tags
from captioner.cli.options import SIDECARS, TABLES
from captioner.errors import OutputRefused

if TYPE_CHECKING:  # imported when a job runs, so that `captioner --help` is quick
    from captioner.bulk.outputs.caption_edit import CaptionEdit
    from captioner.bulk.outputs.sidecar_formats import SidecarFormat
    from captioner.bulk.outputs.table_formats import Csv, Jsonl, Text

MAX_EDITS, MAX_EDIT_CHARACTERS = 100, 500  # of --drop and --replace each


def add_format(group: argparse._ArgumentGroup) -> None:
    """Add the options."""
    group.add_argument(
        "--existing",
        choices=("skip", "overwrite", "append", "prepend"),
        default="skip",
        help="what to do with an existing caption: keep it and skip the image (default), replace it, or, in sidecars, "
        "add the new caption after or before it",
    )
    group.add_argument(
        "--separator",
        help='text between an existing and an added caption, default " ", or ", " for styles that list tags',
    )
    group.add_argument("--prefix", default="", help="text before every caption")
    group.add_argument("--suffix", default="", help="text after every caption")
    group.add_argument(
        "--trigger", default="", metavar="WORD", help="trigger word for training, once, first in the text, with a comma"
    )
    limits = f"repeatable, up to {MAX_EDITS} times {MAX_EDIT_CHARACTERS} characters"
    group.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="TEXT",
        help=f"leave out the sentences or tags that hold these words, in any case; {limits}",
    )
    group.add_argument(
        "--replace", action="append", default=[], metavar="A=B", help=f"write B for the words A, as spelt; {limits}"
    )
    group.add_argument("--extension", metavar=".EXT", help="extension of txt sidecars, such as .caption; default .txt")
    group.add_argument(
        "--columns",
        metavar="NAME=VALUE,...",
        help="columns of jsonl and csv, as file_name=file,text=caption; values: file, caption, details and regions "
        "(jsonl only), and each field of the details; file is needed",
    )
    group.add_argument("--bom", action="store_true", help="begin csv with a byte order mark, for Excel")
    group.add_argument(
        "--keep-dates", action="store_true", help="images and sidecars that are changed keep their dates"
    )


def caption_edit(arguments: argparse.Namespace) -> CaptionEdit:
    """Return the edit of the captions. Raises OutputRefused for a wrong or misplaced option."""
    from captioner.bulk.outputs.caption_edit import CaptionEdit

    to, existing, joins = arguments.to, arguments.existing, arguments.existing in ("append", "prepend")
    refuse(
        {
            f"--existing {existing} is for sidecars (txt, xmp, exif); {to} takes skip or overwrite": joins
            and to in TABLES,
            f"--existing {existing} needs an output file or folder, see --to": existing != "skip"
            and (to == "stdout" or (to in TABLES and arguments.out is None)),
            "--separator is for --existing append and prepend": arguments.separator is not None and not joins,
            "--extension is for --to txt": arguments.extension is not None and to != "txt",
            "--columns is for --to jsonl and csv": arguments.columns is not None and to not in TABLES,
            "--bom is for --to csv": arguments.bom and to != "csv",
            f"--keep-dates is for {', '.join(SIDECARS)}": arguments.keep_dates and to not in SIDECARS,
        }
    )
    for option, texts in (("--drop", arguments.drop), ("--replace", arguments.replace)):
        if len(texts) > MAX_EDITS or not all(0 < len(text) <= MAX_EDIT_CHARACTERS for text in texts):
            raise OutputRefused(f"{option} takes up to {MAX_EDITS} texts of 1 to {MAX_EDIT_CHARACTERS} characters")
    pairs = tuple(_pair(text, "--replace", "A=B") for text in arguments.replace)
    is_tags = lists_tags(arguments.style)
    separator = (", " if is_tags else " ") if arguments.separator is None else arguments.separator
    return CaptionEdit(
        existing,
        arguments.prefix,
        arguments.suffix,
        arguments.trigger,
        separator,
        is_tags,
        tuple(arguments.drop),
        pairs,
    )


def refuse(refusals: Mapping[str, bool]) -> None:
    """Raise OutputRefused with the first sentence whose value is true."""
    for sentence, refused in refusals.items():
        if refused:
            raise OutputRefused(sentence)


def table_format(arguments: argparse.Namespace) -> Csv | Jsonl | Text:
    """Return the kind of lines. Raises OutputRefused for wrong columns."""
    from captioner.bulk.outputs.table_formats import JSON_COLUMNS, TABLE_COLUMNS, Csv, Jsonl, Text

    if arguments.to == "stdout":
        return Text()
    given = arguments.columns
    columns = None if given is None else [_pair(each, "--columns", "NAME=VALUE") for each in given.split(",")]
    if arguments.to == "csv":
        return Csv(columns or TABLE_COLUMNS, arguments.bom)
    return Jsonl(columns or JSON_COLUMNS)


def sidecar_format(arguments: argparse.Namespace) -> SidecarFormat:
    """Return the kind of sidecars. Raises OutputRefused for a wrong extension."""
    from captioner.bulk.outputs.sidecar_formats import TXT_EXTENSION, Exif, Txt, Xmp

    if arguments.to == "txt":
        return Txt(TXT_EXTENSION if arguments.extension is None else arguments.extension)
    return Xmp() if arguments.to == "xmp" else Exif()


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    first, equals, second = text.partition("=")
    if not first or not equals:
        raise OutputRefused(f"{option} is {text!r}; it must be {form}")
    return first, second
