"""Parity: the engine's captions equal those of generate(), for every family."""

from __future__ import annotations

import pytest

from benchmarks import parity
from benchmarks.published import EMBEDDED_NAME, NAMES

FAST = ("vit-gpt2", "smolvlm")  # one decoder with cross-attention, one with the image in its prompt


@pytest.mark.parametrize(
    "model", [name if name in FAST else pytest.param(name, marks=pytest.mark.exhaustive) for name in NAMES]
)
def test_captions_of_concurrent_requests_equal_those_of_generate_one_at_a_time(model: str) -> None:
    requests = 128 if model == EMBEDDED_NAME else 64  # the shipped model's captions of random patches are short
    report = parity.check(model, "tiny", requests=requests, seed=0)
    assert report.mismatches == []
    assert report.requests == requests and report.cancelled >= 5 and report.by_stop >= 5
    assert report.tokens >= 500 and report.different >= 30 and report.beams == 15


def test_the_parity_document_lists_mismatches() -> None:
    report = parity.Report("vit-gpt2", "tiny", 64, mismatches=["request 3, token 5: 1 for 2, logits 1.0e-07 apart"])
    text = parity.document([report], "python -m benchmarks.parity")
    assert "| vit-gpt2 | tiny | 64 |" in text and text.rstrip().endswith("logits 1.0e-07 apart")
