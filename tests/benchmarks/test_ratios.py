"""The engine keeps its lead over transformers' `generate()`: ratios of one run, so a slower machine changes nothing."""

from __future__ import annotations

import pytest
import torch

from benchmarks.engine import SLOTS, measure
from benchmarks.published import published

# docs/performance.md has 3.99 and 1.24 at 16 clients. A ratio below these bounds is no noise: three rounds of one run
# differed by a tenth.
OVER_SEQUENTIAL_AT_16 = 2.8
OVER_BATCHES_AT_16 = 1.0
OVER_GENERATE_AT_1 = 0.9


@pytest.mark.exhaustive
@pytest.mark.alone
def test_sixteen_captions_are_faster_together_than_by_generate() -> None:
    torch.set_num_threads(2)
    found = measure(published("vit-gpt2", "published"), [1, SLOTS], requests=32, rounds=2, limits_s=(6.0, 15.0))
    ratios = found["ratios"]
    assert isinstance(ratios, dict)
    assert ratios["tokens_per_s_at_16_over_sequential"] >= OVER_SEQUENTIAL_AT_16, ratios
    assert ratios["tokens_per_s_at_16_over_batched"] >= OVER_BATCHES_AT_16, ratios
    assert ratios["tokens_per_s_at_1_over_generate"] >= OVER_GENERATE_AT_1, ratios
    ours, compared = str(found["equal_captions"]).split(" of ")
    assert ours == compared != "0"
