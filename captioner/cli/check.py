"""`captioner check`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.check import Verdict, Weights


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its options."""
    check = verbs.add_parser(
        "check",
        help="tell whether a model can be served, and what that takes, without downloading its weights",
        description="Read a model's config, tokenizer, card and the headers of its safetensors, and tell whether "
        "`captioner publish` would refuse it. Exit status: 0 if the model can be served, 1 if it cannot, 2 if nothing "
        "can be said, for example because the Hub cannot be reached.",
    )
    check.set_defaults(run=run)
    check.add_argument("model", metavar="MODEL[@REVISION]", help="Hugging Face id or folder")
    check.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Print the verdict. Return 0 if the model can be served, otherwise 1."""
    from captioner.hub import resolve

    model, revision = resolve.parse(arguments.model)
    from export.check import check  # it imports torch, which takes seconds

    verdict = check(model, revision)
    if arguments.json:
        print(json.dumps(_facts(verdict), ensure_ascii=False))
    else:
        print("\n".join(_lines(verdict)))
    return 0 if verdict.refusal is None else 1


def _facts(verdict: Verdict) -> dict[str, Any]:
    refusal = verdict.refusal
    return {
        "model": verdict.model,
        "revision": verdict.revision,
        "can_be_served": refusal is None,
        "code": None if refusal is None else refusal.code,
        "reason": None if refusal is None else str(refusal),
        "family": verdict.model_type or None,
        **{name: None if value is None else asdict(value) for name, value in _parts(verdict).items()},
    }


def _parts(verdict: Verdict) -> dict[str, Any]:
    return {"outline": verdict.outline, "weights": verdict.weights, "card": verdict.card}


def _lines(verdict: Verdict) -> list[str]:
    """Return the verdict for people: a sentence, then one fact a line."""
    name = f"{verdict.model}@{verdict.revision[:12]}" if verdict.revision else verdict.model
    refusal, outline, weights, card = verdict.refusal, verdict.outline, verdict.weights, verdict.card
    head = f"{name} can be served" if refusal is None else f"{name} cannot be served: {refusal.wire()}"
    facts = {"family": verdict.model_type} if verdict.model_type else {}
    if weights is not None:
        facts |= _sizes(weights)
    if outline is not None:
        image = outline.image
        tiles = f", larger ones in tiles, up to {image.longest_px} px" if image.longest_px else ""
        facts["image"] = f"{image.width} x {image.height} px{tiles}"
        facts["context"] = f"{outline.context_tokens} tokens"
        facts["prompts"] = "follows instructions" if outline.follows_instructions else "follows no instructions"
    elif refusal is None:
        facts["config"] = "this family reads the rest of it at the export"
    if card is not None:
        facts["license"] = card.license or "not stated"
    return [head, *(f"  {fact + ':':<12}{text}" for fact, text in facts.items())]


def _sizes(weights: Weights) -> dict[str, str]:
    counts = [weights.encoder_parameters + weights.decoder_parameters, weights.encoder_parameters]
    total, encoder, decoder = (f"{count / 1e6:,.1f} million" for count in (*counts, weights.decoder_parameters))
    return {
        "parameters": f"{total}: encoder {encoder}, decoder {decoder}",
        "encoder": _memory(weights.encoder_bytes),
        "decoder": f"{_memory(weights.decoder_bytes)}, and the key/value cache",
    }


def _memory(sizes: dict[str, int]) -> str:
    return ", ".join(f"{size / 2**20:,.0f} MiB in {precision}" for precision, size in sizes.items())
