"""What the exporter resolved and the server only reads: one `manifest.json` beside every published version.

The same file stands in the version folder of each model of the repository, so each can read its own part and none can
be served with another export's files unnoticed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from captioner.errors import ArtefactBroken
from captioner.image import ImageSpec
from captioner.prompts import PromptTable

NAME = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """One published model. `files` maps "<triton model>/<file>" to the sha256 of its bytes, in hex."""

    family: str  # Hugging Face model_type
    model: str
    revision: str
    license: str
    image: ImageSpec
    feature_tokens: int  # image tokens a picture becomes
    feature_width: int
    prompts: PromptTable
    start_ids: tuple[int, ...]  # token ids in front of every prompt
    stop_ids: tuple[int, ...]  # token ids that end a caption
    context_tokens: int  # prompt and caption together
    max_tokens: int  # default of the parameter
    repetition_penalty: float  # default of the parameter
    files: dict[str, str]

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Reads `folder/manifest.json`; ArtefactBroken names what is missing or unknown."""
        path = folder / NAME
        try:
            values = json.loads(path.read_text("utf-8"))  # a server's locale may be any
        except FileNotFoundError:
            raise ArtefactBroken(f"{path} is missing: nothing is published there yet (make export)") from None
        except ValueError as error:
            raise ArtefactBroken(f"{path} is no JSON: {error}") from None
        odd = {field.name for field in fields(cls)}.symmetric_difference(values if isinstance(values, dict) else ())
        if odd:
            raise ArtefactBroken(
                f"{path} and this version of captioner differ in {', '.join(sorted(odd))}; export again"
            )
        try:
            values["image"] = ImageSpec(**values["image"])
            values["prompts"] = PromptTable(**values["prompts"])
            values["start_ids"] = tuple(values["start_ids"])
            values["stop_ids"] = tuple(values["stop_ids"])
        except TypeError as error:
            raise ArtefactBroken(f"{path} does not fit this version of captioner: {error}; export again") from None
        return cls(**values)

    def save(self, folder: Path) -> None:
        """Writes `folder/manifest.json`."""
        (folder / NAME).write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", "utf-8")

    def verify(self, repository: Path, version: str) -> None:
        """Hashes every published file of `version`; ArtefactBroken names the first that is not the exported one."""
        for name, expected in self.files.items():
            model, _, file = name.partition("/")
            path = repository / model / version / file
            if not path.is_file():
                raise ArtefactBroken(f"{path} is missing; export again")
            found = sha256(path)
            if found != expected:
                raise ArtefactBroken(
                    f"{path} has sha256 {found[:12]}…, the manifest says {expected[:12]}…; export again"
                )


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
