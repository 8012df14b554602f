"""Benchmarks of speed and parity. Each claim in docs/ names the command that measures it; see README.md."""

import captioner  # noqa: F401 - before any library: it turns their usage reports off
