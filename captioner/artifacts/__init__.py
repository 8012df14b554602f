"""A published model on disk: its manifest, prompts, golden sample and version folders."""
