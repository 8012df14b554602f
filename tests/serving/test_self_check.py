"""The check caption: written again by what was exported, and by nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from captioner.artifacts.golden import GOLDEN_TOKENS, check_caption, load_features, overlap
from captioner.artifacts.manifest import GOLDEN_FEATURES, GoldenSample, Manifest
from captioner.engine.greedy import greedy
from captioner.errors import ArtefactBroken
from captioner.serving.self_check import check_decoder
from tests.support import tiny

PROMPT = [0, 2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"features": tiny.features(1)}, tmp_path / GOLDEN_FEATURES)
    return tmp_path


@pytest.fixture
def manifest() -> Manifest:
    """As an exporter of the tiny decoder would write it."""
    (tokens,) = greedy(tiny.runner(1), (1, tiny.STOP), [(PROMPT, tiny.features(1), GOLDEN_TOKENS)])
    check = GoldenSample(tuple(PROMPT), tuple(tokens), tiny.tokenizer().decode(tokens))
    return replace(Manifest.load(tiny.published()), golden_sample=check)


@pytest.mark.parametrize("exact", [True, False])
def test_the_exported_decoder_writes_its_check_caption_again(folder: Path, manifest: Manifest, exact: bool) -> None:
    check_decoder(tiny.runner(3), manifest, folder, exact=exact)


def test_a_version_without_a_check_has_nothing_to_compare(folder: Path, manifest: Manifest) -> None:
    check_decoder(tiny.runner(1), replace(manifest, golden_sample=None), folder, exact=True)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("spoil", [float("nan"), 0.0, -1.0])
def test_other_weights_are_refused_in_any_precision(
    folder: Path, manifest: Manifest, exact: bool, spoil: float
) -> None:
    runner = tiny.runner(1)
    with torch.no_grad():
        for weight in next(iter(vars(runner.decoder).values())).parameters():
            weight.mul_(spoil)
    with pytest.raises(ArtefactBroken, match="golden caption"):
        check_decoder(runner, manifest, folder, exact=exact)


def test_one_other_token_is_refused_where_all_must_be_equal_and_let_through_where_rounding_differs(
    folder: Path, manifest: Manifest
) -> None:
    assert manifest.golden_sample is not None
    *most, last = manifest.golden_sample.token_ids
    near = replace(manifest, golden_sample=replace(manifest.golden_sample, token_ids=(*most, last + 1)))
    check_decoder(tiny.runner(1), near, folder, exact=False)
    with pytest.raises(ArtefactBroken, match="exporter's had"):
        check_decoder(tiny.runner(1), near, folder, exact=True)


def test_features_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactBroken, match=GOLDEN_FEATURES):
        load_features(tmp_path)
    (tmp_path / GOLDEN_FEATURES).write_bytes(b"\x00" * 20)
    with pytest.raises(ArtefactBroken, match=GOLDEN_FEATURES):
        load_features(tmp_path)


def test_a_served_caption_is_compared_by_its_words() -> None:
    check = GoldenSample((), (1,), "A cat on a mat")
    check_caption(check, "A cat on a mat")
    check_caption(check, "A cat on the mat")
    with pytest.raises(ArtefactBroken, match="'Dogs run'; the exporter's was 'A cat on a mat'"):
        check_caption(check, "Dogs run")


@given(st.lists(st.integers(0, 5)), st.lists(st.integers(0, 5)))
def test_overlap_is_one_for_equal_bags_symmetric_and_within_bounds(one: list[int], other: list[int]) -> None:
    assert overlap(one, sorted(one)) == 1
    assert 0 <= overlap(one, other) == overlap(other, one) <= 1
    assert (overlap(one, other) == 1) == (sorted(one) == sorted(other))
