"""Encoder and decoder as one thing to train and to ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from captioner.families.concept_encoder import GRID_TOKENS, ConceptEncoder, ConceptEncoderConfig
from training.dataset import Batch

CONTEXT_TOKENS = 96
MAX_TOKENS = 64
HIDDEN = -1e4  # added to a score; no infinity, for a padding row sees nothing
# Where the processor has no instructions for it, bf16 is several times as slow as fp32.
BF16 = torch.autocast("cpu", torch.bfloat16, enabled=torch.ops.mkldnn._is_mkldnn_bf16_supported())


@dataclass(frozen=True)
class Regularisation:
    """What keeps a small model on few photos from learning them by heart."""

    dropout: float = 0.1
    smoothing: float = 0.1
    unseen: float = 0.1  # of the image tokens are hidden in each step
    unseen_concepts: float = 0.3
    naming: float = 0.1  # weight of the loss of the head that tells a caption's words
    weight_decay: float = 0.05


@dataclass(frozen=True)
class Look:
    """What is seen in a batch of photos, beside what is written of them."""

    lower_BCHW: torch.Tensor  # the lower blocks' output, float32 (B, 208, 9, 9)
    named_BN: torch.Tensor  # 1 where a photo's captions name that one of the head's words
    exchanged_B2: torch.Tensor  # a word's index and that of the word in its place; −1, −1 for none
    blank_B: torch.Tensor  # True where all but the concepts is hidden


class Captioner(nn.Module):
    """The concept encoder and the GPT-2 that writes what it sees."""

    def __init__(self, encoder: ConceptEncoder, decoder: GPT2LMHeadModel) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        decoder.set_attn_implementation("eager")  # torch's fused attention goes back three times as slowly in bf16

    @classmethod
    def build(
        cls,
        config: ConceptEncoderConfig,
        vocabulary: int,
        bos: int,
        eos: int,
        pad: int,
        layers: int,
        heads: int,
        dropout: float,
    ) -> Captioner:
        """A captioner that has seen nothing yet but its backbone's ImageNet."""
        decoder = GPT2Config(
            vocab_size=vocabulary,
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
        """Everything but the backbone's lower blocks and its ImageNet head."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def see(self, look: Look) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, tokens, width) with words exchanged, and the loss of the head that tells a caption's words."""
        grid_BGC = self.encoder.grid(look.lower_BCHW)
        whole_BC = grid_BGC.mean(1)
        log_probability_BK, word_BK = self.encoder.concepts(whole_BC)
        old_B1, new_B1 = look.exchanged_B2.split(1, 1)
        word_BK = torch.where((word_BK == old_B1) & (old_B1 >= 0), new_B1, word_BK)
        # The head may have missed the word: its likeliest gives way, so that the new one is always among them.
        first = self.encoder.config.concepts
        word_BK[:, first] = torch.where(old_B1[:, 0] >= 0, new_B1[:, 0], word_BK[:, first])
        naming = F.binary_cross_entropy_with_logits(
            self.encoder.caption_head(whole_BC).float(), look.named_BN, reduction="sum"
        )
        return self.encoder.features(grid_BGC, log_probability_BK, word_BK), naming / len(look.lower_BCHW)

    def losses(
        self, look: Look, batch: Batch, regularisation: Regularisation | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean cross entropy a token, in nats, and the naming head's a photo; plain ones without regularisation."""
        with BF16:
            features, naming = self.see(look)
        chance = torch.full(features.shape[:2], regularisation.unseen if regularisation else 0.0)
        chance[:, GRID_TOKENS + 1 :] = regularisation.unseen_concepts if regularisation else 0.0
        seen = torch.rand(chance.shape) >= chance
        seen[:, : GRID_TOKENS + 1] &= ~look.blank_B[:, None]
        logits = self.logits(features, batch, seen.long() if regularisation else None)
        learnt = batch.labels >= 0
        smoothing = regularisation.smoothing if regularisation else 0.0
        return F.cross_entropy(logits[learnt].float(), batch.labels[learnt], label_smoothing=smoothing), naming

    def logits(self, features: torch.Tensor, batch: Batch, seen: torch.Tensor | None = None) -> torch.Tensor:
        """Of packed captions, (B, T, vocabulary); `seen` (B, tokens) is 0 for features that are hidden."""
        own = batch.captions[:, :, None] == batch.captions[:, None]  # packed captions do not see each other
        mask = torch.zeros(own.shape).masked_fill(~own.tril(), HIDDEN)  # to add: eager attention takes no booleans
        with BF16:
            found: torch.Tensor = self.decoder(
                input_ids=batch.ids,
                position_ids=batch.positions,
                attention_mask=mask[:, None],  # (B, 1, T, T)
                encoder_hidden_states=features,
                encoder_attention_mask=seen,
            ).logits
        return found

    @torch.inference_mode()
    def write(self, features: torch.Tensor, prompt: list[int], **options: Any) -> list[list[int]]:
        """Captions of features (B, tokens, width) as token ids after the prompt; `options` are generate()'s."""
        writer: Any = self.decoder  # transformers' own annotation of generate() cannot be called
        start = torch.tensor([prompt] * len(features))
        ids = writer.generate(
            start,
            attention_mask=torch.ones_like(start),
            encoder_hidden_states=features,
            max_new_tokens=MAX_TOKENS,
            use_cache=True,
            **options,
        )
        return [row[len(prompt) :] for row in ids.tolist()]
