"""Greedy and beam captions of the engine against the original's generate(), one request at a time, in fp32.

    python -m benchmarks.parity [--size tiny] [--models vit-gpt2 blip] [--requests 64] [--write]

Each model is exported and published as always; the engine runs the published decoder on features of the ONNX encoder,
generate() runs the whole original on the pixels. Images, prompts, lengths, arrivals and cancellations are drawn from a
seed, five slots for all of them, so captions join and leave at different steps. `--write` puts the tables into
docs/parity.md. The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from tokenizers import Tokenizer

from benchmarks import crowd
from benchmarks.cells import machine
from benchmarks.published import EMBEDDED_NAME, KEPT, NAMES, ROOT, Published, published
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
MAX_FEATURE_DIFFERENCE = 1e-4  # of the features' own largest value
DOCUMENT = ROOT / "docs" / "parity.md"


@dataclass
class Report:
    """What one model showed. `mismatches` says of each where, and how close the two tokens' logits are there."""

    model: str
    size: str
    requests: int
    cancelled: int = 0
    by_stop: int = 0  # whole captions that an end token ended
    different: int = 0  # captions
    tokens: int = 0  # compared
    feature_difference: float = 0.0  # torch to ONNX, as a share of the largest feature
    beams: int = 0  # searches compared, of 1 to 5 beams
    beam_tokens: int = 0
    mismatches: list[str] = field(default_factory=list)


def check(model: str, size: Size, requests: int = 64, seed: int = 0, kept: Path = KEPT) -> Report:
    """Everything for one model, published under `kept` if it is not there yet."""
    made = published(model, size, seed, kept)
    manifest, source = made.manifest(), made.source()
    tokenizer = Tokenizer.from_file(str(made.version / "tokenizer.json"))
    kind = family(manifest.family)
    decoder = kind.decoder(made.version, manifest, "fp32", torch.device("cpu"))
    report = Report(model, "as shipped" if model == EMBEDDED_NAME else size, requests)
    images = crowd.images(source.image, seed)
    report.feature_difference = give_features(images, source, made)
    members = crowd.crowd(images, kind, tokenizer, manifest, requests, seed)
    runner = Runner(decoder, SLOTS)
    crowd.run(Engine(runner, manifest.stop_ids, max_waiting=requests), members)
    for member in members:
        compare(member, source, manifest, decoder, report)
    report.different = len({tuple(member.sequence.token_ids) for member in members})
    searches = crowd.searches(members, manifest, BEAM_REQUESTS, BEAM_TOKENS)
    crowd.run(Engine(runner, manifest.stop_ids, max_waiting=len(searches)), searches)
    for search in searches:
        compare_beams(search, source, manifest, report)
    if report.feature_difference > MAX_FEATURE_DIFFERENCE:
        report.mismatches.append(f"features differ by {report.feature_difference:.1e} of the largest")
    return report


@torch.inference_mode()
def give_features(images: list[crowd.Picture], source: Source, made: Published) -> float:
    """Sets each picture's features from the ONNX encoder; returns the largest difference from torch's."""
    session = open_session(made.onnx_path)
    largest = 0.0
    for image in images:
        (found,) = session.run(None, {session.get_inputs()[0].name: image.pixels_HWC[None]})
        expected = source.vision_encoder(torch.from_numpy(image.pixels_HWC)[None]).numpy()
        largest = max(largest, float(np.abs(found - expected).max() / np.abs(expected).max()))
        image.features = torch.from_numpy(found[0])
    return largest


def original(member: crowd.Member, source: Source, manifest: Manifest, **options: object) -> list[int]:
    """What generate() writes for the same request, without the token that ended it."""
    sequence = member.sequence
    pixels = torch.from_numpy(member.picture.pixels_HWC)
    written = source.generate(pixels, sequence.prompt_ids, max_new_tokens=sequence.max_tokens, **GREEDY | options)
    return [token for token in written if token not in manifest.stop_ids]


def compare(member: crowd.Member, source: Source, manifest: Manifest, decoder: Decoder, report: Report) -> None:
    """A greedy caption, or as much of it as was written before it was cancelled."""
    expected, found = original(member, source, manifest), member.sequence.token_ids
    if member.reason == "cancelled":
        report.cancelled += 1
        expected = expected[: len(found)]
    report.by_stop += member.reason == "stop"
    report.tokens += len(found)
    if member.reason not in ("stop", "length", "cancelled"):
        report.mismatches.append(f"request {member.number} ended by {member.reason}: {member.sequence.error!r}")
    elif found != expected:
        at = next((i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None)
        where = f"request {member.number}: {len(found)} tokens, generate() {len(expected)}"
        if at is not None:
            gap = logit_gap(member, found[:at], found[at], expected[at], decoder)
            where = f"request {member.number}, token {at}: {found[at]} for {expected[at]}, logits {gap:.1e} apart"
        report.mismatches.append(where)


def logit_gap(member: crowd.Member, before: list[int], ours: int, theirs: int, decoder: Decoder) -> float:
    """How far apart the two tokens' logits are after the words both agree on, alone in a batch."""
    ids = [*member.sequence.prompt_ids, *before]
    decoder.prefill(0, member.picture.features, ids)
    logits_V = decoder.decode(torch.tensor(ids[-1:]), torch.tensor([len(ids) - 1]), len(ids))[0]
    return abs(float(logits_V[ours] - logits_V[theirs]))


def compare_beams(member: crowd.Member, source: Source, manifest: Manifest, report: Report) -> None:
    """The caption of a search."""
    generation, width = manifest.generation, member.sequence.width
    options = {"num_beams": width, "length_penalty": generation.length_penalty}
    expected = original(member, source, manifest, **options, early_stopping=generation.early_stopping)
    report.beams += 1
    report.beam_tokens += len(member.sequence.token_ids)
    if member.sequence.token_ids != expected:
        report.mismatches.append(f"request {member.number} with {width} beams: another caption than generate()'s")


def table(reports: list[Report]) -> str:
    """The reports for people, in Markdown, and every mismatch below."""
    columns = ["model", "size", "requests", "cancelled", "ended by a token", "different captions", "tokens compared"]
    columns += ["searches of 1–5 beams", "features, torch to ONNX", "mismatches"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for one in reports:
        beams = f"{one.beams} ({one.beam_tokens} tokens)"
        row = (one.model, one.size, one.requests, one.cancelled, one.by_stop, one.different, one.tokens, beams)
        lines.append(f"| {' | '.join(map(str, row))} | {one.feature_difference:.1e} | {len(one.mismatches)} |")
    details = [f"- {one.model}, {one.size}: {mismatch}" for one in reports for mismatch in one.mismatches]
    return "\n".join([*lines, "", *details]).strip()


def document(reports: list[Report], command: str) -> str:
    """docs/parity.md."""
    where = machine()
    return (
        "# Parity\n\n"
        "Greedy tokens of the decode engine against transformers' `generate()` on the same weights, one request at a\n"
        "time, in fp32. Seeded random weights in the published classes; `embedded` is the real model. Requests have\n"
        f"mixed images, prompts and lengths and come and go at different steps in {SLOTS} slots; a cancelled one must\n"
        "have written a beginning of the whole. The engine's features come from the exported ONNX encoder; the column\n"
        "of their difference is a share of the largest feature.\n\n"
        f"    {command}\n\n"
        f"torch {where['torch']}, transformers {where['transformers']}, ONNX Runtime {onnxruntime.__version__}, "
        f"{where['cpu']}.\n\n{table(reports)}\n"
    )


def main() -> int:
    """Arguments, the table, the JSON line; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", default=["tiny"], choices=["tiny", "published"])
    parser.add_argument("--models", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--write", action="store_true", help=f"to {DOCUMENT.relative_to(ROOT)}")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    reports = []
    for size in given.size:
        for model in given.models:
            if model == EMBEDDED_NAME and size != given.size[0]:
                continue  # it has one size
            print(f"{model}, {size}", flush=True)
            reports.append(check(model, size, given.requests, given.seed))
    if given.write:
        DOCUMENT.write_text(document(reports, f"python -m benchmarks.parity {' '.join(sys.argv[1:])}"), "utf-8")
    print(table(reports))
    print(json.dumps({"benchmark": "parity", "machine": machine(), "reports": list(map(asdict, reports))}))
    return int(any(one.mismatches for one in reports))


if __name__ == "__main__":
    sys.exit(main())
