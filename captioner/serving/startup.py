"""From a published version folder to a running CaptionService: verify, load, warm up, self-test."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
import transformers
from tokenizers import Tokenizer

from captioner.artifacts.manifest import Manifest
from captioner.decoders.load_weights import PRECISIONS, Precision
from captioner.engine.capacity import capacity
from captioner.engine.engine import Engine
from captioner.engine.runner import Runner
from captioner.errors import ArtefactBroken, StartupRefused
from captioner.families import family
from captioner.serving.feature_cache import Encoded
from captioner.serving.metrics import Values
from captioner.serving.self_check import check_decoder
from captioner.serving.served_model import ServedModel
from captioner.serving.service import CaptionService
from captioner.serving.settings import AUTO, Settings

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")
SMALL_BYTES = 64 * 2**20  # of weights: a smaller decoder is faster on one thread


def on_a_thread_that_ends(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that computes with torch before the decode thread does.

    OpenMP keeps worker threads for each thread that has computed anything. If all of them are more than the cores,
    those of the decode thread sleep between two operations instead of waiting awake: a third of the speed.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with ThreadPoolExecutor(1, function.__name__) as thread:
            return thread.submit(function, *args, **kwargs).result()

    return run


@on_a_thread_that_ends
def load_service(
    folder: Path,
    version: str,
    gpu: int | None,
    settings: Settings,
    encode: Callable[[bytes], Encoded],
    report: Callable[[Values], None],
) -> CaptionService:
    """Return the service of `folder/version`; `folder` is the captioner model inside a model repository.

    `gpu`: CUDA device number, None for the CPU. Raises ArtefactBroken or StartupRefused.

    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    transformers.logging.disable_progress_bar()
    manifest = Manifest.load(folder / version)
    manifest.verify(folder.parent, version)
    device = _device(gpu)
    precision = _precision(settings.precision, device)
    kind = family(manifest.family)
    decoder = kind.decoder(folder / version, manifest, precision, device)
    if threads := settings.decode_threads or int(decoder.weight_bytes < SMALL_BYTES):
        torch.set_num_threads(threads)
    room = capacity(decoder, settings.slots, settings.kv_cache_mib * 2**20)
    log.info(
        "%s@%s on %s in %s: %s, decode threads %d",
        manifest.model, manifest.revision[:12], device, precision, room, torch.get_num_threads(),
    )  # fmt: skip
    if manifest.generation.num_beams > room.slots:
        raise StartupRefused(
            f"the model searches with {manifest.generation.num_beams} beams; it has {room.slots} slots"
        )
    tokenizer_file = folder / version / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ArtefactBroken(f"{tokenizer_file} cannot be read: {error}") from error
    runner = Runner(decoder, room.slots)
    grid = manifest.image.min_grid
    prompt_ids = kind.prompt_ids(tokenizer, manifest, manifest.prompts.render(None, None), *grid)
    try:
        runner.warm_up(torch.zeros(manifest.feature_shape(*grid)), prompt_ids)
    except Exception as error:  # for example, a quantized layer of a size that its kernel does not support
        raise StartupRefused(f"{manifest.model} cannot run in {precision} on {device}: {error}") from error
    check_decoder(runner, manifest, folder / version, exact=precision == "fp32" and device.type == "cpu")
    engine = Engine(runner, manifest.stop_ids, max_waiting=settings.max_waiting)
    model = ServedModel(manifest, version, str(device), precision, tokenizer, room.slots)
    gc.collect()
    gc.freeze()  # a full collection of the imported libraries stops every caption for 140 ms
    return CaptionService(model, engine, encode, report, settings)


def _device(gpu: int | None) -> torch.device:
    if gpu is None:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise StartupRefused(f"Triton placed the captioner on GPU {gpu}, but torch sees no CUDA device")
    return torch.device("cuda", gpu)


def _precision(wanted: str, device: torch.device) -> Precision:
    if wanted == AUTO:
        return "bf16" if device.type == "cuda" else "fp32"
    for precision in PRECISIONS:
        if precision == wanted:
            return precision
    raise StartupRefused(f"precision is {wanted!r}; it must be {AUTO} or one of {', '.join(PRECISIONS)}")
