"""One program for each peer: `python -m benchmarks.peers.servers.NAME MODEL_FOLDER PORT`."""
