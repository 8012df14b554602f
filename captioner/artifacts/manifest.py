"""What the exporter resolved and the server only reads: one `manifest.json` beside every published version.

The same file stands in the version folder of each model of the repository, so each can read its own part and none can
be served with another export's files unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from captioner.artifacts.prompts import PromptTable
from captioner.errors import ArtefactBroken
from captioner.image.spec import ImageSpec
from captioner.wire import EncoderPrecision

NAME = "manifest.json"
GOLDEN_IMAGE, GOLDEN_FEATURES = "check.jpg", "check.safetensors"  # beside the captioner's manifest; named so since 0.1
_RENAMED = {"frame": "prompt_template", "check": "golden_sample"}  # fields as manifests of 0.1 spell them
PROMPT_FIELD, IMAGE_FIELD = "{prompt}", "{image}"  # the places in a prompt_template


@dataclass(frozen=True)
class Generation:
    """How the model's authors let it write; each is the default of the parameter of that name."""

    max_tokens: int
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False


@dataclass(frozen=True)
class Calibration:
    """From the model's own opinion to a probability, fitted on held-out photos: a logistic curve."""

    slope: float  # of the mean log-probability in nats a token
    intercept: float
    unsure_below: float  # confidence under which a caption is marked as unsure

    def confidence(self, mean_logprob: float) -> float:
        """The probability that the caption's main subject is right."""
        return 1 / (1 + math.exp(-min(max(self.slope * mean_logprob + self.intercept, -50), 50)))


@dataclass(frozen=True)
class Card:
    """What a model's card says of it; empty where it says nothing."""

    license: str = ""
    base_model: str = ""  # what it was tuned from
    intended_use: str = ""  # a paragraph


@dataclass(frozen=True)
class GoldenSample:
    """What the model wrote of CHECK_IMAGE when it was exported, by greedy choice: a load must write it again."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    caption: str


@dataclass(frozen=True)
class Manifest:
    """One published model. `files` maps "<triton model>/<file>" to the sha256 of its bytes, in hex.

    `prompt_template` is the text around a prompt, with a field for the prompt and, where the image is part of the text,
    one for the image: as many tokens `image_token_id` as it has features.
    """

    family: str  # Hugging Face model_type
    model: str
    revision: str
    card: Card
    precision: EncoderPrecision
    image: ImageSpec
    feature_tokens: int  # image tokens a picture becomes, or each tile of it
    feature_width: int
    prompts: PromptTable
    prompt_template: str
    image_token_id: int | None
    start_ids: tuple[int, ...]  # token ids in front of every prompt
    stop_ids: tuple[int, ...]  # token ids that end a caption
    context_tokens: int  # prompt and caption together
    generation: Generation
    calibration: Calibration | None
    golden_sample: GoldenSample | None
    files: dict[str, str]

    @property
    def continues_prompt(self) -> bool:
        """Whether a caption goes on from the prompt's words and is shown with them, or answers it."""
        return self.prompt_template == PROMPT_FIELD

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
        if isinstance(values, dict):
            values = {_RENAMED.get(name, name): value for name, value in values.items()}
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
        """Writes `folder/manifest.json`."""
        (folder / NAME).write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", "utf-8")

    def verify(self, repository: Path, version: str = "") -> None:
        """Hashes every file of `version`, or of an export's folder; ArtefactBroken names the first that is another."""
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
