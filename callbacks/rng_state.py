"""Random states in checkpoints, so that a resumed run draws what the uninterrupted one would."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from delta_transcoders.console import StudyWarning
from delta_transcoders.processes import gather, rank_and_world_size


class RngState(Callback):
    """Saves Python's, numpy's and torch's random states of every process and restores them.

    Torch's are the CPU's and that of the device which the process trains on. Restored before the first
    batch. A run that goes on with another number of processes than it had, or on another kind of device,
    cannot be the uninterrupted one: it warns and draws anew.
    """

    def __init__(self) -> None:
        self._device = torch.device("cpu")
        self._loaded: list[dict[str, Any]] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device

    def state_dict(self) -> dict[str, Any]:
        """Every process must call it, as Lightning's checkpointing does."""
        return {"by_rank": gather(_states(self._device))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict["by_rank"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._loaded is None:
            return
        states, self._loaded = self._loaded, None
        rank, world_size = rank_and_world_size()
        if len(states) != world_size:
            rank_zero_warn(
                f"the checkpoint holds the random states of {len(states)} processes, this run has "
                f"{world_size}: it will not draw what an uninterrupted run would",
                category=StudyWarning,
            )
            return
        if (saved_on := states[rank]["device"]) != self._device.type:
            rank_zero_warn(
                f"the checkpoint holds the random states of a run on {saved_on}, this one is on "
                f"{self._device.type}: it will not draw what an uninterrupted run would",
                category=StudyWarning,
            )
            return
        _restore(states[rank], self._device)


def _states(device: torch.device) -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    state = {
        "device": device.type,
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        state["torch_device"] = torch.get_device_module(device).get_rng_state(device)
    return state


def _restore(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["torch_device"].cpu(), device)
