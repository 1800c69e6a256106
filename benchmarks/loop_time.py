"""How long a training loop takes, validations included, for the benchmarks."""

import time

from lightning import Callback, LightningModule, Trainer


class LoopTime(Callback):
    """Seconds between the first and the last training step, on the clock and of the processor."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = time.perf_counter(), time.process_time()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.wall = time.perf_counter() - self.start[0]
        self.processor = time.process_time() - self.start[1]
