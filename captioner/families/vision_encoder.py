"""The image side of families whose encoder is a whole transformers vision model."""

from __future__ import annotations

from typing import Any

import torch

from captioner.families.preprocessor_config import Normalise


class VisionEncoder(torch.nn.Module):
    """uint8 pixels to features: the processor's normalisation, the vision model, and a projection to the text width."""

    def __init__(
        self, processor: dict[str, Any], encoder: torch.nn.Module, projection: torch.nn.Module | None = None
    ) -> None:
        super().__init__()
        self.normalise = Normalise(processor)
        self.encoder = encoder
        self.projection = torch.nn.Identity() if projection is None else projection

    def forward(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """(B, height, width, 3) uint8 → (B, image tokens, feature width) float32."""
        hidden = self.encoder(pixel_values=self.normalise(pixels_BHWC)).last_hidden_state
        features: torch.Tensor = self.projection(hidden)
        return features
