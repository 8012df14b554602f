"""Tell whether a model can be served, and what that takes, from the files beside its weights; the weights stay unread.

It asks the family that would export the model. A fault of the weights themselves shows only at the export.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import transformers
from transformers import AutoTokenizer

from captioner.artifacts.manifest import Card
from captioner.errors import ArtefactBroken, CaptionerError, ModelMissing, ModelUnsupported
from captioner.families import family
from captioner.families.base import Outline
from captioner.hub.resolve import check_safetensors, local_folder, refuse_revision
from captioner.hub.weights import Tensor, read_tensors
from export.export import read_model_type
from export.model_card import read_card

# The parts of published models that become the vision encoder; all other weights are the decoder's.
ENCODER = re.compile(
    r"(model\.|git\.)?"
    r"(vision_tower|vision_model|visual|image_encoder|visual_projection|multi_modal_projector|connector|image_proj\w*)\."
    r"|(encoder|enc_to_dec_proj)\."
)
EMBEDDING = re.compile(r"embed|wte|wpe|lm_head|shared")  # stays in 16 bits where linear layers are quantized
# Bytes of a weight: in linear layers, and in all others. nf4 has one scale of 4 bytes for 64 weights.
DECODER_BYTES = {"fp32": (4.0, 4.0), "bf16": (2.0, 2.0), "int8": (1.0, 2.0), "nf4": (0.5 + 4 / 64, 2.0)}
ENCODER_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0}


@dataclass(frozen=True)
class Weights:
    """The published weights: parameters, and bytes of memory by precision, without the key/value cache."""

    encoder_parameters: int
    decoder_parameters: int
    encoder_bytes: dict[str, int]
    decoder_bytes: dict[str, int]


@dataclass(frozen=True)
class Verdict:
    """Whether a model can be served. `refusal`: the error that its export would raise; the rest is known without it.

    `outline` is None for a family that reads its config only when it loads the weights.
    """

    model: str
    revision: str  # the Hub's commit, empty for a folder
    refusal: CaptionerError | None
    model_type: str = ""
    outline: Outline | None = None
    weights: Weights | None = None
    card: Card | None = None


def check(model: str, revision: str | None = None) -> Verdict:
    """Return the verdict on a folder or a Hub id.

    Of a Hub id, the small files are downloaded, and the headers of the weights are read. Raises ModelMissing,
    AccessDenied, HubUnreachable or CacheUnwritable if nothing can be said.
    """
    commit = ""
    try:
        if folder := local_folder(model):
            refuse_revision(model, folder, revision)
            check_safetensors(folder)
        else:
            from captioner.hub.pull import pull

            snapshot = pull(model, revision, weights=False)
            folder, commit = snapshot.folder, snapshot.commit
    except ModelMissing:
        raise
    except ModelUnsupported as error:
        return Verdict(model, revision or "", error)
    verdict = Verdict(model, commit, None, card=read_card(folder))
    transformers.logging.set_verbosity_error()
    try:
        verdict = replace(verdict, weights=_weights(model, commit, folder), model_type=read_model_type(folder))
        verdict = replace(verdict, outline=family(verdict.model_type).check(folder))
        AutoTokenizer.from_pretrained(folder, local_files_only=True)  # as every family does
    except (ModelUnsupported, ArtefactBroken) as error:
        return replace(verdict, refusal=error)
    except CaptionerError:
        raise
    except Exception as error:  # transformers raises errors of many types for a file that is missing or unreadable
        return replace(verdict, refusal=ModelUnsupported(f"{model} cannot be loaded: {error}"))
    return verdict


def _weights(model: str, commit: str, folder: Path) -> Weights:
    from captioner.hub import api
    from captioner.hub.pull import weight_files

    tensors: dict[str, Tensor] = {}
    for name in weight_files(folder):
        if commit and not (folder / name).exists():
            tensors |= api.tensors(model, commit, name)
        else:
            tensors |= read_tensors(folder / name)
    return measure(tensors)


def measure(tensors: Mapping[str, Tensor]) -> Weights:
    """Return what the tensors of a published model take, by name."""
    encoder = sum(tensor.count for name, tensor in tensors.items() if ENCODER.match(name))
    decoder = {name: tensor for name, tensor in tensors.items() if not ENCODER.match(name)}
    total = sum(tensor.count for tensor in decoder.values())
    linear = sum(tensor.count for name, tensor in decoder.items() if _is_linear(name, tensor))
    return Weights(
        encoder,
        total,
        {precision: round(encoder * size) for precision, size in ENCODER_BYTES.items()},
        {
            precision: round(linear * of_linear + (total - linear) * of_others)
            for precision, (of_linear, of_others) in DECODER_BYTES.items()
        },
    )


def _is_linear(name: str, tensor: Tensor) -> bool:
    return name.endswith(".weight") and len(tensor.shape) == 2 and EMBEDDING.search(name) is None
