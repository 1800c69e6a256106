"""Fused optimizers, and mixed precision, which they do not go with."""

from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from datamodules.finetune_data import FinetuneData
from delta_transcoders.language_models import load_model, token_nll
from delta_transcoders.tasks.calculator.task import Calculator
from lightning_modules.delta_transcoder import DeltaTranscoderTraining
from lightning_modules.finetune import Finetune


@pytest.mark.parametrize(
    ("precision", "fused"),
    [("32-true", True), ("bf16-true", True), ("bf16-mixed", None), ("16-mixed", None)],
)
def test_optimizers_are_fused_except_under_mixed_precision(
    model_folder, tmp_path, monkeypatch, precision, fused
):
    trainer = SimpleNamespace(
        precision=precision, estimated_stepping_batches=10, max_steps=10, max_epochs=None
    )
    finetune = Finetune(model_folder, str(tmp_path))
    finetune.model = nn.Linear(2, 2)
    delta = DeltaTranscoderTraining(output=str(tmp_path))
    delta.stacks["2"] = nn.Linear(2, 2)
    for module in (finetune, delta):
        monkeypatch.setattr(type(module), "trainer", trainer)
        optimizer = module.configure_optimizers()["optimizer"]
        assert [group["fused"] for group in optimizer.param_groups] == [fused]


class RecordsGradients(Finetune):
    """Keeps the first step's gradients, before and after clipping."""

    def configure_gradient_clipping(self, *args, **kwargs) -> None:
        self.before = {n: p.grad.clone() for n, p in self.named_parameters()}
        super().configure_gradient_clipping(*args, **kwargs)
        self.after = {n: p.grad.clone() for n, p in self.named_parameters()}


def norm(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([g.norm() for g in gradients.values()]).norm()


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_step_follows_the_clipped_gradient_of_the_token_mean(
    model_folder, tmp_path, precision, clip
):
    """Two accumulated batches of different lengths; a scaler's factor leaves no trace."""
    sizes = {"n_train": 8, "n_validation": 8, "n_evaluation": 2, "batch_size": 4}
    data = FinetuneData(model_folder, str(tmp_path), Calculator(), **sizes)
    module = RecordsGradients(model_folder, str(tmp_path), method="full", lr=1e-3)
    # By its name, Lightning gives float16 to GPUs only. At torch's first scale the first steps overflow.
    half = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**8))
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        **({"plugins": half} if precision == "16-mixed" else {"precision": precision}),
        max_steps=1,
        accumulate_grad_batches=2,
        gradient_clip_val=clip,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )
    trainer.fit(module, data)

    model = load_model(model_folder)
    batch = data.collate(data._rows("train"))
    token_nll(model, batch["input_ids"], batch["attention_mask"], batch["labels"]).mean().backward()
    expected = {f"model.{name}": p.grad for name, p in model.named_parameters()}
    length = norm(expected)
    assert length > 1
    error = norm({name: module.before[name] - grad for name, grad in expected.items()})
    assert error < (1e-4 if precision == "32-true" else 0.05) * length
    clipped = length if clip is None else clip
    assert float(norm(module.after)) == pytest.approx(float(clipped), rel=0.02)
    first = dict(load_model(model_folder).named_parameters())
    moved = (module.model.get_parameter(name) - weight for name, weight in first.items())
    assert max(float(change.detach().abs().max()) for change in moved) > 5e-4
