"""The device side of a step: what each cache row reads next, one forward pass, one token per row.

It owns every tensor that lives from step to step. It knows rows by number; the scheduler knows whose they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter

import torch

from captioner.decoders.base import Decoder
from captioner.decoders.rows import RowCopy, upload
from captioner.engine.cuda_graphs import CudaGraphs, Outputs
from captioner.engine.sampling import Sampling, SamplingBatch, next_tokens
from captioner.engine.sequence import Sequence


@dataclass(frozen=True)
class Step:
    """One launched step; `read` waits for the device."""

    rows_of: list[tuple[Sequence, list[int]]]  # as they were at the launch
    tokens_N: torch.Tensor
    logprobs_N: torch.Tensor
    logits_NV: torch.Tensor  # on the device
    done: torch.cuda.Event | None = None

    def read(self) -> tuple[list[int], list[float]]:
        """Return each row's next token and the model's own log-probability of it, in nats."""
        if self.done is not None:
            self.done.synchronize()
        return self.tokens_N.tolist(), self.logprobs_N.tolist()


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Start a copy into pinned memory; it is complete once the stream has reached it."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def record_event() -> torch.cuda.Event:
    """Return an event at the current point of the stream."""
    event = torch.cuda.Event()
    event.record()
    return event


class Runner:
    """Runs `decoder` in `slots` rows.

    With `async_scheduling` (the default on CUDA), a step may be launched before the previous one is read: the rows take
    their own tokens on the device.
    """

    def __init__(self, decoder: Decoder, slots: int, *, async_scheduling: bool | None = None) -> None:
        decoder.allocate(slots)
        self.decoder = decoder
        self.slots = slots
        device = decoder.device
        self.async_scheduling = device.type == "cuda" if async_scheduling is None else async_scheduling
        self._ids = torch.zeros(slots, dtype=torch.long, device=device)  # what each row reads next
        self._positions = torch.zeros(slots, dtype=torch.long, device=device)  # and at which position
        self._uniform = torch.zeros(slots, dtype=torch.float64, device=device)
        self._sampling = SamplingBatch.allocate(slots, decoder.vocabulary, decoder.context_tokens, device)
        self._lengths = [0] * slots  # the host's copy of the positions, so that nothing is read back
        self._graphs = CudaGraphs(self._forward, slots, decoder.context_tokens) if device.type == "cuda" else None

    def bind(self) -> None:
        """Make the decoder's device this thread's current device; the decode thread calls it once."""
        if self.decoder.device.type == "cuda":
            torch.cuda.set_device(self.decoder.device)
            # cuDNN's attention makes a plan for each new length of a prompt, some 0.4 s in which nothing is decoded.
            torch.backends.cuda.enable_cudnn_sdp(False)

    def stage(self, features: torch.Tensor) -> torch.Tensor:
        """See Decoder.stage."""
        return self.decoder.stage(features)

    @torch.inference_mode()
    def join(self, sequence: Sequence) -> None:
        """Prefill the rows of a sequence that starts. Its features are not needed afterwards."""
        if sequence.features is None:
            raise ValueError("the sequence was submitted without features")
        first, *others = sequence.rows
        self.decoder.prefill(first, sequence.features, sequence.prompt_ids)
        length = len(sequence.prompt_ids) - 1
        for row in sequence.rows:
            self._ids[row].fill_(sequence.prompt_ids[-1])
            self._positions[row].fill_(length)
            self._lengths[row] = length
            self._sampling.set(row, sequence.sampling, sequence.text_ids, sequence.encoded_ids)
        if others:
            self.decoder.copy(RowCopy([first] * len(others), others, self.decoder.device), length)

    @torch.inference_mode()
    def launch(self, running: list[Sequence]) -> Step:
        """Launch one step of all running sequences, which together hold the rows 0 to n−1."""
        rows_of = [(sequence, list(sequence.rows)) for sequence in running]
        by_row = dict(sorted(((row, sequence) for sequence, rows in rows_of for row in rows), key=itemgetter(0)))
        count = len(by_row)
        sampled_rows = [row for row, sequence in by_row.items() if sequence.sampling.temperature]
        penalised = any(sequence.sampling.penalises for sequence in running)
        if sampled_rows:
            # Drawn in the order of a sequence's own rows, which move: a draw must not depend on other requests.
            drawn = {row: sequence.uniform() for sequence, rows in rows_of for row in rows}
            uniform = torch.tensor([drawn[row] for row in range(count)], dtype=torch.float64)
            self._uniform[:count].copy_(uniform, non_blocking=True)
        span = min(max(self._lengths[:count]) + 1, self.decoder.context_tokens)
        for row in range(count):
            self._lengths[row] += 1
        if self._graphs is None:
            return Step(rows_of, *self._forward(count, span, penalised, sampled_rows))
        tokens, logprobs, logits_NV = self._graphs.replay(count, span, penalised or bool(sampled_rows))
        return Step(rows_of, to_host(tokens[:count]), to_host(logprobs[:count]), logits_NV[:count], record_event())

    def _forward(self, count: int, span: int, penalised: bool, sampled_rows: list[int] | None) -> Outputs:
        """Return tokens (count,), log-probabilities (count,), logits (count, vocabulary); advance each row by one.

        sampled_rows: None means that any row may be sampled, as a CUDA graph needs it.
        """
        ids, positions = self._ids[:count], self._positions[:count]
        logits_NV = self.decoder.decode(ids, positions, span)
        sampling = self._sampling.rows(count)
        tokens, logprobs = next_tokens(
            logits_NV,
            sampling,
            self._uniform[:count],
            positions,
            penalised=penalised,
            sampled=sampled_rows is None or bool(sampled_rows),
            rows=sampled_rows,
        )
        if penalised:
            sampling.append(tokens, positions)
        ids.copy_(tokens)
        # Async scheduling may run a row one step past its end: its position stays inside the cache.
        positions.add_(1).clamp_(max=self.decoder.context_tokens - 1)
        return tokens, logprobs, logits_NV

    @torch.inference_mode()
    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copy the whole state of rows over other rows."""
        rows = RowCopy(sources, targets, self.decoder.device)
        self.decoder.copy(rows, max(self._lengths[row] for row in sources))
        rows(self._ids)
        rows(self._positions)
        self._sampling.copy(rows)
        for source, target in zip(sources, targets, strict=True):
            self._lengths[target] = self._lengths[source]

    @torch.inference_mode()
    def reorder_beams(self, rows: list[int], beams: list[int], tokens: list[int]) -> None:
        """Let the beam in `rows[i]` continue the cache of the beam in `rows[beams[i]]` with `tokens[i]`."""
        changed = [(rows[beam], row) for beam, row in zip(beams, rows, strict=True) if rows[beam] != row]
        if changed:
            sources, targets = zip(*changed, strict=True)
            self.decoder.copy(RowCopy(sources, targets, self.decoder.device), self._lengths[rows[0]])
        self._ids[upload(rows, self._ids.device)] = upload(tokens, self._ids.device)

    @torch.inference_mode()
    def warm_up(self, features: torch.Tensor, prompt_ids: list[int]) -> None:
        """Run every shape once, so that no request pays for the first run of its shape."""
        self.bind()
        if self._graphs is not None:
            self._graphs.capture()
        sequences = [Sequence(prompt_ids, Sampling(), 1, rows=[row], features=features) for row in range(self.slots)]
        for row, sequence in enumerate(sequences):
            self.join(sequence)
            self.launch(sequences[: row + 1]).read()
