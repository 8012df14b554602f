"""How many slots a device's memory holds, and what all of it takes, in words for the log."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from captioner.decoders.base import Decoder
from captioner.errors import StartupRefused

SHARE = 0.5  # of the free memory: the rest is for activations, the encoder, and whoever else is on the device
MOST = {"cuda": 64, "cpu": 16}  # beyond these a step takes longer and no more captions come out


@dataclass(frozen=True)
class Capacity:
    """The slots of one engine and their memory."""

    slots: int
    slot_bytes: int
    weight_bytes: int

    def __str__(self) -> str:
        weights, slot = self.weight_bytes / 2**20, self.slot_bytes / 2**20
        return (
            f"{weights:.1f} MiB of weights, {self.slots} slots x {slot:.2f} MiB = "
            f"{self.slots * slot:.1f} MiB of key/value cache"
        )


def capacity(decoder: Decoder, slots: int, cache_bytes: int) -> Capacity:
    """`slots` as set, or as many as fit into `cache_bytes`, or for 0 into a share of what is free.

    Raises StartupRefused when the set slots, or a single one, do not fit.
    """
    budget = cache_bytes or int(free_bytes(decoder.device) * SHARE)
    fitting = budget // decoder.slot_bytes
    wanted = slots or min(fitting, MOST[decoder.device.type])
    if not 1 <= wanted <= fitting:
        raise StartupRefused(
            f"{max(wanted, 1)} slots need {max(wanted, 1) * decoder.slot_bytes / 2**20:.0f} MiB of key/value cache; "
            f"{budget / 2**20:.0f} MiB are there for it on {decoder.device}"
        )
    return Capacity(wanted, decoder.slot_bytes, decoder.weight_bytes)


def free_bytes(device: torch.device) -> int:
    """Memory that nobody has taken on `device`."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return int(psutil.virtual_memory().available)
