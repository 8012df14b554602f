"""python -m training.average --models A B C --out FOLDER: captioners of several seeds in one, by their mean weights."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from training import checkpoint


def main() -> None:
    """Writes the mean; the seeds must have gone on from one captioner, or their weights have nothing in common."""
    parser = argparse.ArgumentParser(prog="python -m training.average", description=__doc__)
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    loaded = [checkpoint.load(folder) for folder in options.models]
    states = [captioner.state_dict() for captioner, _ in loaded]
    captioner, tokenizer = loaded[0]
    captioner.load_state_dict(
        {
            key: torch.stack([state[key].float() for state in states]).mean(0).to(value)
            for key, value in states[0].items()
        }
    )
    checkpoint.save(options.out, captioner, tokenizer)


if __name__ == "__main__":
    main()
