"""Training of the embedded captioner: `python -m training --data DIR --out captioner/embedded`. See README.md."""

import captioner  # noqa: F401 - before any library: it turns their usage reports off
