"""The page people use: a browser's view of `captioner.client`, and nothing else."""
