"""The engine on Ray Data: a pool of actors asks Triton servers; outcomes stream back to this process.

Ray retries a block of items whose actor died. If the actor dies again, the block's items are retried one by one. This
process matches every outcome with its item, so that no outcome is lost or duplicated.
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

# Ray Data needs each dataset complete, so the items are fed in chunks, and each chunk starts its actors anew. A chunk
# must be large enough to amortise that start and small enough that Ctrl-C returns soon.
FIRST_CHUNK = 8  # items of the first chunk, for each image in flight
MAX_CHUNK = 4096  # items
AMORTISATION = 20  # a chunk should take this many times as long as the start of its actors
MAX_BLOCK = 16  # items of one task
OBJECT_STORE_BYTES = 128 * 2**20  # of a local Ray; images do not pass through it
# Read when ray is imported: no usage statistics are sent, and Ray's C++ processes do not log into this terminal.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
LOOPBACK = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # the only switch, also on Linux, that binds Ray to 127.0.0.1
MAX_TASK_RETRIES = 1  # of a block whose actor died, before its items are retried one by one


def engine(
    *,
    server: str,
    workers: int,
    in_flight: int,
    parameters: Mapping[str, object],
    retry_for_s: float = RETRY_FOR_S,
) -> BulkEngine:
    """Return an engine of `workers` actors with `in_flight` images between them.

    `server`: one address, or several separated by commas. Servers that are busy, restarting or away are retried for
    `retry_for_s`. Raises StartupRefused if Ray is not installed.
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
    """A BulkEngine on Ray Data."""

    def __init__(self, work: Work) -> None:
        self._work = work

    async def __call__(self, items: Iterable[Item]) -> AsyncIterator[Outcome]:
        """Yield the outcome of every item. One thread drives Ray and iterates `items`."""
        loop = asyncio.get_running_loop()
        outcomes = self._outcomes(items)
        with ThreadPoolExecutor(1, "ray") as thread:
            try:
                while (batch := await loop.run_in_executor(thread, next, outcomes, None)) is not None:
                    for outcome in batch:
                        yield outcome
            finally:
                await loop.run_in_executor(thread, outcomes.close)

    def _outcomes(self, items: Iterable[Item]) -> Generator[list[Outcome], None, None]:
        items = iter(items)
        size = FIRST_CHUNK * self._work.workers * self._work.in_flight
        with _ray(self._work.workers):
            while chunk := list(itertools.islice(items, size)):
                began, first = time.monotonic(), 0.0
                for batch in self._chunk(chunk):
                    first = first or time.monotonic()
                    yield batch
                rate = len(chunk) / max(time.monotonic() - first, 0.1)
                size = min(max(size, int(rate * AMORTISATION * (first - began))), MAX_CHUNK)

    def _chunk(self, items: list[Item]) -> Iterator[list[Outcome]]:
        pending = dict(enumerate(items))
        block = min(MAX_BLOCK, -(-self._work.in_flight // 4))
        # The second pass runs blocks of one item: an image that kills its actor must not fail the images of its block.
        for block_size, calls in ((block, -(-self._work.in_flight // block) + 1), (1, 1)):
            if pending:
                for answers in self._answers(pending, block_size, calls):
                    new = [(number, answer) for number, answer in answers if number in pending]
                    yield [_outcome(pending.pop(number), answer) for number, answer in new]
        yield [Outcome(item, None, CaptionerError("its worker died in every attempt")) for item in pending.values()]

    def _answers(self, pending: Mapping[int, Item], block_size: int, calls: int) -> Iterator[list[tuple[int, str]]]:
        """Yield the answers of each block when it ends. A block whose actor died too often yields nothing."""
        import ray

        rows = [{"number": number, "item": pickle.dumps(item)} for number, item in pending.items()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the last two options are deprecated and have no replacement yet
            dataset = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // block_size)).map_batches(
                Worker,
                fn_constructor_args=(self._work,),
                batch_size=None,
                compute=ray.data.ActorPoolStrategy(
                    size=self._work.workers,
                    max_concurrent_calls_per_actor=calls,
                    # In the second pass no item may be queued behind the one that kills the actor.
                    max_tasks_in_flight_per_actor=1 if calls == 1 else None,
                ),
                num_cpus=0,
                max_task_retries=MAX_TASK_RETRIES,
                scheduling_strategy="SPREAD",
            )
        try:
            for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
                yield list(zip(batch["number"].tolist(), batch["answer"].tolist(), strict=True))
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise StartupRefused(f"Ray's workers failed: {reason}") from error


def _outcome(item: Item, answer: str) -> Outcome:
    values = json.loads(answer)
    if "error" in values:
        return Outcome(item, None, from_wire(values["error"]))
    return Outcome(item, Caption(values["text"], Details.from_json(values["details"])), None)


@contextlib.contextmanager
def _ray(workers: int) -> Iterator[None]:
    """Connect to Ray: the running one, the cluster of RAY_ADDRESS, or a local one, which is shut down at the end."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = -1  # unlimited: `_chunk` retries what is missing
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not os.environ.get("RAY_ADDRESS"):
        options |= {
            "address": "local",
            "num_cpus": max(workers, os.cpu_count() or 1),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises Exception itself if a local node does not start in time
        where = os.environ.get("RAY_ADDRESS") or "on this machine"
        raise StartupRefused(f"Ray {where} cannot be used: {str(error).splitlines()[0]}") from error
    print_to_stdstream = ray._private.worker.print_to_stdstream
    # Ray reports lost workers on stdout, where the captions may go.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        gc.collect()  # object ids start again at 1 in the next Ray: a late release would free another object there
        ray.shutdown()
        ray._private.worker.print_to_stdstream = print_to_stdstream
