"""How a request wants its caption decoded: its own parameters, and the model's defaults for the others."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from captioner.artifacts.manifest import Generation
from captioner.engine.consensus import TEMPERATURE
from captioner.engine.sampling import Sampling
from captioner.errors import ParameterInvalid
from captioner.wire import CaptionParameters


@dataclass(frozen=True)
class DecodingOptions:
    """At most one of `num_beams` and `candidates` is above 1: the slots that the caption takes."""

    sampling: Sampling
    num_beams: int
    candidates: int


def resolve_decoding(parameters: CaptionParameters, published: Generation, slots: int) -> DecodingOptions:
    """Return the options of one request. Raises ParameterInvalid if two exclude each other or need too many slots."""
    beams, candidates, temperature = parameters.num_beams, parameters.candidates, parameters.temperature
    for name, width in (("num_beams", beams or 1), ("candidates", candidates)):
        if width > slots:
            raise ParameterInvalid(f"{name} is {width}; this server has {slots} slots")
    if beams is None:
        beams = 1 if temperature or candidates > 1 else published.num_beams
    elif beams > 1 and candidates > 1:
        raise ParameterInvalid(f"candidates is {candidates} and num_beams {beams}; use one of the two")
    elif beams > 1 and temperature:
        raise ParameterInvalid(
            f"num_beams is {beams} and temperature {temperature:g}; beam search does not sample: use one of the two"
        )
    return DecodingOptions(_sampling(parameters, published), beams, candidates)


def _sampling(parameters: CaptionParameters, published: Generation) -> Sampling:
    penalty, ngram = parameters.repetition_penalty, parameters.no_repeat_ngram_size
    temperature, seed = parameters.temperature, parameters.seed
    if parameters.candidates > 1 and not temperature:
        temperature, seed = TEMPERATURE, 0  # equal requests of temperature 0 give equal captions
    return Sampling(
        temperature=temperature,
        top_p=parameters.top_p,
        top_k=parameters.top_k,
        repetition_penalty=published.repetition_penalty if penalty is None else penalty,
        no_repeat_ngram_size=published.no_repeat_ngram_size if ngram is None else ngram,
        seed=secrets.randbits(32) if seed is None else seed,
    )
