"""From a model to a folder that `captioner publish` can make live."""
