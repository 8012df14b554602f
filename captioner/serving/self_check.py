"""The self-test of a load: the decoder must reproduce the golden caption before the model becomes ready."""

from __future__ import annotations

from pathlib import Path

import torch

from captioner.artifacts.golden import GOLDEN_TOKENS, MIN_OVERLAP, load_features, overlap
from captioner.artifacts.manifest import Manifest
from captioner.engine.greedy import greedy
from captioner.engine.runner import Runner
from captioner.errors import ArtefactBroken


def check_decoder(runner: Runner, manifest: Manifest, folder: Path, *, exact: bool) -> None:
    """Decode the golden caption from the exporter's features in version folder `folder`.

    With `exact`, every token must match. Otherwise (another precision or device than the exporter's) MIN_OVERLAP of
    them must. Raises ArtefactBroken with both token lists. A model without a golden sample passes.
    """
    golden = manifest.golden_sample
    if golden is None:
        return
    max_tokens = min(GOLDEN_TOKENS, manifest.context_tokens - len(golden.prompt_ids))
    features = torch.from_numpy(load_features(folder))
    try:
        (found,) = greedy(runner, manifest.stop_ids, [(list(golden.prompt_ids), features, max_tokens)])
    except Exception as error:  # for example, logits that are not finite
        raise ArtefactBroken(f"decoding the golden caption failed: {error}") from error
    same = tuple(found) == golden.token_ids if exact else overlap(golden.token_ids, found) >= MIN_OVERLAP
    if not same:
        raise ArtefactBroken(f"the golden caption has tokens {found}; the exporter's had {list(golden.token_ids)}")
