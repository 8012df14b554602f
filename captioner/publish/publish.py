"""Publish an exported folder as the live version of running servers.

The captioner of a version calls the encoder of the same version, so the old pair serves while the new pair loads:

1. Place the encoder's folders (vision_encoder, preprocess) and load them.
2. Compare the encoder's features of the golden image with the exporter's.
3. Place and load the captioner. Its load runs the decoder's self-test; then Triton moves traffic to it.
4. Request the golden caption from the endpoint.

Each step runs on every server before the next begins. A step that fails aborts the publish: the previous version serves
again, and the new one is quarantined with the reason.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from captioner.artifacts.golden import check_caption, load_features
from captioner.artifacts.manifest import GOLDEN_IMAGE, NAME, GoldenSample, Manifest
from captioner.artifacts.version_store import KEEP, KEEP_LOADED, VERSIONED, VersionStore
from captioner.client import Client, RetryPolicy
from captioner.errors import ArtefactBroken, ParameterInvalid, StartupRefused, typed
from captioner.hub.resolve import ResolvedModel
from captioner.publish.model_control import ModelControl
from captioner.publish.rollback import abort
from captioner.publish.warm_standby import ENCODER, Log, newest, unload_others
from captioner.wire import CAPTIONER, FEATURES, IMAGE, PIXELS, PREPROCESS, VISION_ENCODER, EncoderPrecision
from export.export import export
from export.precision import compare

RETRY = RetryPolicy(max_elapsed_s=60.0)  # of the request for the golden caption: a server under load may refuse it
TYPICAL_COSINE = 0.99  # of an image token with the exporter's: devices and JPEG decoders round differently
MEAN_COSINE = 0.9  # lower, because nearly equal words of a concept encoder change places


def publish(
    exported: Path,
    store: VersionStore,
    controls: Sequence[ModelControl],
    log: Log,
    *,
    keep: int = KEEP,
    move: bool = False,
) -> int:
    """Publish an exported folder as the next version and return its number.

    Without `controls`, only the folders change; the next start of a server serves the new version. `keep` versions stay
    on disk. `move` moves the exported files instead of copying them. Raises ArtefactBroken, RepositoryBusy, or a
    server's error; the previous version is then live, and the new one is quarantined with the reason.
    """
    if keep < KEEP_LOADED:
        raise ParameterInvalid(
            f"keep is {keep}; it must be at least {KEEP_LOADED}, the number of versions that stay loaded"
        )
    with store.lock():
        for unfinished in store.recover():
            log(f"version {unfinished} was left unfinished; it is quarantined")
        manifest = Manifest.load(exported / CAPTIONER)
        version = store.stage()
        try:
            _fill(exported, manifest, store.staged(version), move)
            manifest.verify(store.staged(version))
            log(f"verified {len(manifest.files)} files")
            if controls:
                _load(store, controls, version, manifest, log)
            else:
                for model in VERSIONED:
                    store.place(model, version)
        except BaseException as error:
            reason = "the publish was interrupted" if isinstance(error, KeyboardInterrupt) else typed(error).wire()
            for fault in abort(store, controls, version, "refused", reason):
                log(fault.wire())
            raise
        store.confirm(version)
        removed = store.prune(keep)
    log(f"{'live' if controls else 'published'}: version {version}, {manifest.model}@{manifest.revision[:12]}")
    if removed:
        log(f"removed old versions: {', '.join(map(str, removed))}")
    return version


def export_and_publish(
    found: ResolvedModel,
    store: VersionStore,
    controls: Sequence[ModelControl],
    log: Log,
    *,
    keep: int = KEEP,
    precision: EncoderPrecision = "fp32",
    calibration: Path | None = None,
) -> int:
    """Export a model on the repository's own disk and publish it; raises what `export` and `publish` raise."""
    with store.export_folder() as folder:
        export(found, folder, log, precision=precision, calibration=calibration)
        return publish(folder, store, controls, log, keep=keep, move=True)


def _fill(exported: Path, manifest: Manifest, staged: Path, move: bool) -> None:
    """Put the exported files and manifests into the staged version, beside the models' code."""
    for name in [*manifest.files, *(f"{model}/{NAME}" for model in VERSIONED)]:
        if name.partition("/")[0] not in VERSIONED or ".." in name.split("/"):
            raise ArtefactBroken(f"{exported}'s manifest names {name!r}, which is not a file of an export")
        if not (exported / name).is_file():
            raise ArtefactBroken(f"{exported / name} is missing; export again")
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        if move:
            shutil.move(exported / name, staged / name)
        else:
            shutil.copyfile(exported / name, staged / name)


def _load(store: VersionStore, controls: Sequence[ModelControl], version: int, manifest: Manifest, log: Log) -> None:
    """Take a staged version through steps 1 to 4 on every server."""
    loaded = newest(store, spare=1)
    for control in controls:  # never hold more than KEEP_LOADED versions in memory
        unload_others(store, control, loaded)
    for model in ENCODER:
        store.place(model, version)
        for control in controls:
            log(f"loading {model} version {version} on {control.address}")
            control.load(store.path, model, [*loaded, version])
    for control in controls:
        _check_encoder(control, store.staged(version) / CAPTIONER, version)
    log("the encoder reproduces the exporter's features")
    store.place(CAPTIONER, version)
    for control in controls:
        log(f"loading {CAPTIONER} version {version} on {control.address}")
        control.load(store.path, CAPTIONER, [*loaded, version])
    if manifest.golden_sample is not None:
        for control in controls:
            _check_endpoint(control, manifest.golden_sample, store.folder(CAPTIONER, version), version)


def _check_encoder(control: ModelControl, folder: Path, version: int) -> None:
    """Compare the loaded encoder's features of the golden image in `folder` with the exporter's."""
    image = np.array([[(folder / GOLDEN_IMAGE).read_bytes()]], dtype=np.object_)
    pixels = control.infer(PREPROCESS, version, IMAGE, image, PIXELS)
    features = control.infer(VISION_ENCODER, version, PIXELS, pixels, FEATURES)[0]
    expected = load_features(folder)
    if features.shape != expected.shape:
        raise ArtefactBroken(
            f"the encoder on {control.address} gives features of shape {features.shape}; the exporter's have "
            f"{expected.shape}"
        )
    difference = compare(expected[np.newaxis], features[np.newaxis])
    if not (difference.typical >= TYPICAL_COSINE and difference.mean >= MEAN_COSINE):
        raise ArtefactBroken(
            f"on {control.address} {difference}; the cosines' limits are {TYPICAL_COSINE} and {MEAN_COSINE}"
        )


def _check_endpoint(control: ModelControl, golden: GoldenSample, folder: Path, version: int) -> None:
    """Request the golden caption as a client does, and compare it with the exporter's."""
    with Client(control.address, retry=RETRY) as client:
        caption = client.caption(
            folder / GOLDEN_IMAGE,
            max_tokens=max(len(golden.token_ids), 1),
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            repetition_guard=False,
        )
    if caption.details.version != str(version):
        raise StartupRefused(f"{control.address} serves version {caption.details.version}, not {version}")
    check_caption(golden, caption.text)
