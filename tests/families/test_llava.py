"""LLaVA, tiny and seeded: what is served is what the published model does with its own processor and generate()."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoTokenizer, CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from benchmarks.seeded import llava as seeded
from captioner.artifacts.manifest import Manifest
from captioner.decoders import prefix
from captioner.decoders.base import Decoder
from captioner.errors import ModelUnsupported, ParameterInvalid
from captioner.families import family
from captioner.families.base import Source
from captioner.families.chat_prompts import PROMPTS
from captioner.families.llava import SYSTEM, Llava
from captioner.image.decode import load_pixels
from captioner.image.spec import ImageSpec
from export.onnx_export import export_vision_encoder, onnx_features
from tests.image.test_decode import NOISE, file
from tests.support.greedy import Request, greedy_rows, pictures, publish

LIMIT, TOKENS = 24, 16
PROMPT_TEXTS = ["a short one", "and this prompt is somewhat longer, it has a comma", "", "tell all of it"]
AS_PARTS = "{% for turn in messages %}{% for part in turn['content'] if part['type'] == 'image' %}" + (
    seeded.IMAGE + "\n{% endfor %}{% for part in turn['content'] if part['type'] == 'text' %}{{ part['text'] }}"
    "{% endfor %}{% endfor %}"
)
AS_TEXT_WITHOUT_SYSTEM = (
    "{% for turn in messages %}{% if turn['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "[{{ turn['content'] }}]{% endfor %}"
)
AS_TEXT = "{% for turn in messages %}{{ turn['role'] }}: {{ turn['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny-llava")
    seeded.save(made, "tiny")
    return made


@pytest.fixture(scope="module")
def source(folder: Path) -> Source:
    return Llava.load(folder)


@pytest.fixture(scope="module")
def version(source: Source, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    made = tmp_path_factory.mktemp("published-llava")
    return made, publish(source, "llava", made)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def requests(source: Source, version: tuple[Path, Manifest], tokenizer: Tokenizer) -> list[Request]:
    with torch.inference_mode():
        features_BTD = source.vision_encoder(pictures(len(PROMPT_TEXTS), 32))
    ids = [Llava.prompt_ids(tokenizer, version[1], text) for text in PROMPT_TEXTS]
    return [(features, prompt_ids, LIMIT) for features, prompt_ids in zip(features_BTD, ids, strict=True)]


@pytest.fixture(scope="module")
def expected(source: Source, requests: list[Request]) -> list[list[int]]:
    images = pictures(len(PROMPT_TEXTS), 32)
    return [
        source.generate(image, ids, max_new_tokens=LIMIT) for image, (_, ids, _) in zip(images, requests, strict=True)
    ]


def served(version: tuple[Path, Manifest], precision: Any = "fp32") -> Decoder:
    decoder = Llava.decoder(*version, precision, torch.device("cpu"))
    decoder.allocate(4)
    return decoder


def changed(folder: Path, to: Path, file_name: str, **changes: object) -> Path:
    """A copy of the model folder with keys of one JSON file changed."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    path = to / file_name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return to


def variant(folder: Path, to: Path, clip: bool, **changes: object) -> LlavaForConditionalGeneration:
    """The model with another tower or another selection, saved to `to`."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    config = seeded.config("tiny").to_dict() | changes
    if clip:
        size: dict[str, Any] = {
            name: config["vision_config"][name] for name in ("hidden_size", "image_size", "patch_size")
        }
        heads: dict[str, Any] = {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}
        config["vision_config"] = CLIPVisionConfig(**size, **heads).to_dict()
    torch.manual_seed(5)
    model = LlavaForConditionalGeneration(LlavaConfig(**config))
    model.eval()
    seeded.enlarge(model, 0)
    model.save_pretrained(to)
    return model


def test_the_family_is_registered() -> None:
    assert family("llava") is Llava


@pytest.mark.parametrize(
    ("published", "expected"), [({}, 512), ({"max_length": 4096}, 512), ({"max_new_tokens": 99}, 99)]
)
def test_a_limit_that_counts_the_image_is_no_limit_of_captions(
    folder: Path, tmp_path: Path, published: dict[str, object], expected: int
) -> None:
    assert (
        Llava.load(changed(folder, tmp_path, "generation_config.json", **published)).generation.max_tokens == expected
    )


def test_a_source_carries_what_the_folder_says(source: Source) -> None:
    assert source.image == ImageSpec(32, 32, "bicubic")
    assert (source.image_token_id, source.start_ids) == (seeded.TINY[seeded.IMAGE], ())
    assert source.stop_ids == (seeded.TINY[seeded.TURN],)
    assert source.prompts is PROMPTS


@pytest.mark.parametrize("text", ["what is it?", "  a name: é 猫", ""])
def test_prompt_ids_are_those_of_the_models_own_processor(
    folder: Path, version: tuple[Path, Manifest], tokenizer: Tokenizer, text: str
) -> None:
    processor = LlavaProcessor(
        SiglipImageProcessorPil.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        patch_size=7,
        vision_feature_select_strategy="full",
        image_token=seeded.IMAGE,
    )
    chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "|" + text}]  # the template trims
    rendered = processor.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    theirs = processor(text=[rendered], images=[NOISE], add_special_tokens=False)["input_ids"][0]
    assert Llava.prompt_ids(tokenizer, version[1], "|" + text) == list(theirs)
    assert list(theirs).count(seeded.TINY[seeded.IMAGE]) == TOKENS


@pytest.mark.parametrize(
    ("template", "prompt_template"),
    [
        (AS_PARTS, seeded.IMAGE + "\n{prompt}"),
        (AS_TEXT_WITHOUT_SYSTEM, f"[{seeded.IMAGE}\n{{prompt}}]"),
        (AS_TEXT, f"system: {SYSTEM}\nuser: {seeded.IMAGE}\n{{prompt}}\n"),
    ],
)
def test_a_template_that_leaves_the_image_to_the_user_gets_it_in_front(
    folder: Path, tmp_path: Path, template: str, prompt_template: str
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(template)
    changed_source = Llava.load(tmp_path)
    assert changed_source.prompt_template == prompt_template.replace(seeded.IMAGE, "{image}")
    assert changed_source.start_ids == (seeded.TINY[seeded.BOS],), "the template writes none, so the tokenizer does"


def test_a_processors_template_comes_before_the_tokenizers(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": AS_PARTS}))
    assert Llava.load(tmp_path).prompt_template == "{image}\n{prompt}"


@pytest.mark.parametrize("template", ["{{ 'nothing' }}", AS_PARTS + AS_PARTS, "{{ raise_exception('no') }}"])
def test_a_template_without_one_place_for_image_and_prompt_is_refused(
    folder: Path, tmp_path: Path, template: str
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelUnsupported, match="no single place"):
        Llava.load(tmp_path)


def test_a_prompt_with_the_images_token_is_refused(version: tuple[Path, Manifest], tokenizer: Tokenizer) -> None:
    with pytest.raises(ParameterInvalid, match="reserved_special_token_69"):
        Llava.prompt_ids(tokenizer, version[1], f"two {seeded.IMAGE} of them")


@pytest.mark.parametrize(
    ("clip", "layer", "strategy", "tokens", "layers"),
    [
        (False, -2, "full", 16, 2),
        (False, -1, "full", 16, 3),
        (False, 1, "full", 16, 1),
        (False, 2, "default", 15, 2),
        (True, -2, "default", 16, 2),
        (True, 3, "full", 17, 3),
    ],
)
def test_features_are_those_of_the_selected_layer_and_no_layer_above_it_is_run(
    folder: Path, tmp_path: Path, clip: bool, layer: int, strategy: str, tokens: int, layers: int
) -> None:
    changes = {"vision_feature_layer": layer, "vision_feature_select_strategy": strategy}
    model = variant(folder, tmp_path, clip, **changes)
    made = Llava.load(tmp_path)
    pixels, _ = load_pixels(file(NOISE, "PNG"), made.image)
    values = SiglipImageProcessorPil.from_pretrained(folder)(NOISE, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        theirs = model.get_image_features(values, **changes).pooler_output[0]
        ours = made.vision_encoder(torch.from_numpy(pixels.copy())[None])[0]
    assert ours.shape == (tokens, 32)
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert len(made.vision_encoder.get_submodule("layers")) == layers  # type: ignore[arg-type]


def test_features_of_the_onnx_graph_are_the_same_at_another_batch_size(source: Source, tmp_path: Path) -> None:
    path = export_vision_encoder(source, tmp_path, {})
    pixels = pictures(3, 32)
    with torch.inference_mode():
        ours = source.vision_encoder(pixels)
    assert torch.allclose(torch.from_numpy(onnx_features(path, pixels.numpy())), ours, atol=1e-4)


def test_rows_of_different_ages_are_written_as_the_original_writes_them(
    version: tuple[Path, Manifest], source: Source, requests: list[Request], expected: list[list[int]]
) -> None:
    assert greedy_rows(served(version), requests, source.stop_ids) == expected
    assert len({tuple(ids) for ids in expected}) == len(expected), "images and prompts make no difference"
    assert any(ids[-1] in source.stop_ids for ids in expected), "none ends by itself"
    assert any(len(ids) > 8 for ids in expected)


def test_a_prompt_longer_than_one_pass_is_prefilled_the_same(
    version: tuple[Path, Manifest], source: Source, requests: list[Request], expected: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(prefix, "PREFILL_QUERIES", 7)
    assert greedy_rows(served(version), requests, source.stop_ids) == expected


def test_what_a_row_held_before_does_not_matter(
    version: tuple[Path, Manifest], source: Source, requests: list[Request], expected: list[list[int]]
) -> None:
    decoder = served(version)
    for layer in decoder.text_layers:
        layer.keys.fill_(torch.nan)
        layer.values.fill_(torch.nan)
    assert greedy_rows(decoder, requests, source.stop_ids) == expected


def test_a_copied_row_goes_on_like_the_first(version: tuple[Path, Manifest], requests: list[Request]) -> None:
    decoder = served(version)
    features, ids, _ = requests[1]
    decoder.prefill(0, features, ids)
    decoder.prefill(1, *requests[0][:2])
    decoder.copy([0], [1], len(ids) - 1)
    last_B, positions_B = torch.tensor([ids[-1]] * 2), torch.tensor([len(ids) - 1] * 2)
    logits_BV = decoder.decode(last_B, positions_B, len(ids))
    assert torch.allclose(logits_BV[0], logits_BV[1], atol=1e-5)


def test_a_step_reads_nothing_back_to_the_host(version: tuple[Path, Manifest], requests: list[Request]) -> None:
    decoder = served(version)
    decoder.prefill(0, *requests[0][:2])
    with FakeTensorMode(allow_non_fake_inputs=True):  # its tensors have shapes and no values that could be read
        logits_BV = decoder.decode(torch.tensor([5, 6]), torch.tensor([3, 40]), 64)
    assert logits_BV.shape == (2, decoder.vocabulary)


@pytest.mark.parametrize("tokens", [TOKENS - 1, TOKENS + 1])
def test_features_that_do_not_match_the_prompt_are_refused(
    version: tuple[Path, Manifest], requests: list[Request], tokens: int
) -> None:
    with pytest.raises(ValueError, match=f"{TOKENS} image tokens, the image {tokens} features"):
        served(version).prefill(0, torch.zeros(tokens, 32), requests[0][1])


def test_bf16_weights_write_nearly_the_same_logits(version: tuple[Path, Manifest], requests: list[Request]) -> None:
    logits = []
    for precision in ("fp32", "bf16"):
        decoder = served(version, precision)
        features, ids, _ = requests[0]
        decoder.prefill(0, features, ids)
        logits.append(decoder.decode(torch.tensor([ids[-1]]), torch.tensor([len(ids) - 1]), len(ids)).float())
    assert torch.nn.functional.cosine_similarity(logits[0], logits[1]) > 0.99


def test_the_published_decoder_is_a_plain_language_model(version: tuple[Path, Manifest], source: Source) -> None:
    config = json.loads((version[0] / "decoder" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    decoder = served(version)
    assert decoder.vocabulary == 300
    assert (decoder.shape.heads, decoder.shape.head_size, decoder.shape.positions) == (2, 8, source.context_tokens)


@pytest.mark.parametrize(
    ("file_name", "changes", "named"),
    [
        ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ("config.json", {"vision_feature_layer": [-2, -1]}, r"vision_feature_layer is \[-2, -1\]"),
        ("config.json", {"vision_feature_layer": -4}, "vision_feature_layer is -4"),
        ("config.json", {"vision_feature_layer": 4}, "vision_feature_layer is 4"),
        ("config.json", {"vision_feature_select_strategy": "cls"}, "'cls'"),
        ("config.json", {"vision_config": {"model_type": "pixtral"}}, "'pixtral'"),
        ("preprocessor_config.json", {"resample": 4}, "resample 4"),
        ("preprocessor_config.json", {"do_pad": True}, "do_pad True"),
    ],
)
def test_what_would_be_served_wrongly_is_refused_by_name(
    folder: Path, tmp_path: Path, file_name: str, changes: dict[str, object], named: str
) -> None:
    with pytest.raises(ModelUnsupported, match=named):
        Llava.load(changed(folder, tmp_path, file_name, **changes))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "'dynamic'"),
        ({"model_type": "mistral", "sliding_window": 64}, "sliding_window is 64"),
    ],
)
def test_attention_that_slots_would_get_wrong_is_refused_by_name(
    folder: Path, tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    with pytest.raises(ModelUnsupported, match=named):
        Llava.load(changed(folder, tmp_path, "config.json", text_config=text | changes))


def test_the_published_size_is_joycaptions() -> None:
    config = seeded.config("published")
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    assert config.image_seq_length == 729
    assert 8.4e9 < sum(weights.numel() for weights in model.parameters()) < 8.6e9
