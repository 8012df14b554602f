"""`captioner caption` in the test's own process."""

from __future__ import annotations

import contextlib
import io
from subprocess import CompletedProcess

from captioner.cli import main


def caption(address: str, *arguments: object) -> CompletedProcess[str]:
    """Run the command with the server at `address`, and return its exit code and output."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["caption", "--server", address, *map(str, arguments)])
    out.seek(0)
    return CompletedProcess([], code, out.read(), err.getvalue())
