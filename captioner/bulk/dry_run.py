"""A dry run: what a job would do with every image. It asks no server and changes no file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from captioner.bulk.outputs.base import CaptionedImage, Output
from captioner.bulk.outputs.journal import Journal
from captioner.bulk.outputs.table_formats import TableFormat
from captioner.bulk.outputs.tables import write_stdout
from captioner.bulk.progress import Progress
from captioner.bulk.report import Report
from captioner.bulk.sources.discover import FoundImage, Sources
from captioner.bulk.sources.leave_out import PassedOver
from captioner.errors import CaptionerError, ImageMissing, OutputRefused, typed


def dry_run(sources: Sources, output: Output, progress: Progress, report: Report) -> int:
    """Print a line for every image and everything passed over, then the counts. Return the exit code.

    0: all images would be tried; 1: some would fail. Raises ImageMissing if the sources hold no image.
    """

    def passed_over(each: PassedOver) -> None:
        report.passed_over(each)
        _say("pass over", each.label, each.reason)

    wanted = 0
    for image in sources.find(passed_over=passed_over):
        try:
            if image.error is not None:
                raise image.error
            is_wanted = output.wants(image)
        except Exception as error:
            failure = typed(error)
            report.failure(image.item, failure)
            progress.add(failed=1)
            _say("fail", image.label, failure.wire())
            continue
        wanted += is_wanted
        if not is_wanted:
            progress.add(skipped=1)
        _say("caption" if is_wanted else "skip", image.label, "" if is_wanted else "it has a caption")
    report.close()
    if not wanted + progress.skipped + progress.failed:
        raise ImageMissing("; ".join(["no images found in " + ", ".join(sources.locations), *report.missing()]))
    counts = (
        f"would caption {wanted}, skip {progress.skipped}; {progress.failed} cannot be read (images are not opened)"
    )
    progress.log("\n  ".join([f"dry run: {counts}", *report.missing()]))
    return 1 if progress.failed else 0


class ReadJournal(Journal):
    """A journal that is only read. A text that a killed job began to write counts as written."""

    def __init__(self, path: Path) -> None:
        self.done, self.begun = set(), {}
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
            if not line.endswith(b"\n") or not self._apply(line):
                break
        self.done |= self.begun.keys()
        self.begun = {}


class ReadTable:
    """An Output that knows the captions of a table, or none for stdout, and writes nothing."""

    def __init__(self, table_format: TableFormat, path: Path | None) -> None:
        """Raise OutputRefused for a file that this command did not write."""
        self._keys: set[str] = set()
        if path is not None and path.exists():
            try:
                with path.open("rb") as file:
                    self._keys = {key for key, _ in table_format.keys(file)}
            except (ValueError, OSError) as error:
                raise OutputRefused(f"{path} cannot be continued: {error}") from None

    def wants(self, image: FoundImage) -> bool:
        """See Output."""
        return image.item.key not in self._keys

    def write(self, batch: Sequence[CaptionedImage]) -> list[tuple[FoundImage, CaptionerError]]:
        """See Output."""
        raise NotImplementedError("a dry run writes nothing")

    def close(self, finished: bool, failed: bool) -> None:
        """See Output."""


def _say(verb: str, label: str, reason: str) -> None:
    line = f"{verb:9}  {label}" + (f"  ({reason})" if reason else "")
    write_stdout(line.encode("utf-8", "surrogateescape") + b"\n")
