"""transformers' own generate() as a server would call it: one request after another, padded batches, or streaming.

A single-threaded server and closed-loop clients: whoever's caption is done sends the next request at once; the server
takes up to `batch` of those who wait, first come first served, and all rows of a batch run to its longest caption, as
generate() does. Features are given, so no vision tower runs; decoding is greedy with the cache on.
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

from benchmarks.cells import Round
from benchmarks.published import Published
from benchmarks.workload import Workload

# Features (B, image tokens, width), prompt ids (B, N) and options to ids (B, N + new tokens).
Generate = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Baseline:
    """A way to serve with generate(). `streams` shows each token as it comes, one request at a time."""

    name: str
    batch: int = 1
    streams: bool = False


SEQUENTIAL = Baseline("sequential generate()")
STREAMING = Baseline("transformers streaming", streams=True)
BATCHED = (Baseline("generate() on batches of 8", 8), Baseline("generate() on batches of 16", 16))


class FirstToken(BaseStreamer):
    """Remembers when the first new token came; the first `put` is the prompt."""

    def __init__(self) -> None:
        self.puts: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """See BaseStreamer."""
        self.puts.append(time.perf_counter())

    def end(self) -> None:
        """See BaseStreamer."""

    @property
    def first(self) -> float:
        """When the first new token came, on time.perf_counter()'s clock."""
        return self.puts[1]


class GivenFeatures(torch.nn.Module):
    """In place of GIT's vision tower: its pixels are already features, (B, 1, image tokens, width)."""

    def forward(self, pixel_values: torch.Tensor, **_: object) -> SimpleNamespace:
        """What GIT reads of a vision tower's output."""
        return SimpleNamespace(last_hidden_state=pixel_values[:, 0])


def generator(published: Published) -> Generate:
    """The original's generate() from features on; a ValueError for families that are no baseline here."""
    source, family = published.source(), published.manifest().family
    if family == "vision-encoder-decoder":
        model = VisionEncoderDecoderModel.from_pretrained(published.folder, dtype=torch.float32).eval()
        model.enc_to_dec_proj = torch.nn.Identity()  # the features have the decoder's width already
        own(model).generation_config.decoder_start_token_id = published.manifest().start_ids[0]
        return lambda features, ids, **options: model.generate(
            encoder_outputs=BaseModelOutput(features), decoder_input_ids=ids, **options
        )
    text: Any = own(source.decoder)
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
    raise ValueError(f"{family} is no baseline; vision-encoder-decoder, blip and git are")


def own(model: PreTrainedModel) -> PreTrainedModel:
    """The model with nothing in its generation_config that could end or change a caption."""
    model.generation_config = GenerationConfig(pad_token_id=0, use_cache=True)
    return model


@torch.inference_mode()
def run(generate: Generate, work: Workload, baseline: Baseline, concurrency: int, limit_s: float = 1e9) -> Round:
    """All of `work` by `concurrency` clients; no call begins after `limit_s`."""
    result, to_send = Round(), deque(work.requests)
    began = time.perf_counter()
    waiting = deque((began, to_send.popleft()) for _ in range(min(concurrency, len(to_send))))
    while waiting and time.perf_counter() - began < limit_s:
        taken = [waiting.popleft() for _ in range(min(baseline.batch, len(waiting)))]
        features = torch.stack([work.features_of(request) for _, request in taken])
        ids = torch.tensor([work.prompt_ids]).expand(len(taken), -1)
        longest = max(request.tokens for _, request in taken)
        streamer = FirstToken() if baseline.streams else None
        written = generate(features, ids, max_new_tokens=longest, do_sample=False, streamer=streamer)
        ended = time.perf_counter()
        new = written[:, ids.shape[1] :].tolist()
        if any(len(row) != longest for row in new):
            raise RuntimeError(f"generate() wrote {[len(row) for row in new]} tokens; {longest} were asked for")
        for (sent, request), row in zip(taken, new, strict=True):
            first = streamer.first if streamer else ended
            result.add(request.number, row[: request.tokens], sent, first, ended)
            if to_send:
                waiting.append((ended, to_send.popleft()))
    result.seconds = time.perf_counter() - began
    result.unserved_ms = [(began + result.seconds - sent) * 1000 for sent, _ in waiting]
    return result
