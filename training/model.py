"""Encoder and decoder as one thing to train, to ask and to write down."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GPT2Config,
    GPT2LMHeadModel,
    RepetitionPenaltyLogitsProcessor,
)

from captioner.families.concept_encoder import GRID_CHANNELS, GRID_TOKENS, ConceptEncoder, ConceptEncoderConfig
from training.dataset import Batch

CONTEXT_TOKENS = 96
REPETITION_PENALTY = 1.1  # what greedy decoding needs against loops; the packed default of serving
MAX_TOKENS = 64


@dataclass(frozen=True)
class Regularisation:
    """What keeps a small model on few photos from learning them by heart."""

    dropout: float = 0.1
    smoothing: float = 0.1
    unseen: float = 0.1  # of the image tokens are hidden in each step
    weight_decay: float = 0.05


class Captioner(nn.Module):
    """The concept encoder and the GPT-2 that writes what it sees."""

    def __init__(self, encoder: ConceptEncoder, decoder: GPT2LMHeadModel) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

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
            attn_pdrop=0.0,  # with it, torch leaves its fused attention: a sixth of a step on a CPU
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=pad,
            use_cache=False,
        )
        return cls(ConceptEncoder(config), GPT2LMHeadModel(decoder))

    def trained_parameters(self) -> list[nn.Parameter]:
        """Everything but the backbone."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def loss(self, grids_BGC: torch.Tensor, batch: Batch, smoothing: float = 0.0, unseen: float = 0.0) -> torch.Tensor:
        """Mean cross entropy a token, in nats. grids_BGC: (B, 81, 1280), row by row the photos of `batch`."""
        features = self.encoder.project(grids_BGC)  # (B, tokens, width)
        own = batch.captions[:, :, None] == batch.captions[:, None]  # (B, T, T): packed captions do not see each other
        mask = own.tril()[:, None]  # (B, 1, T, T)
        seen = (torch.rand(features.shape[:2]) >= unseen).long()
        logits = self.decoder(
            input_ids=batch.ids,
            position_ids=batch.positions,
            attention_mask=mask,
            encoder_hidden_states=features,
            encoder_attention_mask=seen if unseen else None,
        ).logits  # (B, T, vocabulary)
        learnt = batch.labels >= 0
        return F.cross_entropy(logits[learnt], batch.labels[learnt], label_smoothing=smoothing)

    @torch.inference_mode()
    def greedy(
        self, grids_BGC: torch.Tensor, prompt: list[int], penalty: float = REPETITION_PENALTY
    ) -> list[list[int]]:
        """The likeliest caption of each grid, as token ids after the prompt, decoded as the server does."""
        features = self.encoder.project(grids_BGC)
        ids = torch.tensor([prompt] * len(features))
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        discourage = RepetitionPenaltyLogitsProcessor(penalty)
        ended = torch.zeros(len(ids), dtype=torch.bool)
        step = ids
        while not bool(ended.all()) and ids.shape[1] < len(prompt) + MAX_TOKENS:
            logits = self.decoder(
                input_ids=step, encoder_hidden_states=features, past_key_values=cache, use_cache=True, logits_to_keep=1
            ).logits[:, -1]
            step = discourage(ids, logits).argmax(-1, keepdim=True)  # (B, 1)
            ended |= step[:, 0] == self.decoder.config.eos_token_id
            ids = torch.cat([ids, step], 1)
        return [row[len(prompt) :] for row in ids.tolist()]


def random_grids(count: int) -> torch.Tensor:
    """Grids of no photo, for tests of the loop: (count, 81, 1280) in 0 to 6."""
    return 6 * torch.rand(count, GRID_TOKENS, GRID_CHANNELS)
