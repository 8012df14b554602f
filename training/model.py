"""The captioner as one torch module: encoder and decoder, their losses, and greedy or sampled generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from captioner.families.concept_encoder import GRID_TOKENS, ConceptEncoder, ConceptEncoderConfig
from training.dataset import CaptionBatch

CONTEXT_TOKENS = 96
MAX_TOKENS = 64
MASKED = -1e4  # added to attention scores; −∞ would give NaN in padding rows, where everything is masked
# On a CPU without bf16 instructions, bf16 is several times slower than fp32.
BF16 = torch.autocast("cpu", torch.bfloat16, enabled=torch.ops.mkldnn._is_mkldnn_bf16_supported())


@dataclass(frozen=True)
class Regularisation:
    """What keeps a small model from memorising a small data set."""

    dropout: float = 0.1
    label_smoothing: float = 0.1
    image_token_dropout: float = 0.1  # share of the grid's tokens hidden from the decoder in each step
    concept_token_dropout: float = 0.3
    noun_loss_weight: float = 0.1  # of the encoder's noun head
    weight_decay: float = 0.05


@dataclass(frozen=True)
class ImageBatch:
    """The visual half of a training batch."""

    lower_BCHW: torch.Tensor  # output of the encoder's `lower`, float32 (B, 220, 9, 9)
    noun_targets_BN: torch.Tensor  # 1 where the photo's captions name that word of the noun head
    swapped_B2: torch.Tensor  # indices of the old and the new word; −1, −1 for none
    grid_hidden_B: torch.Tensor  # True where all tokens but the concepts are hidden


class Captioner(nn.Module):
    """The concept encoder and a GPT-2 decoder with cross-attention."""

    def __init__(self, encoder: ConceptEncoder, decoder: GPT2LMHeadModel) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        # In bf16, the backward pass of torch's fused attention takes three times as long.
        decoder.set_attn_implementation("eager")

    @classmethod
    def build(
        cls,
        config: ConceptEncoderConfig,
        vocabulary_size: int,
        bos: int,
        eos: int,
        pad: int,
        layers: int,
        heads: int,
        dropout: float,
    ) -> Captioner:
        """Return an untrained captioner; its backbone has ImageNet weights."""
        decoder = GPT2Config(
            vocab_size=vocabulary_size,
            n_positions=CONTEXT_TOKENS,
            n_embd=config.width,
            n_layer=layers,
            n_head=heads,
            add_cross_attention=True,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=0.0,
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=pad,
            use_cache=False,
        )
        return cls(ConceptEncoder(config), GPT2LMHeadModel(decoder))

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return all parameters except the backbone's lower blocks and its ImageNet head."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def encode(self, images: ImageBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features (B, tokens, width) with nouns swapped, and the noun head's loss per photo."""
        grid_BGC = self.encoder.grid(images.lower_BCHW)
        pooled_BC = grid_BGC.mean(1)
        log_probability_BK, word_BK = self.encoder.concepts(pooled_BC)
        old_B1, new_B1 = images.swapped_B2.split(1, 1)
        word_BK = torch.where((word_BK == old_B1) & (old_B1 >= 0), new_B1, word_BK)
        # The head may not have predicted the old word. The new word replaces its best guess, so that it always appears.
        best = self.encoder.config.concepts
        word_BK[:, best] = torch.where(old_B1[:, 0] >= 0, new_B1[:, 0], word_BK[:, best])
        noun_loss = F.binary_cross_entropy_with_logits(
            self.encoder.caption_head(pooled_BC).float(), images.noun_targets_BN, reduction="sum"
        )
        return self.encoder.features(grid_BGC, log_probability_BK, word_BK), noun_loss / len(images.lower_BCHW)

    def losses(
        self, images: ImageBatch, captions: CaptionBatch, regularisation: Regularisation | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean cross entropy per token in nats and the noun head's loss per photo."""
        with BF16:
            features, noun_loss = self.encode(images)
        dropout = torch.full(features.shape[:2], regularisation.image_token_dropout if regularisation else 0.0)
        dropout[:, GRID_TOKENS + 1 :] = regularisation.concept_token_dropout if regularisation else 0.0
        visible = torch.rand(dropout.shape) >= dropout
        visible[:, : GRID_TOKENS + 1] &= ~images.grid_hidden_B[:, None]
        logits = self.logits(features, captions, visible.long() if regularisation else None)
        counted = captions.labels >= 0
        smoothing = regularisation.label_smoothing if regularisation else 0.0
        loss = F.cross_entropy(logits[counted].float(), captions.labels[counted], label_smoothing=smoothing)
        return loss, noun_loss

    def logits(
        self, features: torch.Tensor, captions: CaptionBatch, visible: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the logits of packed captions, (B, T, vocabulary); `visible` (B, tokens) is 0 for hidden features."""
        same_caption = captions.captions[:, :, None] == captions.captions[:, None]
        # Eager attention adds its mask to the scores: it does not accept booleans.
        mask = torch.zeros(same_caption.shape).masked_fill(~same_caption.tril(), MASKED)
        with BF16:
            logits: torch.Tensor = self.decoder(
                input_ids=captions.ids,
                position_ids=captions.positions,
                attention_mask=mask[:, None],  # (B, 1, T, T)
                encoder_hidden_states=features,
                encoder_attention_mask=visible,
            ).logits
        return logits

    @torch.inference_mode()
    def generate(self, features: torch.Tensor, prompt: list[int], **options: Any) -> list[list[int]]:
        """Return the token ids after `prompt` for each row of features (B, tokens, width).

        `options` are those of transformers' generate().
        """
        decoder: Any = self.decoder  # mypy rejects a call of generate() as transformers annotates it
        start = torch.tensor([prompt] * len(features))
        ids = decoder.generate(
            start,
            attention_mask=torch.ones_like(start),
            encoder_hidden_states=features,
            max_new_tokens=MAX_TOKENS,
            use_cache=True,
            **options,
        )
        return [row[len(prompt) :] for row in ids.tolist()]
