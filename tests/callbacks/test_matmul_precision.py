"""Rounded products last as long as a training."""

import pytest
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


@pytest.fixture
def fit(tmp_path):
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
    return lambda model: trainer.fit(model, DataLoader(torch.ones(1, 1)))


def test_products_are_rounded_until_the_training_ends(fit):
    model = _Model()
    assert torch.get_float32_matmul_precision() == "highest"
    fit(model)
    assert model.seen == "medium"
    assert torch.get_float32_matmul_precision() == "highest"


def test_products_are_rounded_until_a_training_fails(fit):
    class Failing(_Model):
        def training_step(self, batch):
            raise ValueError(torch.get_float32_matmul_precision())

    with pytest.raises(ValueError, match="medium"):
        fit(Failing())
    assert torch.get_float32_matmul_precision() == "highest"
