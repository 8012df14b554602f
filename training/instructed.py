"""Form (b)'s network: a projector and concept tokens in front of SmolLM2-135M-Instruct, which learns by LoRA."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from captioner.embedded import Form
from training.dataset import IGNORED, Caption
from training.model import BF16, HIDDEN, Captioner

CELLS = 3  # the 9 × 9 grid is pooled to 3 × 3 tokens
IMAGENET_CONCEPTS, OWN_CONCEPTS = 4, 6
PREFIX = CELLS * CELLS + 1 + IMAGENET_CONCEPTS + OWN_CONCEPTS
LORA = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
MAX_TOKENS = 48


@dataclass(frozen=True)
class Seen:
    """What an encoder saw in N photos: pooled grids and whole (N, 10, 1280), concepts (N, 10): index and logprob."""

    cells: torch.Tensor
    words: torch.Tensor
    logprobs: torch.Tensor

    def __getitem__(self, rows: Any) -> Seen:
        return Seen(self.cells[rows], self.words[rows], self.logprobs[rows])


@torch.inference_mode()
def see(captioner: Captioner, view: Any, count: int) -> Seen:
    """The encoder's view of the first `count` photos, as form (b) takes it."""
    found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    own = captioner.encoder.config.concepts
    for start in range(0, count, 64):
        with BF16:
            grid = captioner.encoder.grid(torch.from_numpy(np.array(view[start : start + 64])).float()).float()
        whole = grid.mean(1)
        cells = F.adaptive_avg_pool2d(grid.transpose(1, 2).unflatten(2, (9, 9)), CELLS).flatten(2).transpose(1, 2)
        logprobs, words = captioner.encoder.concepts(whole)
        keep = [*range(IMAGENET_CONCEPTS), *range(own, own + OWN_CONCEPTS)]
        found.append((torch.cat([cells, whole[:, None]], 1), words[:, keep], logprobs[:, keep]))
    return Seen(*(torch.cat(parts)[:count] for parts in zip(*found, strict=True)))


class Instructed(nn.Module):
    """Prefix and language model; logits over the tokens that captions need."""

    def __init__(
        self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, words: tuple[str, ...], texts: list[str]
    ) -> None:
        super().__init__()
        self.tokenizer: Any = tokenizer
        table = model.model.embed_tokens.weight.detach()
        width = table.shape[1]
        used = {i for text in texts for lead in ("", " ") for i in self.tokenizer.encode(lead + text)}
        self.head: torch.Tensor
        self.kept = torch.tensor(sorted(used | {self.tokenizer.eos_token_id}))
        self.place = torch.full((len(table),), IGNORED)
        self.place[self.kept] = torch.arange(len(self.kept))
        self.register_buffer("head", table[self.kept].bfloat16(), persistent=False)
        named = [table[self.tokenizer.encode(f" {word}")].mean(0) for word in words]
        self.words = nn.Embedding.from_pretrained(torch.stack(named), freeze=False)
        self.certainty = nn.Parameter(torch.zeros(width))
        last = nn.Linear(width, width)
        nn.init.normal_(last.weight, std=0.1 * float(table.std()))
        self.project = nn.Sequential(nn.Linear(1280, width), nn.GELU(), last)
        self.place_of = nn.Parameter(torch.zeros(PREFIX, width))
        self.language: Any = get_peft_model(model.bfloat16(), LORA)

    def prefix(self, seen: Seen) -> torch.Tensor:
        """(B, 20, width)."""
        concepts = self.words(seen.words) + seen.logprobs[..., None] * self.certainty
        return torch.cat([self.project(seen.cells), concepts], 1) + self.place_of

    def prompt(self, form: Form | None) -> list[int]:
        """What stands between picture and caption."""
        ids: list[int] = self.tokenizer.encode(f"\n{(form or 'caption').capitalize()}:")
        return ids

    def trunk(self, embeddings: torch.Tensor, **options: Any) -> Any:
        """The language model without its head."""
        return self.language.base_model.model.model(inputs_embeds=embeddings, **options)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token embeddings."""
        found: torch.Tensor = self.language.get_input_embeddings()(ids)
        return found

    def loss(self, seen: Seen, rows: list[list[Caption]], smoothing: float, chance: random.Random, drop: float) -> Any:
        """Mean cross entropy a token; the captions of a row share the picture and do not see each other."""
        eos = self.tokenizer.eos_token_id
        packed = []
        for row in rows:
            prompts = [self.prompt(None if chance.random() < drop else c.form) for c in row]
            packed.append([(p, [*self.tokenizer.encode(" " + c.text), eos]) for p, c in zip(prompts, row, strict=True)])
        width = max(sum(len(p) + len(t) - 1 for p, t in row) for row in packed)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        labels = torch.full_like(ids, IGNORED)
        positions, own = torch.zeros_like(ids), torch.full_like(ids, -1)
        for r, pairs in enumerate(packed):
            start = 0
            for number, (prompt, text) in enumerate(pairs):
                whole = prompt + text
                end = start + len(whole) - 1
                ids[r, start:end] = torch.tensor(whole[:-1])
                labels[r, start + len(prompt) - 1 : end] = self.place[torch.tensor(text)]
                positions[r, start:end] = PREFIX + torch.arange(end - start)
                own[r, start:end] = number
                start = end
        own = F.pad(own, (PREFIX, 0), value=-2)
        sees = (own[:, :, None] == own[:, None]) | (own[:, None] == -2)
        mask = torch.zeros(sees.shape, dtype=torch.bfloat16).masked_fill(~sees.tril(), HIDDEN)[:, None]
        positions = torch.cat([torch.arange(PREFIX).expand(len(rows), -1), positions], 1)
        with BF16:
            embeddings = torch.cat([self.prefix(seen).bfloat16(), self.embed(ids)], 1)
            hidden = self.trunk(embeddings, attention_mask=mask, position_ids=positions).last_hidden_state
            learnt = labels >= 0
            logits = hidden[:, PREFIX:][learnt] @ self.head.T
        return F.cross_entropy(logits.float(), labels[learnt], label_smoothing=smoothing)

    @torch.inference_mode()
    def write(self, seen: Seen, form: Form) -> list[str]:
        """Greedy captions, repetition discouraged as in serving."""
        prompt, count = self.prompt(form), len(seen.cells)
        cache, ids = None, torch.zeros(count, 0, dtype=torch.long)
        with BF16:
            step = torch.cat([self.prefix(seen).bfloat16(), self.embed(torch.tensor([prompt] * count))], 1)
            ended = torch.zeros(count, dtype=torch.bool)
            while ids.shape[1] < MAX_TOKENS and not bool(ended.all()):
                out = self.trunk(step, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                logits = (out.last_hidden_state[:, -1] @ self.head.T).float()
                said = self.place[ids].clamp_min(0)
                scores = logits.gather(1, said)
                logits.scatter_(1, said, torch.where(scores > 0, scores / 1.1, scores * 1.1))
                token = self.kept[logits.argmax(-1)]
                ids = torch.cat([ids, token[:, None]], 1)
                ended |= token == self.tokenizer.eos_token_id
                step = self.embed(token[:, None])
        texts = self.tokenizer.batch_decode(ids)
        return [text.partition(self.tokenizer.eos_token)[0].strip() for text in texts]
