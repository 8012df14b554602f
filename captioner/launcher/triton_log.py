"""Read tritonserver's log: which models are loading, and why one failed to load."""

from __future__ import annotations

import re
from pathlib import Path

_LOADING = re.compile(r'"loading: ([^:"]+):')
_LOADED = re.compile(r"\"successfully loaded '([^']+)'")
# Each error has the model, the reason and sometimes the place in the source; users get the model and the reason.
_FAILURES = (
    re.compile(r"\"failed to load '(?P<model>[^']+)' version \d+: [A-Z][\w ]*: (?P<why>.+)"),
    re.compile(r"\"failed to load model '(?P<model>[^']+)': (?P<why>.+)"),
    re.compile(r"\"Poll failed for model directory '(?P<model>[^']+)': (?P<why>.+)"),
    re.compile(r"Failed to preinitialize Python stub: (?P<why>.+?/(?P<model>[^/]+)/\d+/model\.py.*)"),
)
_SYNTAX = re.compile(r"Error parsing text-format inference\.ModelConfig: (.+)")
_PORT = re.compile(r"failed to start (\w+ service): [\w ]+ - (.+)")
_ENDS = ' "'


class ServerLog:
    """The part of a log that one run of the server writes: everything after the end of `path` at construction."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = path.stat().st_size if path.exists() else 0

    def loading(self) -> list[str]:
        """Return the models that are loading."""
        text = self._text()
        loaded = set(_LOADED.findall(text))
        return [model for model in dict.fromkeys(_LOADING.findall(text)) if model not in loaded]

    def failure(self) -> str | None:
        """Return one sentence about the first model that failed to load or the port that is in use, or None."""
        text = self._text()
        matches = [match for pattern in _FAILURES if (match := pattern.search(text))]
        if not matches:
            port = _PORT.search(text)
            return f"the {port[1]} cannot start: {port[2].rstrip(_ENDS)}" if port else None
        first = min(matches, key=re.Match.start)
        why = first["why"].split("\\n", 1)[0].strip(_ENDS)
        syntax = _SYNTAX.search(text, 0, first.start())
        return f"model {first['model']!r} cannot be loaded: {why}" + (f" ({syntax[1]})" if syntax else "")

    def _text(self) -> str:
        if not self.path.exists():
            return ""
        with self.path.open("rb") as file:
            file.seek(self._start)
            return file.read().decode(errors="replace")
