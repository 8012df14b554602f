"""The baselines: transformers' generate() behind a simulated single-threaded server.

The server calls generate() for one request at a time, for padded batches, or with a streamer. Clients run in a closed
loop: a client sends its next request as soon as its caption is complete. The server takes up to `batch` queued requests
in order of arrival. All rows of a batch run to the longest caption of the batch, as generate() does. Features are
given, so no vision encoder runs. Decoding is greedy with the cache on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, VisionEncoderDecoderModel
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import BaseModelOutput

from benchmarks.measurement import Round
from benchmarks.published import Published
from benchmarks.workload import Workload

# Features (B, image tokens, width), prompt ids (B, N) and options → ids (B, N + new tokens).
Generate = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Baseline:
    """A way to serve with generate(). With `streams`, tokens arrive one by one, for one request at a time."""

    name: str
    batch: int = 1
    streams: bool = False


SEQUENTIAL = Baseline("sequential generate()")
STREAMING = Baseline("transformers streaming", streams=True)
BATCHED = (Baseline("generate() on batches of 8", 8), Baseline("generate() on batches of 16", 16))


class FirstToken(BaseStreamer):
    """A streamer that records when the first new token came; its first `put` is the prompt."""

    def __init__(self) -> None:
        self.puts: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """See BaseStreamer."""
        self.puts.append(time.perf_counter())

    def end(self) -> None:
        """See BaseStreamer."""

    @property
    def first(self) -> float:
        """The time of the first new token, on time.perf_counter()'s clock."""
        return self.puts[1]


class GivenFeatures(torch.nn.Module):
    """A replacement for GIT's vision tower that returns its input: features, (B, 1, image tokens, width)."""

    def forward(self, pixel_values: torch.Tensor, **_: object) -> SimpleNamespace:
        """Return what GIT reads of a vision tower's output."""
        return SimpleNamespace(last_hidden_state=pixel_values[:, 0])


def generator(published: Published) -> Generate:
    """Return the original's generate() as a function of features; raise ValueError for families without a baseline."""
    source, family = published.source(), published.manifest().family
    if family == "vision-encoder-decoder":
        model = VisionEncoderDecoderModel.from_pretrained(published.folder, dtype=torch.float32).eval()
        model.enc_to_dec_proj = torch.nn.Identity()  # the features are projected already
        _ignore_stop_tokens(model).generation_config.decoder_start_token_id = published.manifest().start_ids[0]
        return lambda features, ids, **options: model.generate(
            encoder_outputs=BaseModelOutput(features), decoder_input_ids=ids, **options
        )
    text: Any = _ignore_stop_tokens(source.decoder)
    if family == "blip":
        return lambda features, ids, **options: text.generate(
            ids,
            encoder_hidden_states=features,
            encoder_attention_mask=torch.ones(features.shape[:-1], dtype=torch.long),
            **options,
        )
    if family == "git":
        text.git.image_encoder, text.git.visual_projection = GivenFeatures(), torch.nn.Identity()
        return lambda features, ids, **options: text.generate(ids, pixel_values=features[:, None], **options)
    raise ValueError(f"{family} has no baseline; vision-encoder-decoder, blip and git have one")


def _ignore_stop_tokens(model: PreTrainedModel) -> PreTrainedModel:
    """Remove everything from the model's generation config that could end or change a caption."""
    model.generation_config = GenerationConfig(pad_token_id=0, use_cache=True)
    return model


@torch.inference_mode()
def run(generate: Generate, work: Workload, baseline: Baseline, concurrency: int, limit_s: float = 1e9) -> Round:
    """Run the workload with `concurrency` clients; start no call of generate() after `limit_s`."""
    result, to_send = Round(), deque(work.requests)
    began = time.perf_counter()
    queue = deque((began, to_send.popleft()) for _ in range(min(concurrency, len(to_send))))
    while queue and time.perf_counter() - began < limit_s:
        batch = [queue.popleft() for _ in range(min(baseline.batch, len(queue)))]
        features = torch.stack([work.features_of(request) for _, request in batch])
        ids = torch.tensor([work.prompt_ids]).expand(len(batch), -1)
        longest = max(request.tokens for _, request in batch)
        streamer = FirstToken() if baseline.streams else None
        generated = generate(features, ids, max_new_tokens=longest, do_sample=False, streamer=streamer)
        ended = time.perf_counter()
        rows = generated[:, ids.shape[1] :].tolist()
        if any(len(row) != longest for row in rows):
            raise RuntimeError(f"generate() returned {[len(row) for row in rows]} tokens, not {longest}")
        for (sent, request), row in zip(batch, rows, strict=True):
            first = streamer.first if streamer else ended
            result.add(request.number, row[: request.tokens], sent, first, ended)
            if to_send:
                queue.append((ended, to_send.popleft()))
    result.seconds = time.perf_counter() - began
    result.unserved_ms = [(began + result.seconds - sent) * 1000 for sent, _ in queue]
    return result
