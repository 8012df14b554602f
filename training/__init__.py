"""How the embedded captioner was made: `python -m training --data DIR --out captioner/embedded`."""
