"""How many slots fit into a device's memory."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from captioner.decoders.base import Decoder
from captioner.errors import StartupRefused

MEMORY_SHARE = 0.5  # of the free memory: the rest is for activations, the encoder and other processes
MAX_SLOTS = {"cuda": 64, "cpu": 16}  # more slots make a step slower without more captions per second


@dataclass(frozen=True)
class Capacity:
    """The slots of one engine and their memory. `str` gives the line for the log."""

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
    """Return `slots` if set, or as many slots as fit into `cache_bytes` (0: into MEMORY_SHARE of the free memory).

    Raises StartupRefused when the requested slots, or even one slot, do not fit.
    """
    budget = cache_bytes or int(free_bytes(decoder.device) * MEMORY_SHARE)
    fitting = budget // decoder.slot_bytes
    wanted = slots or min(fitting, MAX_SLOTS[decoder.device.type])
    if not 1 <= wanted <= fitting:
        raise StartupRefused(
            f"{max(wanted, 1)} slots need {max(wanted, 1) * decoder.slot_bytes / 2**20:.0f} MiB of key/value cache; "
            f"{decoder.device} has {budget / 2**20:.0f} MiB for it"
        )
    return Capacity(wanted, decoder.slot_bytes, decoder.weight_bytes)


def free_bytes(device: torch.device) -> int:
    """Return the free memory of `device`, in bytes."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return int(psutil.virtual_memory().available)
