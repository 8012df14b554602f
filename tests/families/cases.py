"""The families under test: one table entry for each. The contract suite runs every entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.seeded import blip, florence2, gemma3, idefics3, llava, paligemma, qwen_vl, vision_encoder_decoder
from captioner.families import chat_prompts
from captioner.families.concept_encoder_decoder import PROMPTS as EMBEDDED_PROMPTS
from captioner.families.paligemma import PROMPTS as TASKS
from captioner.image.spec import ImageSpec
from tests.families.originals import (
    Features,
    PromptIds,
    blip_features,
    blip_prompt_ids,
    florence2_features,
    florence2_prompt_ids,
    gemma3_features,
    gemma3_prompt_ids,
    git_features,
    idefics3_features,
    idefics3_prompt_ids,
    llava_prompt_ids,
    paligemma_prompt_ids,
    plain_prompt_ids,
    qwen_vl_features,
    qwen_vl_prompt_ids,
    siglip_features,
    vision_encoder_decoder_features,
)

Refusal = tuple[str, dict[str, Any], str]  # file, its changed keys, and what the error must contain


@dataclass(frozen=True)
class Case:
    """One family: how to make a tiny model of it, and what the original does with that model's folder."""

    seeded: str | None  # name in benchmarks.seeded, None for the embedded model
    source: dict[str, Any]  # expected fields of the Source
    architecture: str  # of the published decoder
    original_prompt_ids: Callable[[Path], PromptIds]
    original_features: Callable[[Path], Features] | None = None
    max_tokens: int = 16  # for a published max_length of 17
    limit: int = 20  # tokens of a caption; some captions must be shorter
    refused: tuple[Refusal, ...] = ()


NO_RESAMPLE: Refusal = ("preprocessor_config.json", {"resample": 4}, "resample is 4")
DYNAMIC_ROPE = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
NO_RESIZE: Refusal = ("preprocessor_config.json", {"do_resize": False}, "do_resize False")


def idefics3_case(model_type: idefics3.ModelType) -> Case:
    special = idefics3.special_ids("tiny")
    return Case(
        seeded=model_type,
        source={
            "image": ImageSpec(32, 32, "lanczos", longest_px=128),
            "image_token_id": special[idefics3.IMAGE],
            "start_ids": (),
            "stop_ids": (special[idefics3.TURN],),
            "context_tokens": 512,  # its positions; image and text together could take more
            "prompts": chat_prompts.PROMPTS,
        },
        architecture="LlamaForCausalLM",
        original_prompt_ids=idefics3_prompt_ids(model_type),
        original_features=idefics3_features(model_type),
        max_tokens=512,
        refused=(
            NO_RESIZE,
            ("config.json", {"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
            ("preprocessor_config.json", {"do_image_splitting": False}, "do_image_splitting False"),
            ("preprocessor_config.json", {"resample": 0}, "resample is 0"),
            ("preprocessor_config.json", {"size": {"height": 64, "width": 64}}, "size {'height': 64"),
            ("preprocessor_config.json", {"size": {"longest_edge": 8192}}, "size 8192"),
            ("preprocessor_config.json", {"size": {"longest_edge": 127}}, "size 127"),
            ("preprocessor_config.json", {"max_image_size": None}, "max_image_size None"),
        ),
    )


def qwen_vl_case(model_type: qwen_vl.ModelType, architecture: str, refused: Refusal) -> Case:
    return Case(
        seeded={"qwen3_vl": "qwen3-vl", "qwen2_5_vl": "qwen2.5-vl"}[model_type],
        source={
            "image": ImageSpec(8, 8, "bicubic", min_pixels=2 * 64, max_pixels=24 * 64),
            "image_token_id": qwen_vl.TINY[qwen_vl.IMAGE],
            "start_ids": (),
            "stop_ids": (qwen_vl.TINY[qwen_vl.END], qwen_vl.TINY[qwen_vl.TURN]),
            "context_tokens": 512,
            "prompts": chat_prompts.PROMPTS,
        },
        architecture=architecture,
        original_prompt_ids=qwen_vl_prompt_ids(model_type),
        original_features=qwen_vl_features,
        max_tokens=512,
        refused=(
            NO_RESAMPLE,
            NO_RESIZE,
            refused,
            ("config.json", {"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
            ("preprocessor_config.json", {"patch_size": 8}, "patch_size 8; vision_config has 4"),
            ("preprocessor_config.json", {"merge_size": 1}, "merge_size 1"),
            ("preprocessor_config.json", {"size": None}, "min_pixels None"),
            ("preprocessor_config.json", {"size": {"shortest_edge": 128}}, "max_pixels None"),
            ("preprocessor_config.json", {"max_pixels": 63}, "max_pixels 63"),
        ),
    )


CASES = {
    "blip": Case(
        seeded="blip",
        source={
            "image": ImageSpec(32, 32, "bicubic"),
            "start_ids": (blip.TINY_TOKENS,),
            "stop_ids": (blip.TINY["[SEP]"],),
            "context_tokens": 48,
        },
        architecture="BlipTextLMHeadModel",
        original_prompt_ids=blip_prompt_ids,
        original_features=blip_features,
        refused=(
            NO_RESAMPLE,
            NO_RESIZE,
            ("config.json", {"text_config": {"bos_token_id": None}}, "bos_token_id is None"),
            ("config.json", {"text_config": {"is_decoder": False}}, "is_decoder False"),
            ("config.json", {"vision_config": {"image_size": 48}}, "image_size is 48"),
        ),
    ),
    "concept-encoder-decoder": Case(
        seeded=None,
        source={
            "image": ImageSpec(260, 260, "bicubic"),
            "start_ids": (1,),
            "stop_ids": (2,),
            "context_tokens": 96,
            "prompts": EMBEDDED_PROMPTS,
        },
        architecture="GPT2LMHeadModel",
        original_prompt_ids=plain_prompt_ids(1),
        limit=8,
    ),
    "florence2": Case(
        seeded="florence2",
        source={
            "image": ImageSpec(32, 32, "bicubic"),
            "start_ids": (florence2.START, florence2.FORCED),
            "stop_ids": (florence2.STOP,),
            "context_tokens": 256,
        },
        architecture="BartForConditionalGeneration",
        original_prompt_ids=florence2_prompt_ids,
        original_features=florence2_features,
        refused=(
            NO_RESAMPLE,
            NO_RESIZE,
            ("config.json", {"text_config": {"model_type": "florence2_language"}}, "'florence2_language'"),
            ("config.json", {"text_config": {"max_position_embeddings": 144}}, "max_position_embeddings is 144"),
            ("preprocessor_config.json", {"do_center_crop": True}, "do_center_crop True"),
            ("preprocessor_config.json", {"image_seq_length": None}, "image_seq_length is None"),
            ("tokenizer_config.json", {"image_token": None}, "image_token is None"),
        ),
    ),
    "gemma3": Case(
        seeded="gemma3",
        source={
            "image": ImageSpec(32, 32, "bilinear"),
            "image_token_id": gemma3.TINY[gemma3.IMAGE],
            "start_ids": (),
            "stop_ids": (1, gemma3.TINY[gemma3.END]),
            "context_tokens": 256,  # the sliding window, with 512 positions
            "prompts": chat_prompts.PROMPTS,
        },
        architecture="Gemma3ForCausalLM",
        original_prompt_ids=gemma3_prompt_ids,
        original_features=gemma3_features,
        max_tokens=512,
        refused=(
            NO_RESAMPLE,
            ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
            ("config.json", {"text_config": {"final_logit_softcapping": 30.0}}, "final_logit_softcapping is 30.0"),
            ("config.json", {"vision_config": {"image_size": 48}}, "image_size is 48"),
            ("config.json", {"eoi_token_index": 400}, "400"),
            ("preprocessor_config.json", {"do_pan_and_scan": True}, "do_pan_and_scan True"),
            ("config.json", {"text_config": {"rope_parameters": {"full_attention": DYNAMIC_ROPE}}}, "'dynamic'"),
        ),
    ),
    "git": Case(
        seeded="git",
        source={
            "image": ImageSpec(32, 32, "bicubic", crop=True),
            "start_ids": (blip.TINY["[CLS]"],),
            "stop_ids": (blip.TINY["[SEP]"],),
            "context_tokens": 48,
        },
        architecture="GitForCausalLM",
        original_prompt_ids=plain_prompt_ids(blip.TINY["[CLS]"]),
        original_features=git_features,
        refused=(
            ("config.json", {"num_image_with_embedding": 6}, "num_image_with_embedding is 6"),
            ("config.json", {"vision_config": {"image_size": 48}}, "image_size is 48"),
            ("generation_config.json", {"eos_token_id": None}, "eos_token_id None"),
            ("preprocessor_config.json", {"do_center_crop": False}, "do_center_crop False"),
        ),
    ),
    "idefics3": idefics3_case("idefics3"),
    "llava": Case(
        seeded="llava",
        source={
            "image": ImageSpec(32, 32, "bicubic"),
            "image_token_id": llava.TINY[llava.IMAGE],
            "start_ids": (),
            "stop_ids": (llava.TINY[llava.TURN],),
            "context_tokens": 512,
            "prompts": chat_prompts.PROMPTS,
        },
        architecture="LlamaForCausalLM",
        original_prompt_ids=llava_prompt_ids,
        original_features=siglip_features,
        max_tokens=512,
        refused=(
            NO_RESAMPLE,
            ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
            ("config.json", {"vision_feature_layer": [-2, -1]}, r"vision_feature_layer is [-2, -1]"),
            ("config.json", {"vision_feature_layer": -4}, "vision_feature_layer is -4"),
            ("config.json", {"vision_feature_layer": 4}, "vision_feature_layer is 4"),
            ("config.json", {"vision_feature_select_strategy": "cls"}, "'cls'"),
            ("config.json", {"vision_config": {"model_type": "pixtral"}}, "'pixtral'"),
            ("preprocessor_config.json", {"do_pad": True}, "do_pad True"),
            ("config.json", {"text_config": {"rope_parameters": DYNAMIC_ROPE}}, "'dynamic'"),
            ("config.json", {"text_config": {"model_type": "mistral", "sliding_window": 64}}, "sliding_window is 64"),
        ),
    ),
    "paligemma": Case(
        seeded="paligemma2",
        source={
            "image": ImageSpec(32, 32, "bicubic"),
            "image_token_id": paligemma.TINY[paligemma.IMAGE],
            "start_ids": (),
            "stop_ids": (1, paligemma.TINY[paligemma.END]),
            "context_tokens": 16 + 256,
            "prompts": TASKS,
            "prompt_template": "{image}<bos>{prompt}\n",
        },
        architecture="Gemma2ForCausalLM",
        original_prompt_ids=paligemma_prompt_ids,
        original_features=siglip_features,
        max_tokens=512,
        refused=(
            NO_RESAMPLE,
            NO_RESIZE,
            ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
            ("config.json", {"text_config": {"model_type": "gemma3_text"}}, "'gemma3_text'"),
            ("config.json", {"text_config": {"sliding_window": 271}}, "sliding_window is 271, but image, prompt and"),
            ("config.json", {"image_token_index": 400}, "image_token_index is 400"),
            ("config.json", {"vision_config": {"image_size": 48}}, "image_size is 48"),
        ),
    ),
    "qwen2_5_vl": qwen_vl_case(
        "qwen2_5_vl",
        "Qwen2ForCausalLM",
        ("config.json", {"text_config": {"use_sliding_window": True, "sliding_window": 64}}, "sliding_window is 64"),
    ),
    "qwen3_vl": qwen_vl_case(
        "qwen3_vl",
        "Qwen3ForCausalLM",
        (
            "config.json",
            {"text_config": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}},
            "'dynamic'",
        ),
    ),
    "smolvlm": idefics3_case("smolvlm"),
    "vision-encoder-decoder": Case(
        seeded="vit-gpt2",
        source={
            "image": ImageSpec(32, 32, "bilinear"),
            "start_ids": (299,),
            "stop_ids": (vision_encoder_decoder.TINY_STOP,),
            "context_tokens": 48,
        },
        architecture="GPT2LMHeadModel",
        original_prompt_ids=plain_prompt_ids(299),
        original_features=vision_encoder_decoder_features,
        refused=(
            NO_RESAMPLE,
            ("preprocessor_config.json", {"size": {"shortest_edge": 224}}, "shortest_edge"),
            ("preprocessor_config.json", {"size": None}, "size None"),
            ("preprocessor_config.json", {"do_center_crop": True}, "do_center_crop True"),
        ),
    ),
}
