"""A plot of a run: captions per second and the 99th percentile against the number of clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

PANELS = (("captions_per_s", "captions/s", 1), ("total_p99_ms", "whole caption, p99 (s)", 1000))


def plot(rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str], path: Path) -> None:
    """Write an SVG file with the closed loops among `rows`."""
    loops = [row for row in rows if row["concurrency"] and not row["repeated"] and not row["cancelled"]]
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, len(PANELS))
    for axis, (key, label, unit) in zip(axes, PANELS, strict=True):
        for name, title in titles.items():
            points = [(row["concurrency"], row[key] / unit) for row in loops if row["system"] == name and key in row]
            if points:
                style = {"linewidth": 2.5, "zorder": 3} if name == "captioner" else {"linewidth": 1.2}
                axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=title, **style)
        axis.set(xscale="log", yscale="log", xlabel="clients", ylabel=label)
        ticks = sorted({row["concurrency"] for row in loops})
        axis.set_xticks(ticks, [str(each) for each in ticks])
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})
