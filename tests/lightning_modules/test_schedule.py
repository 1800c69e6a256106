"""Learning rates follow a schedule to the training's end, which must be known."""

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_modules.schedule import total_steps


class Scheduled(lightning.LightningModule):
    """Notes how many steps there will be."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.total = None

    def training_step(self, batch, batch_idx):
        return (self.weight * batch).sum()

    def configure_optimizers(self):
        self.total = total_steps(self.trainer)
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def fit(tmp_path):
    def run(**limits) -> Scheduled:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        trainer = lightning.Trainer(
            accelerator="cpu",
            default_root_dir=tmp_path,
            enable_checkpointing=False,
            **quiet,
            **limits,
        )
        module = Scheduled()
        trainer.fit(module, DataLoader(torch.arange(5.0), batch_size=1))
        return module

    return run


@pytest.mark.parametrize(
    ("limits", "total"),
    [
        ({"max_steps": 3}, 3),
        ({"max_epochs": 2}, 10),
        ({"max_steps": 3, "max_time": "00:01:00:00"}, 3),
        ({"max_epochs": 2, "max_time": "00:01:00:00"}, 10),
        ({"max_epochs": -1, "max_steps": 4, "max_time": "00:01:00:00"}, 4),
    ],
)
def test_a_limit_of_steps_or_epochs_says_how_many(fit, limits, total):
    assert fit(**limits).total == total


@pytest.mark.parametrize(
    "limits",
    [
        {"max_time": "00:01:00:00"},
        {"max_steps": -1, "max_time": "00:01:00:00"},
        {"max_epochs": -1},
        {"max_epochs": -1, "max_steps": -1, "max_time": {"hours": 1}},
    ],
)
def test_no_limit_or_one_of_time_alone_is_refused(fit, limits):
    with pytest.raises(ValueError, match=r"--trainer\.max_steps or --trainer\.max_epochs"):
        fit(**limits)
