"""CUDA graphs of the decode step, one for each bucket of rows and of visible positions.

A small step is a few hundred kernels whose launching costs the host more than the device needs to run them; a graph is
launched once. It knows the shapes of a step and nothing of what is in it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch

Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # tokens (rows,), log-probabilities (rows,), logits (rows, V)
SHORTEST_SPAN = 256  # positions; below this attention costs nothing beside the weights


def buckets(smallest: int, largest: int) -> list[int]:
    """Doubling from `smallest`, ending in `largest` itself."""
    sizes = []
    while smallest < largest:
        sizes.append(smallest)
        smallest *= 2
    return [*sizes, largest]


class Graphs:
    """Captures `forward(rows, span, penalised, drawn)` for every bucket; call `capture` before the first `replay`."""

    def __init__(
        self, forward: Callable[[int, int, bool, list[int] | None], Outputs], slots: int, context_tokens: int
    ) -> None:
        self._forward = forward
        self._rows = buckets(1, slots)
        self._spans = buckets(min(SHORTEST_SPAN, context_tokens), context_tokens)
        self._graphs: dict[tuple[int, int, bool], tuple[torch.cuda.CUDAGraph, Outputs]] = {}

    def capture(self) -> None:
        """Runs each shape once outside a graph and once into one; all share one pool of memory."""
        pool = torch.cuda.graph_pool_handle()
        # The largest first: the others then fit into its memory.
        for rows, span, varied in product(reversed(self._rows), reversed(self._spans), (True, False)):
            drawn: list[int] | None = None if varied else []
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._forward(rows, span, varied, drawn)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                outputs = self._forward(rows, span, varied, drawn)
            self._graphs[rows, span, varied] = graph, outputs

    def replay(self, rows: int, span: int, varied: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Launches the smallest graph that holds `rows` and `span`, and returns its outputs without waiting.

        varied: some row is sampled or penalised.
        """
        bucket = next(size for size in self._rows if size >= rows)
        reach = next(size for size in self._spans if size >= span)
        graph, outputs = self._graphs[bucket, reach, varied]
        graph.replay()
        return outputs
