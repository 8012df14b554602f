"""What only Florence-2 does: a forced first token, tasks as styles, a text encoder; the contract suite has the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Florence2ForConditionalGeneration, Florence2Processor, GenerationConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks.seeded import florence2
from captioner.engine.beam_search import BeamSearch
from captioner.engine.engine import Engine
from captioner.engine.runner import Runner
from captioner.engine.sampling import Sampling
from captioner.engine.sequence import Sequence
from captioner.errors import ModelUnsupported, PromptTooLong
from captioner.families.florence2 import MAX_TOKENS, PROMPT_TOKENS, TASKS
from captioner.image.spec import ImageSpec
from tests.families.conftest import TinyModels
from tests.families.tiny_model import ASKED, TinyModel, noise


@pytest.fixture(scope="module")
def model(tiny_models: TinyModels) -> TinyModel:
    return tiny_models("florence2")


def processor_of(folder: Path) -> Any:
    images = CLIPImageProcessorPil.from_pretrained(folder, do_rescale=False, do_normalize=False)
    return Florence2Processor(images, AutoTokenizer.from_pretrained(folder))


def test_pixels_equal_those_of_the_original_processor(model: TinyModel) -> None:
    processor = processor_of(model.folder)
    for size in [*(size for size, _ in ASKED), (33, 31), (9, 300), (32, 32)]:
        theirs = processor(text=[""], images=[noise(size)], return_tensors="np")["pixel_values"][0]
        assert np.array_equal(model.read(noise(size), "")[0].numpy(), theirs.transpose(1, 2, 0))


def test_every_style_gives_the_prompt_that_the_original_processor_makes_of_its_task(model: TinyModel) -> None:
    processor, prompts = processor_of(model.folder), model.source.prompts
    assert {style: list(lengths) for style, lengths in prompts.styles.items()} == {
        style: list(lengths) for style, lengths in TASKS.items()
    }
    for style, lengths in TASKS.items():
        for length, task in lengths.items():
            theirs = processor(text=[task], images=[noise((32, 32))])["input_ids"][0]
            ours = model.read(noise((32, 32)), prompts.render(style, length))[1]
            assert ours[: -len(model.source.start_ids)] == list(theirs)[processor.num_image_tokens :]


def test_the_forced_first_token_is_honoured(model: TinyModel) -> None:
    original: Any = Florence2ForConditionalGeneration.from_pretrained(model.folder).eval()
    assert original.generation_config.forced_bos_token_id == florence2.FORCED
    processor = processor_of(model.folder)
    for (pixels, prompt_ids), expected in zip(model.inputs, model.expected, strict=True):
        ids = torch.tensor([[processor.image_token_id] * processor.num_image_tokens + prompt_ids[:-2]])
        written = original.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=model.source.vision_encoder.normalise(pixels[None]),  # type: ignore[operator]
            max_new_tokens=model.case.limit + 1,  # it counts the forced token
        )
        assert written[0].tolist() == [florence2.START, florence2.FORCED, *expected]


@pytest.mark.parametrize("width", [1, 3])
def test_repeated_ngrams_are_left_out_as_in_generate(model: TinyModel, width: int) -> None:
    """Only the decoder's own ids count, not the prompt that the encoder reads."""
    rule: dict[str, Any] = {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3}
    sequences = []
    for features, prompt_ids, limit in model.requests:
        sequence = Sequence(prompt_ids, Sampling(**rule), limit, features=features, encoded_ids=len(prompt_ids) - 2)
        if width > 1:
            stops: dict[str, Any] = {"stop_ids": model.source.stop_ids, "early_stopping": True}
            sequence.beams = BeamSearch(sequence.text_ids, width=width, max_tokens=limit, **stops, **rule)
        sequences.append(sequence)
    engine = Engine(Runner(model.decoder(), len(ASKED)), model.source.stop_ids, max_waiting=len(sequences))
    for sequence in sequences:
        engine.admit(sequence)
        engine.submit(sequence)
    while (load := engine.load()).running + load.waiting:
        engine.step()
    for sequence, (pixels, prompt_ids), plain in zip(sequences, model.inputs, model.expected, strict=True):
        options = {"num_beams": width, "early_stopping": width > 1, "max_new_tokens": model.case.limit}
        theirs = model.source.generate(pixels, prompt_ids, do_sample=False, **options, **rule)
        assert sequence.token_ids == [token for token in theirs if token not in model.source.stop_ids]
        assert theirs != plain


def test_published_settings_against_repetition_are_defaults_up_to_a_limit(model: TinyModel, tmp_path: Path) -> None:
    for published, expected in ((3, 3), (9, 0)):
        folder = model.changed(tmp_path, "generation_config.json", no_repeat_ngram_size=published)
        assert model.kind.load(folder).generation.no_repeat_ngram_size == expected


def test_without_a_forced_token_captions_start_with_the_start_id(model: TinyModel, tmp_path: Path) -> None:
    folder = model.changed(tmp_path, "generation_config.json", forced_bos_token_id=None, decoder_start_token_id=None)
    assert model.kind.load(folder).start_ids == (florence2.START,), "config.json has it too"


def test_a_model_without_a_published_limit_writes_up_to_max_tokens(model: TinyModel) -> None:
    assert model.source.generation.max_tokens == MAX_TOKENS


def test_a_prompt_that_the_encoder_has_no_room_for_is_refused(model: TinyModel) -> None:
    longest = PROMPT_TOKENS - 2  # beside <s> and </s>
    assert len(model.read(noise((32, 32)), "," * longest)[1]) == PROMPT_TOKENS + 2
    with pytest.raises(PromptTooLong, match=f"{PROMPT_TOKENS + 1} tokens; the limit is {PROMPT_TOKENS}"):
        model.read(noise((32, 32)), "," * (longest + 1))


@pytest.mark.parametrize(("features", "prompt"), [(16, 5), (18, 5), (17, PROMPT_TOKENS + 1)])
def test_a_row_refuses_more_than_it_holds(model: TinyModel, features: int, prompt: int) -> None:
    with pytest.raises(ValueError, match=f"{features} features and {prompt} prompt ids; a row holds 17 and 128"):
        model.decoder(slots=1).prefill(0, torch.zeros(features, 32), [5] * prompt + [2, 0])


def test_a_longer_prompt_before_it_does_not_matter(model: TinyModel) -> None:
    decoder = model.decoder(slots=1)
    features, prompt_ids, _ = model.requests[0]

    def first_logits() -> torch.Tensor:
        decoder.prefill(0, features, prompt_ids)
        position = len(prompt_ids) - 1
        return decoder.decode(torch.tensor(prompt_ids[-1:]), torch.tensor([position]), position + 1)

    alone = first_logits()
    decoder.prefill(0, features, [7] * PROMPT_TOKENS + [2, 0])
    assert torch.equal(first_logits(), alone)


@pytest.mark.slow
def test_the_published_configuration_is_accepted_with_fewer_layers(model: TinyModel, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    config: Any = florence2.config("published", len(tokenizer), tokenizer.image_token_id)
    config.vision_config.depths = (1, 1, 1, 1)
    config.text_config.encoder_layers = config.text_config.decoder_layers = 1
    torch.manual_seed(0)
    original = Florence2ForConditionalGeneration(config).eval()
    original.generation_config = GenerationConfig(decoder_start_token_id=2, forced_bos_token_id=0, eos_token_id=2)
    folder = model.changed(
        tmp_path, "preprocessor_config.json", size={"height": 768, "width": 768}, image_seq_length=577
    )
    original.save_pretrained(folder)
    source = model.kind.load(folder)
    assert (source.image, source.context_tokens) == (ImageSpec(768, 768, "bicubic"), PROMPT_TOKENS + MAX_TOKENS)
    pixels = torch.randint(0, 256, (1, 768, 768, 3), dtype=torch.uint8)
    with torch.inference_mode():
        theirs = original.get_image_features(source.vision_encoder.normalise(pixels)).pooler_output  # type: ignore[operator]
        assert torch.equal(source.vision_encoder(pixels), theirs)
    assert theirs.shape == (1, 577, 768)


@pytest.mark.parametrize("name", ["decoder_start_token_id", "eos_token_id"])
def test_a_model_without_a_start_or_a_stop_id_is_refused(model: TinyModel, tmp_path: Path, name: str) -> None:
    folder = model.changed(tmp_path, "config.json", text_config={name: None})
    path = folder / "generation_config.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != name}))
    with pytest.raises(ModelUnsupported, match=f"{name} is None"):
        model.kind.load(folder)
