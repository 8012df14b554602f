"""The verbs of the command line, one a file: `add` names a verb and its options, `run` does it."""
