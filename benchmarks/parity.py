"""Greedy and beam captions of the engine against the original's generate(), one request at a time, in fp32.

    python -m benchmarks.parity [--size tiny] [--models vit-gpt2 blip] [--requests 64] [--write]

Each model is exported and published in the usual way. The engine runs the published decoder on features of the ONNX
encoder; generate() runs the whole original on the pixels. Images, prompts, lengths, arrivals and cancellations are
drawn from a seed. All requests share SLOTS slots, so captions join and leave at different steps. `--write` puts the
tables into docs/parity.md. The last line of stdout is one JSON document; the exit status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field

import numpy as np
import onnxruntime
import torch
from tokenizers import Tokenizer

from benchmarks import request_mix
from benchmarks.measurement import machine
from benchmarks.published import EMBEDDED_NAME, NAMES, ROOT, Published, published
from benchmarks.request_mix import InputImage, ScheduledRequest
from benchmarks.seeded import Size
from captioner.artifacts.manifest import Manifest
from captioner.artifacts.onnx_session import open_session
from captioner.decoders.base import Decoder
from captioner.engine.engine import Engine
from captioner.engine.runner import Runner
from captioner.families import family
from captioner.families.base import Source
from export.parity import GREEDY

SLOTS = 5
BEAM_REQUESTS, BEAM_TOKENS = 3, 16
MAX_FEATURE_DIFFERENCE = 1e-4  # as a share of the largest feature
DOCUMENT = ROOT / "docs" / "parity.md"


@dataclass
class Report:
    """The result of one model. A mismatch says where it is, and how far apart the two tokens' logits are there."""

    model: str
    size: str
    requests: int
    cancelled: int = 0
    by_stop: int = 0  # captions that a stop token ended
    different: int = 0  # distinct captions
    tokens: int = 0  # compared
    feature_difference: float = 0.0  # torch against ONNX, as a share of the largest feature
    beams: int = 0  # beam searches compared, of 1 to 5 beams
    beam_tokens: int = 0
    mismatches: list[str] = field(default_factory=list)


def check(model: str, size: Size, requests: int = 64, seed: int = 0) -> Report:
    """Compare everything for one model."""
    made = published(model, size, seed)
    manifest, source = made.manifest(), made.source()
    tokenizer = Tokenizer.from_file(str(made.version / "tokenizer.json"))
    kind = family(manifest.family)
    decoder = kind.decoder(made.version, manifest, "fp32", torch.device("cpu"))
    report = Report(model, "as shipped" if model == EMBEDDED_NAME else size, requests)
    images = request_mix.images(source.image, seed)
    report.feature_difference = set_features(images, source, manifest, made)
    mix = request_mix.request_mix(images, kind, tokenizer, manifest, requests, seed)
    runner = Runner(decoder, SLOTS)
    request_mix.run(Engine(runner, manifest.stop_ids, max_waiting=requests), mix)
    for request in mix:
        compare(request, source, manifest, decoder, report)
    report.different = len({tuple(request.sequence.token_ids) for request in mix})
    searches = request_mix.beam_searches(mix, manifest, BEAM_REQUESTS, BEAM_TOKENS)
    request_mix.run(Engine(runner, manifest.stop_ids, max_waiting=len(searches)), searches)
    for search in searches:
        compare_beams(search, source, manifest, report)
    if report.feature_difference > MAX_FEATURE_DIFFERENCE:
        report.mismatches.append(f"features differ by {report.feature_difference:.1e} of the largest")
    return report


@torch.inference_mode()
def set_features(images: list[InputImage], source: Source, manifest: Manifest, made: Published) -> float:
    """Set each image's features from the ONNX encoder; return the largest relative difference from torch's."""
    session = open_session(made.onnx_path)
    largest = 0.0
    for image in images:
        (found,) = session.run(None, {session.get_inputs()[0].name: image.pixels_HWC[None]})
        expected = source.vision_encoder(torch.from_numpy(image.pixels_HWC)[None]).numpy()
        largest = max(largest, float(np.abs(found - expected).max() / np.abs(expected).max()))
        image.features = torch.from_numpy(found[0]).reshape(manifest.feature_shape(image.grid_rows, image.grid_columns))
    return largest


def original(request: ScheduledRequest, source: Source, manifest: Manifest, **options: object) -> list[int]:
    """Return the tokens that generate() returns for the same request, without the stop token."""
    sequence = request.sequence
    pixels = torch.from_numpy(request.image.pixels_HWC)
    tokens = source.generate(pixels, sequence.prompt_ids, max_new_tokens=sequence.max_tokens, **GREEDY | options)
    return [token for token in tokens if token not in manifest.stop_ids]


def compare(request: ScheduledRequest, source: Source, manifest: Manifest, decoder: Decoder, report: Report) -> None:
    """Compare a greedy caption, or the part of it that was generated before it was cancelled."""
    expected, found = original(request, source, manifest), request.sequence.token_ids
    if request.reason == "cancelled":
        report.cancelled += 1
        expected = expected[: len(found)]
    report.by_stop += request.reason == "stop"
    report.tokens += len(found)
    if request.reason not in ("stop", "length", "cancelled"):
        report.mismatches.append(f"request {request.number} ended by {request.reason}: {request.sequence.error!r}")
    elif found != expected:
        at = next((i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None)
        where = f"request {request.number}: {len(found)} tokens, generate() {len(expected)}"
        if at is not None:
            gap = logit_gap(request, found[:at], found[at], expected[at], decoder)
            where = f"request {request.number}, token {at}: {found[at]} for {expected[at]}, logits {gap:.1e} apart"
        report.mismatches.append(where)


def logit_gap(request: ScheduledRequest, before: list[int], ours: int, theirs: int, decoder: Decoder) -> float:
    """Return the difference of two tokens' logits after the tokens `before`, which both sides agree on."""
    ids = [*request.sequence.prompt_ids, *before]
    decoder.prefill(0, request.image.features, ids)
    logits_V = decoder.decode(torch.tensor(ids[-1:]), torch.tensor([len(ids) - 1]), len(ids))[0]
    return abs(float(logits_V[ours] - logits_V[theirs]))


def compare_beams(request: ScheduledRequest, source: Source, manifest: Manifest, report: Report) -> None:
    """Compare the caption of a beam search."""
    generation, width = manifest.generation, request.sequence.width
    options = {"num_beams": width, "length_penalty": generation.length_penalty}
    expected = original(request, source, manifest, **options, early_stopping=generation.early_stopping)
    report.beams += 1
    report.beam_tokens += len(request.sequence.token_ids)
    if request.sequence.token_ids != expected:
        report.mismatches.append(f"request {request.number} with {width} beams: not the caption of generate()")


def table(reports: list[Report]) -> str:
    """Return the reports as a Markdown table, and every mismatch below it."""
    columns = ["model", "size", "requests", "cancelled", "ended by a stop token", "distinct captions"]
    columns += ["tokens compared", "beam searches (1–5 beams)", "features, torch against ONNX", "mismatches"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for one in reports:
        beams = f"{one.beams} ({one.beam_tokens} tokens)"
        row = (one.model, one.size, one.requests, one.cancelled, one.by_stop, one.different, one.tokens, beams)
        lines.append(f"| {' | '.join(map(str, row))} | {one.feature_difference:.1e} | {len(one.mismatches)} |")
    details = [f"- {one.model}, {one.size}: {mismatch}" for one in reports for mismatch in one.mismatches]
    return "\n".join([*lines, "", *details]).strip()


def document(reports: list[Report], command: str) -> str:
    """Return the text of docs/parity.md."""
    where = machine()
    return (
        "# Parity\n\n"
        "Greedy tokens of the decode engine against transformers' `generate()` on the same weights, one request at a\n"
        "time, in fp32. Weights are random (seeded) in the published classes; `embedded` is the shipped model.\n"
        f"Requests have different images, prompts and lengths, and join and leave at different steps in {SLOTS}\n"
        "slots. A cancelled caption must be a prefix of the whole one. The engine's features come from the exported\n"
        "ONNX encoder; their difference from torch's is a share of the largest feature.\n\n"
        f"    {command}\n\n"
        f"torch {where['torch']}, transformers {where['transformers']}, ONNX Runtime {onnxruntime.__version__}, "
        f"{where['cpu']}.\n\n{table(reports)}\n"
    )


def main() -> int:
    """Run the benchmark that the command line names; return 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", default=["tiny"], choices=["tiny", "published"])
    parser.add_argument("--models", nargs="+", default=list(NAMES), choices=NAMES, help="default: all")
    parser.add_argument("--requests", type=int, default=64, help="requests per model (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default %(default)s)")
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT.relative_to(ROOT)}")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    reports = []
    for size in given.size:
        for model in given.models:
            if model == EMBEDDED_NAME and size != given.size[0]:
                continue  # it has only one size
            print(f"{model}, {size}", flush=True)
            reports.append(check(model, size, given.requests, given.seed))
    if given.write:
        DOCUMENT.write_text(document(reports, f"python -m benchmarks.parity {' '.join(sys.argv[1:])}"), "utf-8")
    print(table(reports))
    print(json.dumps({"benchmark": "parity", "machine": machine(), "reports": list(map(asdict, reports))}))
    return int(any(one.mismatches for one in reports))


if __name__ == "__main__":
    sys.exit(main())
