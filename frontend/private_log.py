"""Log errors without their messages, which may quote a prompt or an image."""

from __future__ import annotations

import logging
from typing import Any

from captioner.errors import traced


def install() -> None:
    """Let every logger of this process show where an error was raised, and its type, in place of its message."""
    logging.setLogRecordFactory(_record)


def _record(*arguments: Any, **options: Any) -> logging.LogRecord:
    record = logging.LogRecord(*arguments, **options)
    if record.exc_info and record.exc_info[1]:
        record.exc_text = traced(record.exc_info[1])  # formatters use it in place of exc_info
    return record
