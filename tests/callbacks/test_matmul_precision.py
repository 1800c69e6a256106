"""Rounded products last as long as a training."""

import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from callbacks.matmul_precision import MatmulPrecision


class _Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch):
        self.seen = torch.get_float32_matmul_precision()
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters())


def test_products_are_rounded_until_the_training_ends(tmp_path):
    model = _Model()
    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[MatmulPrecision("medium")],
    )
    assert torch.get_float32_matmul_precision() == "highest"
    trainer.fit(model, DataLoader(torch.ones(1, 1)))
    assert model.seen == "medium"
    assert torch.get_float32_matmul_precision() == "highest"
