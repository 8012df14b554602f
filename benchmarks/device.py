"""The engine with JoyCaption's decoder (Llama-3.1-8B) and random weights on a CUDA device: how near it comes to memory.

    python -m benchmarks.device [--dimensions joycaption|tiny] [--precision bf16] [--slots 1 8 16 32 64]

Regime: weights drawn on the device, no files; PrefixDecoder, Runner and Engine as the server uses them; each caption
has the features of one image (729 tokens) in front, greedy, ends ignored. Decode throughput is from the moment all
slots have their first token to the last token. Bandwidth is that of a copy, bytes read plus bytes written. The busy
share is the sum of kernel time over wall time while all slots decode. Without a CUDA device it says so and ends, unless
`--dimensions tiny` asks for a run on the CPU that only shows that the script works. The last line of stdout is one JSON
document.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.cells import machine, percentile
from benchmarks.seeded import llava
from captioner.decoders.load_weights import FLOATS
from captioner.decoders.prefix import PrefixDecoder
from captioner.engine.engine import Engine
from captioner.engine.runner import Runner
from captioner.engine.sampling import Sampling
from captioner.engine.sequence import Sequence

PROMPT_TOKENS = 32  # beside the image's
ALONE_TIMES = 5  # captions of one client, for TTFT


@dataclass(frozen=True)
class Dimensions:
    """A decoder and what one caption of it is."""

    name: str
    model: Any
    image_token_id: int
    image_tokens: int
    new_tokens: int
    copied_bytes: int

    @property
    def prompt_ids(self) -> list[int]:
        """A token, the image, and words."""
        return [1] + [self.image_token_id] * self.image_tokens + list(range(2, PROMPT_TOKENS))


def dimensions(name: str, dtype: torch.dtype, device: torch.device) -> Dimensions:
    """A model with random weights on `device`."""
    size: llava.Size = "published" if name == "joycaption" else "tiny"
    config = llava.config(size)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config.text_config, dtype=dtype).eval()
    model.generation_config = GenerationConfig(pad_token_id=0, use_cache=True)
    tokens = 729 if size == "published" else config.image_seq_length
    new, copied = (128, 2**31) if size == "published" else (8, 2**20)
    return Dimensions(name, model, config.image_token_index, tokens, new, copied)


def wait_for(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_bandwidth(device: torch.device, size: int, times: int = 20) -> float:
    """Bytes a second that a copy reads and writes together; the best of `times`."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(times):
        wait_for(device)
        began = time.perf_counter()
        target.copy_(source)
        wait_for(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size / best


class Captions:
    """`count` captions that begin together, with the time of every token, on time.perf_counter()'s clock."""

    def __init__(self, made: Dimensions, count: int, tokens: int) -> None:
        self.times: list[list[float]] = [[] for _ in range(count)]
        width = made.model.config.hidden_size
        self.sequences = [
            Sequence(
                made.prompt_ids,
                Sampling(),
                tokens,
                on_token=partial(self._on_token, times),
                features=torch.randn(made.image_tokens, width, generator=torch.Generator().manual_seed(number)),
            )
            for number, times in enumerate(self.times)
        ]
        self.sent = 0.0

    @staticmethod
    def _on_token(times: list[float], _: int) -> None:
        times.append(time.perf_counter())

    def run(self, runner: Runner) -> None:
        """Through an engine of their own, to the end; raises what failed."""
        engine = Engine(runner, (), max_waiting=len(self.sequences))
        self.sent = time.perf_counter()
        for sequence in self.sequences:
            engine.admit()
            engine.submit(sequence)
        engine.start()
        engine.close()
        for sequence in self.sequences:
            if len(sequence.token_ids) != sequence.max_tokens:
                raise RuntimeError("a caption failed") from sequence.error

    @property
    def decode_tokens_per_s(self) -> float:
        """From the last first token to the end."""
        began, ended = max(times[0] for times in self.times), max(times[-1] for times in self.times)
        return sum(sum(time > began for time in times) for times in self.times) / (ended - began)

    @property
    def ttft_ms(self) -> list[float]:
        """Of each caption."""
        return [(times[0] - self.sent) * 1000 for times in self.times]


@torch.inference_mode()
def sequential_tokens_per_s(made: Dimensions) -> float:
    """Decode throughput of generate() for one caption: what the tokens after the first take."""
    ids = torch.tensor([made.prompt_ids], device=made.model.device)

    def seconds(tokens: int) -> float:
        wait_for(made.model.device)
        began = time.perf_counter()
        made.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
        wait_for(made.model.device)
        return time.perf_counter() - began

    seconds(2)
    return (made.new_tokens - 1) / max(seconds(made.new_tokens) - seconds(1), 1e-9)


def busy_share(made: Dimensions, runner: Runner) -> float | None:
    """Kernel time over wall time from first to last token with all slots in use; None where there is no CUDA device."""
    if made.model.device.type != "cuda":
        return None
    captions = Captions(made, runner.slots, made.new_tokens)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        captions.run(runner)
        wait_for(made.model.device)
    kernels = [event for event in profile.events() if event.device_type == torch.profiler.DeviceType.CUDA]
    end = max(event.time_range.end for event in kernels)
    wall_us = (captions.times[0][-1] - captions.times[0][0]) * 1e6
    busy_us = sum(event.time_range.elapsed_us() for event in kernels if event.time_range.start >= end - wall_us)
    return float(round(busy_us / wall_us, 3))


def measure(name: str, precision: str, slots: list[int], device: torch.device) -> dict[str, object]:
    """The JSON document."""
    made = dimensions(name, FLOATS[precision], device)
    embedding_bytes = 0 if made.model.config.tie_word_embeddings else made.model.get_input_embeddings().weight.nbytes
    bandwidth = copy_bandwidth(device, made.copied_bytes)
    sequential = sequential_tokens_per_s(made)
    print(f"copy {bandwidth / 1e9:.0f} GB/s, generate() {sequential:.1f} tokens/s", flush=True)
    cells: dict[int, dict[str, float | None]] = {}
    weight_bytes = 0
    for count in slots:
        decoder = PrefixDecoder(made.model, len(made.prompt_ids) + made.new_tokens, made.image_token_id)
        weight_bytes = decoder.weight_bytes
        runner = Runner(decoder, count)
        runner.warm_up(torch.zeros(made.image_tokens, made.model.config.hidden_size), made.prompt_ids)
        full = Captions(made, count, made.new_tokens)
        full.run(runner)
        alone = [Captions(made, 1, 2) for _ in range(ALONE_TIMES)]
        for one in alone:
            one.run(runner)
        first = [ms for one in alone for ms in one.ttft_ms]
        rate = full.decode_tokens_per_s
        cells[count] = {
            "decode_tokens_per_s": round(rate, 2),
            "over_sequential": round(rate / sequential, 2),
            "ttft_alone_p50_ms": round(percentile(first, 50), 2),
            "ttft_together_p99_ms": round(percentile(full.ttft_ms, 99), 2),
            "busy_share": busy_share(made, runner),
        }
        print(f"{count} slots: {cells[count]}", flush=True)
        del runner, decoder
        gc.collect()
    read, rate_1 = weight_bytes - embedding_bytes, cells.get(1, {}).get("decode_tokens_per_s")
    return {
        "benchmark": "device",
        "dimensions": name,
        "precision": precision,
        "machine": machine() | driver(device),
        "image_tokens": made.image_tokens,
        "new_tokens": made.new_tokens,
        "copy_bytes_per_s": round(bandwidth),
        "weight_bytes": weight_bytes,
        "generate_tokens_per_s": round(sequential, 2),
        "share_of_bandwidth_at_1": None if rate_1 is None else round(rate_1 * weight_bytes / bandwidth, 3),
        # An embedding table that is not also the head is looked up, not read.
        "share_of_bandwidth_at_1_without_embeddings": None if rate_1 is None else round(rate_1 * read / bandwidth, 3),
        "cells": cells,
    }


def driver(device: torch.device) -> dict[str, str]:
    """The device and its driver."""
    if device.type != "cuda":
        return {"device": "cpu"}
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.split()
    cuda = str(torch.version.cuda)
    return {"device": torch.cuda.get_device_name(device), "driver": found[0] if found else "unknown", "cuda": cuda}


def main() -> None:
    """Arguments and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", default="joycaption", choices=["joycaption", "tiny"])
    parser.add_argument("--precision", default="bf16", choices=list(FLOATS))
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8, 16, 32, 64])
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and given.dimensions != "tiny":
        print("This machine has no CUDA device, so the device benchmark was not run.")
        print(json.dumps({"benchmark": "device", "run": False, "machine": machine()}, separators=(",", ":")))
        return
    found = measure(given.dimensions, given.precision, given.slots, device)
    print(json.dumps(found, separators=(",", ":")))


if __name__ == "__main__":
    main()
