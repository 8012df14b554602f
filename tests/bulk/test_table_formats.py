"""The lines of tables: other columns, and CSV that other programs read back."""

from __future__ import annotations

import codecs
import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pandas  # type: ignore[import-untyped]
import pytest

from captioner.bulk.outputs import tables
from captioner.bulk.outputs.caption_edit import CaptionEdit
from captioner.bulk.outputs.table_formats import Columns, Csv, Jsonl
from captioner.errors import OutputRefused
from captioner.wire import Region
from tests.bulk.test_outputs import DETAILS, captioned, found

NAMES = ["a\rb.jpg", "c\nd.jpg", "e\r\nf.jpg", 'g"h.jpg', "i,j.jpg", " k ", "ü.jpg", "l'm;n\t.jpg", ".jpg"]
COLUMNS = (("file_name", "file"), ("text", "caption"))


def write(path: Path, table_format: Csv | Jsonl, edit: CaptionEdit | None = None) -> tuple[int, list[str]]:
    """Run a job; return how many captions were new, and the names that were refused."""
    table = tables.Table(table_format, edit or CaptionEdit(), path)
    new = [captioned(found(name), f"Caption of {name}") for name in NAMES if table.wants(found(name))]
    failed = table.write(new)
    table.close(finished=True, failed=False)
    return len(new), [image.item.key for image, _ in failed]


def test_csv_with_any_line_end_in_a_name_is_read_back_by_every_reader_and_continues(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    assert write(path, Csv()) == (len(NAMES), [])
    expected = [[name, f"Caption of {name}"] for name in NAMES]
    with path.open(encoding="utf-8", newline="") as file:
        assert [row[:2] for row in csv.reader(file, strict=True)][1:] == expected
    frame = pandas.read_csv(path, keep_default_na=False)
    assert frame[["file", "caption"]].to_numpy().tolist() == expected
    assert write(path, Csv()) == (0, [])


def test_csv_with_a_byte_order_mark_continues_and_has_one(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write(path, Csv(bom=True))
    whole = path.read_bytes()
    assert whole.startswith(codecs.BOM_UTF8 + b"file,caption") and whole.count(codecs.BOM_UTF8) == 1
    path.write_bytes(whole[: len(whole) // 2])
    assert write(path, Csv(bom=True))[0] > 0 and path.read_bytes() == whole
    assert next(csv.DictReader(io.StringIO(whole.decode("utf-8-sig"))))["file"] == NAMES[0].replace("\r", "\r")


@pytest.mark.parametrize("cut", range(1, 60, 3))
@pytest.mark.parametrize("kind", [Jsonl, Csv])
def test_tables_with_other_columns_continue_after_a_kill(
    tmp_path: Path, kind: type[Csv] | type[Jsonl], cut: int
) -> None:
    path = tmp_path / "t"
    write(path, kind(COLUMNS))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    write(path, kind(COLUMNS))
    assert path.read_bytes() == whole
    assert write(path, kind(COLUMNS)) == (0, [])


def test_columns_are_named_and_ordered_as_asked() -> None:
    columns: Columns = [("text", "caption"), ("why", "finish_reason"), ("file_name", "file"), ("again", "caption")]
    values = {"text": "A cat.", "why": "stop", "file_name": "a.jpg", "again": "A cat."}
    assert list(json.loads(Jsonl(columns).line("a.jpg", "A cat.", DETAILS)).items()) == list(values.items())
    assert Csv(columns).header == b"text,why,file_name,again\n"
    assert Csv(columns).line("a.jpg", "A cat.", DETAILS) == b"A cat.,stop,a.jpg,A cat.\n"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([("text", "caption")], "lacks the value `file`"),
        (
            [("file", "file"), ("x", "nonsense")],
            "has the value 'nonsense'; the values are file, caption, details, regions, model",
        ),
        ([("file", "file"), ("x", "timings_ms")], "has the value 'timings_ms'"),
        ([("x", "file"), ("x", "caption")], "different names"),
        ([("x" * 101, "file")], "1 to 100 characters"),
        ([("file", "file"), *((f"c{number}", "caption") for number in range(50))], "up to 50"),
    ],
)
def test_wrong_columns_are_refused_before_a_file_is_written(columns: Columns, message: str) -> None:
    with pytest.raises(OutputRefused, match=message):
        Jsonl(columns)


def test_details_are_a_value_of_json_lines_only() -> None:
    assert "details" in json.loads(Jsonl([("f", "file"), ("details", "details")]).line("a", "b", DETAILS))
    with pytest.raises(OutputRefused, match="has the value 'details'"):
        Csv([("f", "file"), ("details", "details")])


def test_regions_are_in_json_lines_only() -> None:
    details = replace(DETAILS, regions=(Region("a car", box=(1, 2, 30, 40)),))
    row = json.loads(Jsonl([("f", "file"), ("regions", "regions")]).line("a.jpg", "a car", details))
    assert row["regions"] == [{"label": "a car", "box": [1, 2, 30, 40], "polygon": None}]
    assert json.loads(Jsonl().line("a.jpg", "a car", details))["details"]["regions"] == row["regions"]
    with pytest.raises(OutputRefused, match="has the value 'regions'"):
        Csv([("f", "file"), ("regions", "regions")])


def test_a_caption_of_which_an_edit_leaves_nothing_fails_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    assert write(path, Jsonl(), CaptionEdit(drop=("k",))) == (len(NAMES), [" k "])
    assert len(path.read_text().splitlines()) == len(NAMES) - 1
