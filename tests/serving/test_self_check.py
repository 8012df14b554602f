"""The self-test of a load: only the exported decoder reproduces the golden caption."""

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
    """The manifest of an export of the tiny decoder."""
    (tokens,) = greedy(tiny.runner(1), (1, tiny.STOP), [(PROMPT, tiny.features(1), GOLDEN_TOKENS)])
    golden = GoldenSample(tuple(PROMPT), tuple(tokens), tiny.tokenizer().decode(tokens))
    return replace(Manifest.load(tiny.published()), golden_sample=golden)


@pytest.mark.parametrize("exact", [True, False])
def test_the_exported_decoder_reproduces_its_golden_caption(folder: Path, manifest: Manifest, exact: bool) -> None:
    check_decoder(tiny.runner(3), manifest, folder, exact=exact)


def test_a_version_without_a_golden_sample_passes(folder: Path, manifest: Manifest) -> None:
    check_decoder(tiny.runner(1), replace(manifest, golden_sample=None), folder, exact=True)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("spoil", [float("nan"), 0.0, -1.0])
def test_other_weights_are_refused_whether_or_not_the_match_must_be_exact(
    folder: Path, manifest: Manifest, exact: bool, spoil: float
) -> None:
    runner = tiny.runner(1)
    with torch.no_grad():
        for weight in next(iter(vars(runner.decoder).values())).parameters():
            weight.mul_(spoil)
    with pytest.raises(ArtefactBroken, match="golden caption"):
        check_decoder(runner, manifest, folder, exact=exact)


def test_one_different_token_is_refused_only_if_the_match_must_be_exact(folder: Path, manifest: Manifest) -> None:
    assert manifest.golden_sample is not None
    *first, last = manifest.golden_sample.token_ids
    near = replace(manifest, golden_sample=replace(manifest.golden_sample, token_ids=(*first, last + 1)))
    check_decoder(tiny.runner(1), near, folder, exact=False)
    with pytest.raises(ArtefactBroken, match="exporter's had"):
        check_decoder(tiny.runner(1), near, folder, exact=True)


def test_unreadable_golden_features_are_refused_by_file_name(tmp_path: Path) -> None:
    with pytest.raises(ArtefactBroken, match=GOLDEN_FEATURES):
        load_features(tmp_path)
    (tmp_path / GOLDEN_FEATURES).write_bytes(b"\x00" * 20)
    with pytest.raises(ArtefactBroken, match=GOLDEN_FEATURES):
        load_features(tmp_path)


def test_a_served_caption_is_compared_word_by_word() -> None:
    golden = GoldenSample((), (1,), "A cat on a mat")
    check_caption(golden, "A cat on a mat")
    check_caption(golden, "A cat on the mat")
    with pytest.raises(ArtefactBroken, match="'Dogs run'; the exporter's was 'A cat on a mat'"):
        check_caption(golden, "Dogs run")


@given(st.lists(st.integers(0, 5)), st.lists(st.integers(0, 5)))
def test_overlap_is_symmetric_between_0_and_1_and_1_for_equal_multisets(one: list[int], other: list[int]) -> None:
    assert overlap(one, sorted(one)) == 1
    assert 0 <= overlap(one, other) == overlap(other, one) <= 1
    assert (overlap(one, other) == 1) == (sorted(one) == sorted(other))
