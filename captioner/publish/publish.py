"""An exported folder to the version that is served: placed, loaded, checked; only then does traffic move.

The captioner of a version asks that version's own encoder, so the old pair serves on while the new one is loaded beside
it. What is new to Triton comes in an order in which nothing yet depends on it, and leaves in the reverse order. A step
that fails sets the version aside with the reason; the one before has served all the while.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from captioner.artifacts.golden import check_caption, load_features
from captioner.artifacts.manifest import GOLDEN_IMAGE, NAME, GoldenSample, Manifest
from captioner.artifacts.version_store import VERSIONED, VersionStore
from captioner.client import Client
from captioner.errors import ArtefactBroken, ParameterInvalid, ServerBusy, StartupRefused, typed
from captioner.hub.resolve import ResolvedModel
from captioner.publish import KEEP, KEEP_LOADED
from captioner.publish.model_control import ModelControl
from captioner.publish.rollback import abort
from captioner.publish.warm_standby import ENCODER, Log, unload_others
from captioner.wire import CAPTIONER, FEATURES, IMAGE, PIXELS, PREPROCESS, VISION_ENCODER, EncoderPrecision
from export.export import export
from export.precision import compare

DOOR_SECONDS = 60.0  # of refusals by a busy server
TYPICAL_COSINE = 0.99  # of an image token with the exporter's: devices and decoders of JPEG round in their own ways
MEAN_COSINE = 0.9  # and nearly equal words of a concept encoder change places


def publish(
    artefact: Path,
    repository: VersionStore,
    controls: Sequence[ModelControl],
    say: Log,
    *,
    keep: int = KEEP,
    take: bool = False,
) -> int:
    """Publishes an exported folder as the next version and returns its number; without servers, for their next start.

    `take` moves the artefact's files instead of copying them. Raises ArtefactBroken, RepositoryBusy or what a server
    refused with; the version before serves on, and the new one is set aside with the reason.
    """
    if keep < KEEP_LOADED:
        raise ParameterInvalid(
            f"keep is {keep}; it must be at least {KEEP_LOADED}, the live version and the one before"
        )
    with repository.lock():
        for dead in repository.recover():
            say(f"version {dead} was left unfinished; it is set aside")
        manifest = Manifest.load(artefact / CAPTIONER)
        live = list(repository.versions())[-1:]
        version = repository.stage()
        try:
            _fill(artefact, manifest, repository.staged(version), take)
            manifest.verify(repository.staged(version))
            say(f"verified {len(manifest.files)} files")
            if controls:
                _load(repository, controls, live, version, manifest, say)
            else:
                for model in VERSIONED:
                    repository.place(model, version)
        except BaseException as error:
            reason = "it was stopped" if isinstance(error, KeyboardInterrupt) else typed(error).wire()
            for fault in abort(repository, controls, version, "refused", reason):
                say(fault.wire())
            raise
        repository.confirm(version)
        gone = repository.prune(keep)
    say(f"{'live' if controls else 'published'}: version {version}, {manifest.model}@{manifest.revision[:12]}")
    if gone:
        say(f"removed old versions: {', '.join(map(str, gone))}")
    return version


def export_and_publish(
    found: ResolvedModel,
    repository: VersionStore,
    controls: Sequence[ModelControl],
    say: Log,
    *,
    keep: int = KEEP,
    precision: EncoderPrecision = "fp32",
    calibration: Path | None = None,
) -> int:
    """Both steps, on the repository's own disk; raises what either does."""
    with repository.workplace() as folder:
        export(found, folder, say, precision=precision, calibration=calibration)
        return publish(folder, repository, controls, say, keep=keep, take=True)


def _fill(artefact: Path, manifest: Manifest, staged: Path, take: bool) -> None:
    """The exported files and their manifests, beside the models' code, which is this repository's."""
    for name in [*manifest.files, *(f"{model}/{NAME}" for model in VERSIONED)]:
        if name.partition("/")[0] not in VERSIONED or ".." in name.split("/"):
            raise ArtefactBroken(f"{artefact}'s manifest names {name!r}, which is no file of an export")
        if not (artefact / name).is_file():
            raise ArtefactBroken(f"{artefact / name} is missing; export again")
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        if take:
            shutil.move(artefact / name, staged / name)
        else:
            shutil.copyfile(artefact / name, staged / name)


def _load(
    repository: VersionStore,
    controls: Sequence[ModelControl],
    live: Sequence[int],
    version: int,
    manifest: Manifest,
    say: Log,
) -> None:
    """Every step on every server, before the next; the last two make the version live."""
    for control in controls:  # so that no more than two versions are ever in memory
        unload_others(repository, control, live)
    for model in ENCODER:
        repository.place(model, version)
        for control in controls:
            say(f"loading {model} version {version} on {control.address}")
            control.load(repository.path, model, [*live, version])
    for control in controls:
        _check_encoder(control, repository.staged(version) / CAPTIONER, version)
    say("the encoder gives the exporter's features")
    repository.place(CAPTIONER, version)
    for control in controls:
        say(f"loading {CAPTIONER} version {version} on {control.address}")
        control.load(repository.path, CAPTIONER, [*live, version])
    if manifest.golden_sample is not None:
        for control in controls:
            _check_door(control, manifest.golden_sample, repository.folder(CAPTIONER, version), version)


def _check_encoder(control: ModelControl, folder: Path, version: int) -> None:
    photo = np.array([[(folder / GOLDEN_IMAGE).read_bytes()]], dtype=np.object_)
    pixels = control.infer(PREPROCESS, version, IMAGE, photo, PIXELS)
    found = control.infer(VISION_ENCODER, version, PIXELS, pixels, FEATURES)[0]
    expected = load_features(folder)
    if found.shape != expected.shape:
        raise ArtefactBroken(f"the encoder on {control.address} gives {found.shape}, the exporter's {expected.shape}")
    difference = compare(expected[np.newaxis], found[np.newaxis])
    if not (difference.typical >= TYPICAL_COSINE and difference.mean >= MEAN_COSINE):
        raise ArtefactBroken(
            f"on {control.address} {difference}; the limits of the two are {TYPICAL_COSINE} and {MEAN_COSINE}"
        )


def _check_door(control: ModelControl, check: GoldenSample, folder: Path, version: int) -> None:
    photo, end = (folder / GOLDEN_IMAGE).read_bytes(), time.monotonic() + DOOR_SECONDS
    greedy: dict[str, Any] = {"num_beams": 1, "repetition_penalty": 1.0, "repetition_guard": False}
    with Client(control.address) as client:
        while True:
            try:
                caption = client.caption(photo, max_tokens=max(len(check.token_ids), 1), **greedy)
                break
            except ServerBusy:
                if time.monotonic() >= end:
                    raise
                time.sleep(0.2)
    if caption.details.version != str(version):
        raise StartupRefused(f"{control.address} serves version {caption.details.version}, not {version}")
    check_caption(check, caption.text)
