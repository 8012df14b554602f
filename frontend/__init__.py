"""The doors for people and for programs, the page and the HTTP API, over `captioner.client` and nothing else."""
