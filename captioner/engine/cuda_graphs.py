"""CUDA graphs of the decode step, one for each bucket of rows and span.

A small step is a few hundred kernels, and launching them costs the host more than running them costs the device. A
graph launches them all at once. It knows the shapes of a step, not what is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch

Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # tokens (rows,), log-probabilities (rows,), logits (rows, V)
MIN_SPAN = 256  # positions; below this, attention costs nothing compared with the weights
MAX_GAP = 256  # positions between two spans: each row reads its cache up to the end of the span


def buckets(smallest: int, largest: int, gap: int | None = None) -> list[int]:
    """Return sizes that double from `smallest`, or grow by `gap` where that is less, and end with `largest` itself."""
    sizes = []
    while smallest < largest:
        sizes.append(smallest)
        smallest += smallest if gap is None else min(smallest, gap)
    return [*sizes, largest]


class CudaGraphs:
    """Graphs of `forward(rows, span, penalised, sampled_rows)` for every bucket; call `capture` before `replay`."""

    def __init__(
        self, forward: Callable[[int, int, bool, list[int] | None], Outputs], slots: int, context_tokens: int
    ) -> None:
        self._forward = forward
        self._rows = buckets(1, slots)
        self._spans = buckets(min(MIN_SPAN, context_tokens), context_tokens, MAX_GAP)
        self._graphs: dict[tuple[int, int, bool], tuple[torch.cuda.CUDAGraph, Outputs]] = {}

    def capture(self) -> None:
        """Run each shape once outside a graph and once into one. All graphs share one memory pool."""
        pool, side = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        # Largest first: the smaller graphs then fit into its memory.
        for rows, span, processed in product(reversed(self._rows), reversed(self._spans), (True, False)):
            sampled_rows: list[int] | None = None if processed else []
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._forward(rows, span, processed, sampled_rows)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                outputs = self._forward(rows, span, processed, sampled_rows)
            self._graphs[rows, span, processed] = graph, outputs

    def replay(self, rows: int, span: int, processed: bool) -> Outputs:
        """Launch the smallest graph that holds `rows` and `span`; return its outputs without waiting for the device.

        processed: some row is sampled or penalised.
        """
        row_bucket = next(size for size in self._rows if size >= rows)
        span_bucket = next(size for size in self._spans if size >= span)
        graph, outputs = self._graphs[row_bucket, span_bucket, processed]
        graph.replay()
        return outputs
