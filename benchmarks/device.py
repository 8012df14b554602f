"""The engine with JoyCaption's decoder (Llama-3.1-8B) and random weights on a CUDA device, against memory bandwidth.

    python -m benchmarks.device [--dimensions joycaption|tiny] [--precision bf16] [--slots 1 8 16 32 64]

Regime: weights are drawn on the device, without files. PrefixDecoder, Runner and Engine are used as in the server. Each
caption has one image's features (729 tokens) in its prompt and is greedy; stop tokens are ignored. Decode throughput is
from the moment when all slots have their first token to the last token. Bandwidth is that of a copy, bytes read plus
bytes written. The busy share is the sum of kernel times over wall time while all slots decode.

Without a CUDA device the benchmark prints so and ends. `--dimensions tiny` runs on a CPU too, only to show that the
script works. The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import time

import torch

from benchmarks.device_captions import Captions, RandomDecoder, random_decoder
from benchmarks.measurement import machine, percentile
from captioner.decoders.load_weights import FLOAT_DTYPES
from captioner.decoders.prefix import PrefixDecoder
from captioner.engine.runner import Runner

SINGLE_CAPTIONS = 5  # captions that run alone, for TTFT


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_bandwidth(device: torch.device, size: int, times: int = 20) -> float:
    """Return the bytes per second that a copy reads and writes together; the best of `times`."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(times):
        synchronize(device)
        began = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size / best


@torch.inference_mode()
def sequential_tokens_per_s(made: RandomDecoder) -> float:
    """Return the decode throughput of generate() for one caption, without its first token."""
    ids = torch.tensor([made.prompt_ids], device=made.model.device)

    def seconds(tokens: int) -> float:
        synchronize(made.model.device)
        began = time.perf_counter()
        made.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
        synchronize(made.model.device)
        return time.perf_counter() - began

    seconds(2)
    return (made.new_tokens - 1) / max(seconds(made.new_tokens) - seconds(1), 1e-9)


def busy_share(made: RandomDecoder, runner: Runner) -> float | None:
    """Return kernel time over wall time from first to last token with all slots in use; None without a CUDA device."""
    if made.model.device.type != "cuda":
        return None
    captions = Captions(made, runner.slots, made.new_tokens)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        captions.run(runner)
        synchronize(made.model.device)
    kernels = [event for event in profile.events() if event.device_type == torch.profiler.DeviceType.CUDA]
    end = max(event.time_range.end for event in kernels)
    wall_us = (captions.times[0][-1] - captions.times[0][0]) * 1e6
    busy_us = sum(event.time_range.elapsed_us() for event in kernels if event.time_range.start >= end - wall_us)
    return float(round(busy_us / wall_us, 3))


def measure(name: str, precision: str, slots: list[int], device: torch.device) -> dict[str, object]:
    """Measure each number of slots; return the JSON document."""
    made = random_decoder(name, FLOAT_DTYPES[precision], device)
    embedding_bytes = 0 if made.model.config.tie_word_embeddings else made.model.get_input_embeddings().weight.nbytes
    bandwidth = copy_bandwidth(device, made.copied_bytes)
    sequential = sequential_tokens_per_s(made)
    print(f"copy {bandwidth / 1e9:.0f} GB/s, generate() {sequential:.1f} tokens/s", flush=True)
    results: dict[int, dict[str, float | None]] = {}
    weight_bytes = 0
    for count in slots:
        decoder = PrefixDecoder(made.model, len(made.prompt_ids) + made.new_tokens, made.image_token_id)
        weight_bytes = decoder.weight_bytes
        runner = Runner(decoder, count)
        runner.warm_up(torch.zeros(made.image_tokens, made.model.config.hidden_size), made.prompt_ids)
        full = Captions(made, count, made.new_tokens)
        full.run(runner)
        single = [Captions(made, 1, 2) for _ in range(SINGLE_CAPTIONS)]
        for one in single:
            one.run(runner)
        single_ttft = [ms for one in single for ms in one.ttft_ms]
        rate = full.decode_tokens_per_s
        results[count] = {
            "decode_tokens_per_s": round(rate, 2),
            "over_sequential": round(rate / sequential, 2),
            "ttft_alone_p50_ms": round(percentile(single_ttft, 50), 2),
            "ttft_together_p99_ms": round(percentile(full.ttft_ms, 99), 2),
            "busy_share": busy_share(made, runner),
        }
        print(f"{count} slots: {results[count]}", flush=True)
        del runner, decoder
        gc.collect()
    read, rate_1 = weight_bytes - embedding_bytes, results.get(1, {}).get("decode_tokens_per_s")
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
        # A step reads only a few rows of an embedding table, unless the table is also the output head.
        "share_of_bandwidth_at_1_without_embeddings": None if rate_1 is None else round(rate_1 * read / bandwidth, 3),
        "results": results,
    }


def driver(device: torch.device) -> dict[str, str]:
    """Return the device's name and its driver."""
    if device.type != "cuda":
        return {"device": "cpu"}
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    output = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout.split()
    cuda = str(torch.version.cuda)
    return {"device": torch.cuda.get_device_name(device), "driver": output[0] if output else "unknown", "cuda": cuda}


def main() -> None:
    """Run the benchmark that the command line names; print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dimensions", default="joycaption", choices=["joycaption", "tiny"], help="default %(default)s"
    )
    parser.add_argument("--precision", default="bf16", choices=list(FLOAT_DTYPES), help="default %(default)s")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8, 16, 32, 64], help="numbers of slots to measure")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and given.dimensions != "tiny":
        print("This machine has no CUDA device, so the device benchmark was not run.")
        print(json.dumps({"benchmark": "device", "run": False, "machine": machine()}, separators=(",", ":")))
        return
    document = measure(given.dimensions, given.precision, given.slots, device)
    print(json.dumps(document, separators=(",", ":")))


if __name__ == "__main__":
    main()
