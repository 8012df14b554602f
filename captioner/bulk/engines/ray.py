"""The bulk job on Ray Data: blocks of items go to a pool of actors, outcomes stream back to this process.

The actors ask Triton servers. Ray runs a block again whose worker was lost; what it
gives up is run once more image by image, and each outcome is counted here, so that none is lost and none comes twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import logging
import os
import pickle
import time
import warnings
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from captioner.bulk.engines.base import RETRY_FOR_S, BulkEngine, Outcome
from captioner.bulk.engines.ray_worker import Work, Worker
from captioner.bulk.sources.item import Item
from captioner.errors import CaptionerError, StartupRefused, from_wire
from captioner.wire import Caption, Details

# Items of one dataset, which Ray wants whole. A job is longer than the memory, and what was taken is finished when it
# is stopped: a chunk is to take this many times as long as the actors' start, which comes with each.
FIRST_CHUNK, MOST_CHUNK, STARTS = 8, 4096, 20  # the first is so many times what is in flight
BLOCK = 16  # items of one task at most
OBJECT_STORE_BYTES = 128 * 2**20  # of a Ray of our own: no images pass through it
# Read when ray is imported: it reports nothing home, and its C++ parts write no lines into ours.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
LOOPBACK = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # the one switch, on Linux too, that keeps Ray on 127.0.0.1
RETRIES = 1  # of a task whose worker died, before it is taken apart


def engine(
    *,
    server: str,
    workers: int,
    in_flight: int,
    parameters: Mapping[str, object],
    retry_for_s: float = RETRY_FOR_S,
) -> BulkEngine:
    """Return an engine of `workers` actors with `in_flight` images between them.

    The actors ask `server`, one address or several separated by commas; servers that are busy or away are retried for
    `retry_for_s`. Raises StartupRefused when Ray is not installed.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault(*LOOPBACK)
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise StartupRefused(f"Ray Data cannot be used: {error}; run: pip install 'captioner[ray]'") from error
    return RayEngine(Work(server, workers, max(1, in_flight // workers), dict(parameters), retry_for_s))


class RayEngine:
    """captioner.bulk.sources.item.Engine on Ray Data."""

    def __init__(self, work: Work) -> None:
        self._work = work

    async def __call__(self, items: Iterable[Item]) -> AsyncIterator[Outcome]:
        """Every item's outcome; Ray is driven, and `items` are read, on a thread of their own."""
        loop = asyncio.get_running_loop()
        outcomes = self._outcomes(items)
        with ThreadPoolExecutor(1, "ray") as thread:
            try:
                while (some := await loop.run_in_executor(thread, next, outcomes, None)) is not None:
                    for outcome in some:
                        yield outcome
            finally:
                await loop.run_in_executor(thread, outcomes.close)

    def _outcomes(self, items: Iterable[Item]) -> Generator[list[Outcome], None, None]:
        items = iter(items)
        size = FIRST_CHUNK * self._work.workers * self._work.in_flight
        with _ray(self._work.workers):
            while chunk := list(itertools.islice(items, size)):
                began, first = time.monotonic(), 0.0
                for some in self._chunk(chunk):
                    first = first or time.monotonic()
                    yield some
                rate = len(chunk) / max(time.monotonic() - first, 0.1)
                size = min(max(size, int(rate * STARTS * (first - began))), MOST_CHUNK)

    def _chunk(self, items: list[Item]) -> Iterator[list[Outcome]]:
        waiting = dict(enumerate(items))
        together = min(BLOCK, -(-self._work.in_flight // 4))
        # The second time alone: one image that ends its worker does not take its neighbours with it again.
        for block, calls in ((together, -(-self._work.in_flight // together) + 1), (1, 1)):
            if waiting:
                for answers in self._answers(waiting, block, calls):
                    fresh = [(number, answer) for number, answer in answers if number in waiting]
                    yield [_outcome(waiting.pop(number), answer) for number, answer in fresh]
        yield [Outcome(item, None, CaptionerError("its worker died each time")) for item in waiting.values()]

    def _answers(self, waiting: Mapping[int, Item], block: int, calls: int) -> Iterator[list[tuple[int, str]]]:
        """Each block's answers as it ends; a block whose worker died too often is left out."""
        import ray

        rows = [{"number": number, "item": pickle.dumps(item)} for number, item in waiting.items()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the last two options, which have no other name yet
            dataset = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // block)).map_batches(
                Worker,
                fn_constructor_args=(self._work,),
                batch_size=None,
                compute=ray.data.ActorPoolStrategy(size=self._work.workers, max_concurrent_calls_per_actor=calls),
                num_cpus=0,
                max_task_retries=RETRIES,
                scheduling_strategy="SPREAD",
            )
        try:
            for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
                yield list(zip(batch["number"].tolist(), batch["answer"].tolist(), strict=True))
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise StartupRefused(f"Ray's workers cannot work: {reason}") from error


def _outcome(item: Item, answer: str) -> Outcome:
    values = json.loads(answer)
    if "error" in values:
        return Outcome(item, None, from_wire(values["error"]))
    return Outcome(item, Caption(values["text"], Details.from_json(values["details"])), None)


@contextlib.contextmanager
def _ray(workers: int) -> Iterator[None]:
    """The Ray that runs already, or that RAY_ADDRESS names, or one of our own on this machine, ended after."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = -1  # what is left out is missed and run again
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not os.environ.get("RAY_ADDRESS"):
        quiet |= {
            "address": "local",
            "num_cpus": max(workers, os.cpu_count() or 1),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    try:
        ray.init(**quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = os.environ.get("RAY_ADDRESS") or "on this machine"
        raise StartupRefused(f"Ray {where} cannot be used: {str(error).splitlines()[0]}") from error
    said = ray._private.worker.print_to_stdstream
    # It tells of lost workers on stdout, where the captions may go.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        gc.collect()  # the next Ray counts its objects from 1 again: one of ours that ended later would end a namesake
        ray.shutdown()
        ray._private.worker.print_to_stdstream = said
