"""Benchmarks of speed and parity. Each claim in docs/ names the command that measures it; see README.md."""
