"""The manifest: `manifest.json` in every published version, written by the exporter and only read by the server.

Each of the repository's models has the same file in its version folder. So each model reads its own part, and files of
different exports cannot be mixed unnoticed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from captioner.artifacts.confidence import Calibration
from captioner.artifacts.prompts import PromptTable
from captioner.errors import ArtefactBroken
from captioner.hashing import add_file
from captioner.image.spec import ImageSpec
from captioner.wire import EncoderPrecision

NAME = "manifest.json"
GOLDEN_IMAGE, GOLDEN_FEATURES = "check.jpg", "check.safetensors"  # beside the captioner's manifest; names of 0.1
_RENAMED = {"frame": "prompt_template", "check": "golden_sample"}  # field names in manifests of 0.1
_ADDED = {"system_template": ""}  # fields that manifests of earlier releases lack
# The fields of a prompt template.
PROMPT_FIELD, IMAGE_FIELD, SYSTEM_FIELD = "{prompt}", "{image}", "{system}"


@dataclass(frozen=True)
class Generation:
    """The generation config of the model's authors. Each value is the default of the parameter of the same name."""

    max_tokens: int
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    no_repeat_ngram_size: int = 0


@dataclass(frozen=True)
class Card:
    """Facts from the model card; empty strings if the card does not say."""

    license: str = ""
    base_model: str = ""  # the model it was fine-tuned from
    intended_use: str = ""  # a paragraph


@dataclass(frozen=True)
class GoldenSample:
    """The greedy caption of GOLDEN_IMAGE at export; every load must reproduce it."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    caption: str


@dataclass(frozen=True)
class Manifest:
    """One published model. `files` maps "<triton model>/<file>" to the sha256 of the file, in hex.

    `prompt_template` has a field for the prompt. If the image is part of the token sequence, it also has a field for
    the image, which becomes as many `image_token_id` tokens as the image has features. `system_template` has one more
    field, for the text of the system turn.
    """

    family: str  # Hugging Face model_type
    model: str
    revision: str
    card: Card
    precision: EncoderPrecision
    image: ImageSpec
    feature_tokens: int  # image tokens per image, or per cell of its grid
    feature_width: int
    prompts: PromptTable
    prompt_template: str
    system_template: str  # empty if the model has no system turn
    image_token_id: int | None
    start_ids: tuple[int, ...]  # the first that the decoder reads: before every prompt, or after one that is encoded
    stop_ids: tuple[int, ...]  # each ends a caption
    context_tokens: int  # limit for prompt and caption together
    generation: Generation
    calibration: Calibration | None
    golden_sample: GoldenSample | None
    files: dict[str, str]

    @property
    def continues_prompt(self) -> bool:
        """Return whether a caption continues the prompt's text and includes it; otherwise it answers the prompt."""
        return self.prompt_template == PROMPT_FIELD

    def feature_shape(self, grid_rows: int, grid_columns: int) -> tuple[int, ...]:
        """Return the shape in which the decoder reads an image's features: (image tokens, width).

        It is (rows, columns, width) for an image of dynamic size, whose tokens have their positions from that grid.
        """
        if self.image.max_pixels is not None:
            return grid_rows, grid_columns, self.feature_width
        return self.image.parts(grid_rows, grid_columns) * self.feature_tokens, self.feature_width

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read `folder/manifest.json`. Raises ArtefactBroken, which names a missing or unknown field."""
        path = folder / NAME
        try:
            values = json.loads(path.read_text("utf-8"))  # whatever the server's locale
        except FileNotFoundError:
            raise ArtefactBroken(f"{path} is missing: nothing is published in this folder (make export)") from None
        except ValueError as error:
            raise ArtefactBroken(f"{path} is not JSON: {error}") from None
        if isinstance(values, dict):
            values = _ADDED | {_RENAMED.get(name, name): value for name, value in values.items()}
        odd = {field.name for field in fields(cls)}.symmetric_difference(values if isinstance(values, dict) else ())
        if odd:
            raise ArtefactBroken(
                f"{path} and this version of captioner differ in {', '.join(sorted(odd))}; export again"
            )
        try:
            values["image"] = ImageSpec(**values["image"])
            values["prompts"] = PromptTable(**values["prompts"])
            values["generation"] = Generation(**values["generation"])
            calibration = values["calibration"]
            values["calibration"] = None if calibration is None else Calibration(**calibration)
            values["card"] = Card(**values["card"])
            golden = values["golden_sample"]
            values["golden_sample"] = golden and GoldenSample(
                tuple(golden["prompt_ids"]), tuple(golden["token_ids"]), golden["caption"]
            )
            values["start_ids"] = tuple(values["start_ids"])
            values["stop_ids"] = tuple(values["stop_ids"])
        except (TypeError, KeyError) as error:
            raise ArtefactBroken(f"{path} does not fit this version of captioner: {error}; export again") from None
        return cls(**values)

    def save(self, folder: Path) -> None:
        """Write `folder/manifest.json`."""
        (folder / NAME).write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", "utf-8")

    def verify(self, repository: Path, version: str = "") -> None:
        """Hash every file of `version`, or of an exported folder. Raises ArtefactBroken for the first that differs."""
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
    """Return the sha256 of a file, in hex."""
    digest = hashlib.sha256()
    add_file(digest, path)
    return digest.hexdigest()
