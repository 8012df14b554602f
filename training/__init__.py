"""Training of the embedded captioner: `python -m training --data DIR --out captioner/embedded`. See README.md."""
