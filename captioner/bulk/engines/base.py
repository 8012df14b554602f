"""The interface of a bulk engine: items in, outcomes out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Protocol

from captioner.bulk.sources.item import Item
from captioner.errors import CaptionerError
from captioner.wire import Caption

RETRY_FOR_S = 120.0  # default of `--retry-for`


@dataclass(frozen=True)
class Outcome:
    """The caption of one item, or the error that prevented it."""

    item: Item
    caption: Caption | None
    error: CaptionerError | None


class BulkEngine(Protocol):
    """Captions the items of a job.

    Outcomes are yielded as they are ready, in any order, exactly one for each item. The failure of one image does not
    end the others. The engine pulls items no faster than it can work on them (backpressure).
    """

    def __call__(self, items: Iterable[Item]) -> AsyncIterator[Outcome]:
        """Yield the outcome of every item."""
