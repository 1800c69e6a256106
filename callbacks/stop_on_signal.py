"""An orderly end when somebody sends SIGTERM or presses Ctrl-C, or something goes wrong."""

from __future__ import annotations

import copy
import logging
import signal
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from delta_transcoders import signals

CHECKPOINT = "stopped.ckpt"

say = logging.getLogger("delta_transcoders").info


class EndTogether(Callback):
    """An error of the first process ends those that it has started, which would wait for it.

    (An error of another process ends the first one: Lightning watches over them.) It must be the
    first callback: the others may then remove what those processes were writing.
    """

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            launcher.kill(signal.SIGKILL)
            for process in launcher.procs:
                process.wait()
            launcher.procs.clear()  # the watch would take their end for a reason to kill this one


class StopOnSignal(Callback):
    """Ends a fit after the step it is in, with a checkpoint that goes on as if nothing had happened.

    All processes stop at the same step, whichever of them got the signal. Within a validation the
    checkpoint is that of its start, and going on repeats it (several processes finish it first). Everything
    else (tests, predictions, loading, writing results) ends where it is: no output is in its place before it
    is complete.

    A fit that has come to its end saves such a checkpoint too, until its results are written: whatever goes
    wrong there costs no training.

    It must be the last callback: what it saves is then the state after all of them.
    """

    def __init__(self) -> None:
        self._at_validation: dict[str, Any] | None = None
        self._finished = False
        self._kept = False

    def state_dict(self) -> dict[str, Any]:
        return {"finished": self._finished}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._finished = state_dict["finished"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Lightning's own handler lets a fit end as if it had succeeded, and waits for other processes.
        register = trainer._signal_connector.register_signal_handlers

        def register_and_overrule() -> None:
            register()
            signals.install()

        trainer._signal_connector.register_signal_handlers = register_and_overrule

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._resumable = getattr(pl_module, "resumable", True)
        # Here, for all processes: `log_dir` is broadcast among them.
        self._path = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints" / CHECKPOINT
        if self._finished:  # by early stopping, perhaps, which would start to count again
            trainer.should_stop = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signals.defer(self._resumable)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        loop = trainer.fit_loop.epoch_loop
        # No checkpoint holds gradients that are still accumulating. Where a validation comes next, the fit
        # stops in that: Lightning would leave it out when it goes on from here.
        validates = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
        if not loop._should_accumulate() and not validates:
            self._stop_if_asked(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            if batch_idx == 0:
                self._at_validation = copy.deepcopy(trainer.fit_loop.state_dict())
                # What Lightning takes for "amid a validation", of which no batch is done.
                progress = self._at_validation["epoch_loop.val_loop.batch_progress"]
                for count in (progress["total"], progress["current"]):
                    count["started"] = count["ready"]
            # Processes may have different numbers of batches, and can agree on the first alone.
            if batch_idx == 0 or trainer.world_size == 1:
                self._stop_if_asked(trainer, self._at_validation)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finished = True
        self._stop_if_asked(trainer)
        signals.defer(False)
        if self._resumable and trainer.checkpoint_callbacks and not trainer.fast_dev_run:
            trainer.save_checkpoint(self._path)
            self._kept = True

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        signals.defer(False)
        if isinstance(exception, signals.Stopped) and self._kept:
            exception.checkpoint = str(self._path)
        elif self._kept and not isinstance(exception, ValueError):
            say(f"  the training is kept in {self._path}: go on from it with --ckpt_path")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:  # all is well, and written
            self._path.unlink(missing_ok=True)

    def _stop_if_asked(self, trainer: Trainer, loops: dict[str, Any] | None = None) -> None:
        """
        Args:
            loops: state of the fit's loops to save in place of the present one.
        """
        asked = self._resumable and signals.pending is not None
        if trainer.strategy.reduce_boolean_decision(asked, all=False):
            if loops is not None:
                trainer.fit_loop.load_state_dict(loops)
            trainer.save_checkpoint(self._path)
            raise signals.Stopped(signals.pending or signal.SIGTERM, str(self._path))
