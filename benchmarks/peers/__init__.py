"""The same captions by what else a person would pick: each peer in its own environment and its documented idiom.

`servers/` has one program for each peer, `triton/` the model repository of the usual Triton set-up, `systems.py` the
table of all of them, `requests.py` their clients, `load.py` the arrivals. `python -m benchmarks.peers` runs them.
"""
