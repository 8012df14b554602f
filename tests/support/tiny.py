"""Real models with a few thousand seeded weights, laid out as published ones, and a client that records responses."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

from captioner.artifacts.manifest import PROMPT_FIELD, Card, Generation, Manifest
from captioner.artifacts.prompts import PromptTable
from captioner.decoders.cross_attention import CrossAttentionDecoder
from captioner.decoders.load_weights import load_weights
from captioner.engine.runner import Runner
from captioner.errors import CaptionerError
from captioner.image.spec import ImageSpec

torch.set_num_threads(1)  # for tensors this small, more threads only wait for each other

BOS, EOS, SHORT = "<|bos|>", "<|eos|>", "<|short|>"
TEXT = "a cat on a mat, a dog in the fog, é ü ñ 猫 犬 写真 😀 👩‍🚀 привет"
CONTEXT = 48
STOP = 147  # a token that the model often picks, so that captions end before the limit
FEATURE_TOKENS, FEATURE_WIDTH = 5, 32


@cache
def tokenizer() -> Tokenizer:
    """Return a byte-level BPE: most characters outside ASCII take several tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[BOS, EOS, SHORT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TEXT[:32]] * 20, trainer)
    return made


@cache
def gpt2() -> GPT2LMHeadModel:
    """Return a decoder with cross-attention. Its weights are large, so that captions differ and near-ties are rare."""
    config = GPT2Config(
        vocab_size=tokenizer().get_vocab_size(),
        n_positions=CONTEXT,
        n_embd=FEATURE_WIDTH,
        n_layer=2,
        n_head=2,
        add_cross_attention=True,
        initializer_range=0.35,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    torch.manual_seed(7)
    model = GPT2LMHeadModel(config)
    model.eval()
    return model


def prompts() -> PromptTable:
    """Return two styles, one extra, one prompt with a name field."""
    styles = {
        "plain": {"short": SHORT, "long": "a cat"},
        "named": {"short": "a photo of {name}"},
    }
    return PromptTable(styles, "plain", "short", {"camera": "in the fog"})


@cache
def published() -> Path:
    """Return a captioner version folder without an encoder; it is removed at exit."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-"))
    atexit.register(shutil.rmtree, folder)
    gpt2().save_pretrained(folder / "decoder")
    tokenizer().save(str(folder / "tokenizer.json"))
    Manifest(
        family="vision-encoder-decoder",
        model="tiny",
        revision="0" * 40,
        card=Card("mit"),
        precision="fp32",
        image=ImageSpec(32, 32, "bilinear"),
        feature_tokens=FEATURE_TOKENS,
        feature_width=FEATURE_WIDTH,
        prompts=prompts(),
        system_template="",
        prompt_template=PROMPT_FIELD,
        image_token_id=None,
        start_ids=(0,),
        stop_ids=(1, STOP),
        context_tokens=CONTEXT,
        generation=Generation(max_tokens=20),
        calibration=None,
        golden_sample=None,
        files={},
    ).save(folder)
    return folder


def decoder(kind: type[CrossAttentionDecoder] = CrossAttentionDecoder) -> CrossAttentionDecoder:
    """Return the published decoder without slots."""
    model = load_weights(GPT2LMHeadModel, published(), "fp32", torch.device("cpu"))
    return kind(model, CONTEXT, FEATURE_TOKENS)


def runner(
    slots: int, kind: type[CrossAttentionDecoder] = CrossAttentionDecoder, *, async_scheduling: bool = False
) -> Runner:
    """Return a runner of the published decoder."""
    return Runner(decoder(kind), slots, async_scheduling=async_scheduling)


def features(seed: int) -> torch.Tensor:
    """Return image features, (image tokens, width)."""
    return torch.randn(FEATURE_TOKENS, FEATURE_WIDTH, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def greedy(image: torch.Tensor, prompt_ids: list[int], limit: int, stop: int = STOP) -> list[int]:
    """Return the greedy tokens, each computed from the whole text without a cache, without the stop id."""
    ids = list(prompt_ids)
    while len(ids) < len(prompt_ids) + limit:
        output = gpt2()(input_ids=torch.tensor([ids]), encoder_hidden_states=image[None], use_cache=False)
        token = int(output.logits[0, -1].argmax())
        if token in (1, stop):
            break
        ids.append(token)
    return ids[len(prompt_ids) :]


@torch.inference_mode()
def generate(image: int, prompt_ids: list[int], **options: Any) -> list[int]:
    """Return the tokens of transformers' own generate() for an image, without the stop id."""
    model: Any = gpt2()
    written = model.generate(
        torch.tensor([prompt_ids]), encoder_hidden_states=features(image)[None],
        eos_token_id=[1, STOP], pad_token_id=1, do_sample=False, **options,
    )  # fmt: skip
    return [token for token in written[0][len(prompt_ids) :].tolist() if token not in (1, STOP)]


def save_vision_encoder_decoder(folder: Path, seed: int = 3) -> VisionEncoderDecoderModel:
    """Save a ViT of 32 px and a GPT-2 as on the Hub, with tokenizer, processor and card."""
    encoder = ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        initializer_range=0.3,
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, gpt2().config)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 0, 1, 1
    torch.manual_seed(seed)
    model = VisionEncoderDecoderModel(config)
    model.eval()
    model.generation_config.update(decoder_start_token_id=0, pad_token_id=1, eos_token_id=1)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer(), bos_token=BOS, eos_token=EOS).save_pretrained(folder)
    processor = {
        "size": {"height": 32, "width": 32},
        "resample": 3,
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.25, 0.3],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return model


class Recorder:
    """A ResponseWriter that records every call. `before` runs first in each call and may block or raise."""

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        self.pieces: list[str] = []
        self.details: list[str] = []
        self.errors: list[CaptionerError] = []
        self.finals = 0  # final responses, and any response after one: must be 1
        self.ended = threading.Event()
        self.polled_after_final = False
        self.cancelled = False
        self._before = before

    def send(self, caption: str, details: str, final: bool) -> None:
        self._before()
        self.pieces.append(caption)
        self.details.append(details)
        if final or self.finals:
            self._end()

    def fail(self, error: CaptionerError) -> None:
        self.errors.append(error)
        self._end()

    def is_cancelled(self) -> bool:
        self.polled_after_final |= bool(self.finals)
        return self.cancelled

    @property
    def text(self) -> str:
        """The caption so far."""
        return "".join(self.pieces)

    @property
    def code(self) -> str:
        """The code of the error response, or "" for a caption. Waits for the final response."""
        assert self.ended.wait(20), "no final response within 20 s"
        return self.errors[0].code if self.errors else ""

    def _end(self) -> None:
        self.finals += 1
        self.ended.set()
