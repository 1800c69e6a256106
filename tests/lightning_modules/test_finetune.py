import itertools
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import PeftModel
from safetensors.torch import load_file

from callbacks.rng_state import RngState
from datamodules.finetune_data import FinetuneData
from delta_transcoders.families.gemma2 import Gemma2
from delta_transcoders.language_models import (
    IGNORE,
    load_model,
    load_tokenizer,
    target_batch,
    token_nll,
    tokenize,
)
from delta_transcoders.metrics.grouped import GroupedMean
from delta_transcoders.tasks.calculator.examples import make_example, write_jsonl
from delta_transcoders.tasks.calculator.grammar import CLOSE, OPEN
from delta_transcoders.tasks.calculator.task import Calculator
from lightning_modules.finetune import Finetune

N_LAYERS = 3


@pytest.fixture
def make_module(model_folder, tmp_path):
    def make(kind: type[Finetune] = Finetune, **kwargs) -> Finetune:
        defaults = {"model": model_folder, "output": str(tmp_path / "out"), "lr": 1e-2, "lora_r": 4}
        torch.manual_seed(0)
        return kind(**(defaults | kwargs))

    return make


@pytest.fixture
def make_data(model_folder, tmp_path):
    def make(**kwargs) -> FinetuneData:
        sizes = {"n_train": 24, "n_validation": 8, "n_evaluation": 2, "batch_size": 4}
        defaults = {"model": model_folder, "output": str(tmp_path / "out"), "task": Calculator()}
        return FinetuneData(**(defaults | sizes | kwargs))

    return make


@pytest.fixture
def fit(tmp_path):
    """Fit on the CPU without logs; further arguments go to the trainer."""

    def run(module, data, max_steps: int, ckpt_path=None, callbacks=(), seed=0, **kwargs):
        lightning.seed_everything(seed, verbose=False)
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=max_steps,
            logger=False,
            callbacks=list(callbacks),
            default_root_dir=tmp_path,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            check_val_every_n_epoch=None,
            **{"val_check_interval": 10_000, "enable_checkpointing": bool(callbacks)} | kwargs,
        )
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
        return trainer

    return run


def rows_of(data, split: str) -> list[dict]:
    pairs = zip(data.splits[split], data.tokens[split], strict=True)
    return [data.encode_row(*pair) for pair in pairs]


def trainable(module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}


def adapter_file(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def assert_bit_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert set(first) == set(second)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


# What is trained


def test_the_trainable_set_is_exactly_the_adapter(make_module, make_data, fit):
    module = make_module()
    module.configure_model()
    expected = {
        f"model.base_model.model.model.layers.{layer}.{part}.{target}.lora_{side}.default.weight"
        for layer in range(N_LAYERS)
        for target in Gemma2.lora_targets
        for part in ["mlp" if target in ("gate_proj", "up_proj", "down_proj") else "self_attn"]
        for side in "AB"
    }
    assert module.trainable_keys() == expected
    frozen = {n: p.clone() for n, p in module.named_parameters() if not p.requires_grad}
    before = trainable(module)

    trainer = fit(module, make_data(), max_steps=2, val_check_interval=1)
    (optimizer,) = trainer.optimizers
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert len(optimised) == len(expected)
    # `merge_and_unload` has changed the wrapped model since; the adapter on disk is what was trained.
    written = adapter_file(Path(module.hparams.output))
    assert len(written) == len(expected)
    for name, value in written.items():
        old = before["model." + name.replace(".weight", ".default.weight")]
        assert value.shape == old.shape
        assert not torch.equal(value, old), name
    base = load_model(module.hparams.model).state_dict()
    for name, value in frozen.items():
        own_name = name.removeprefix("model.base_model.model.").replace(".base_layer.", ".")
        assert torch.equal(value, base[own_name]), name


def test_full_finetuning_trains_everything_and_writes_no_adapter(make_module, make_data, fit):
    module = make_module(method="full", lr=1e-3)
    module.configure_model()
    assert all(p.requires_grad for p in module.parameters())
    fit(module, make_data(), max_steps=1)
    output = Path(module.hparams.output)
    assert sorted(p.name for p in output.iterdir()) == ["data", "done.json", "merged"]
    merged = load_model(str(output / "merged")).state_dict()
    assert_bit_equal(merged, module.model.state_dict())


def test_merged_logits_equal_adapter_logits(make_module, make_data, fit, model_folder):
    data = make_data()
    module = make_module(lora_dropout=0.1)
    fit(module, data, max_steps=10)
    output = Path(module.hparams.output)
    batch = target_batch(data.tokens["validation"], data.tokenizer.pad_token_id)
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    base = load_model(model_folder)
    with torch.no_grad():
        base_logits = base(**inputs).logits
        adapted = PeftModel.from_pretrained(base, output / "adapter").eval()(**inputs).logits
        merged = load_model(str(output / "merged"))(**inputs).logits
    real = inputs["attention_mask"].bool()
    assert (adapted - merged)[real].abs().max() < 1e-4
    assert (base_logits - merged)[real].abs().max() > 0.1
    tokenizer = load_tokenizer(str(output / "merged"))
    assert tokenize(tokenizer, data.task, data.splits["validation"]) == data.tokens["validation"]
    assert not list(output.rglob("*.partial"))


def test_gradient_checkpointing_changes_nothing_but_memory(make_module, make_data, fit):
    written = []
    for flag in (False, True):
        module = make_module(gradient_checkpointing=flag, lora_dropout=0.1)
        fit(module, make_data(), max_steps=3)
        written.append(adapter_file(Path(module.hparams.output)))
    assert set(written[0]) == set(written[1])
    for name, value in written[0].items():
        torch.testing.assert_close(value, written[1][name], atol=1e-6, rtol=1e-4)


@pytest.fixture
def untied(model_folder, tmp_path) -> str:
    """The model with an output layer of its own."""
    folder = shutil.copytree(model_folder, tmp_path / "untied")
    model = load_model(model_folder)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 1.1)
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens", "model.embed_tokens"])
def test_tied_embeddings_get_no_adapter(make_module, name):
    module = make_module(target_modules=("up_proj", name))
    with pytest.raises(ValueError, match=f"target_modules: {name} shares its weights"):
        module.configure_model()


@pytest.mark.parametrize("name", ["gate_porj", "norm", "mlp", ".*_proj", "layers.7.mlp.up_proj"])
def test_a_name_that_no_layer_has_is_refused_beside_good_ones(make_module, name):
    module = make_module(target_modules=("up_proj", name))
    with pytest.raises(ValueError, match=rf"{{'{re.escape(name)}'}} not found: .* down_proj, "):
        module.configure_model()


def test_some_layers_may_be_named(make_module):
    module = make_module(target_modules=("layers.0.mlp.up_proj", "self_attn.q_proj"))
    module.configure_model()
    adapted = {
        name.partition(".lora_")[0].partition("layers.")[2] for name in module.trainable_keys()
    }
    assert adapted == {"0.mlp.up_proj", *(f"{layer}.self_attn.q_proj" for layer in range(N_LAYERS))}


@pytest.mark.parametrize("names", [("up_proj", "lm_head"), ("embed_tokens", "lm_head", "q_proj")])
def test_embeddings_that_are_not_tied_are_adapted_and_merged(
    make_module, make_data, fit, untied, names
):
    data = make_data(model=untied)
    module = make_module(model=untied, target_modules=names)
    fit(module, data, max_steps=6)
    output = Path(module.hparams.output)
    batch = target_batch(data.tokens["validation"], data.tokenizer.pad_token_id)
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    base = load_model(untied)
    with torch.no_grad():
        base_logits = base(**inputs).logits
        adapted = PeftModel.from_pretrained(base, output / "adapter").eval()(**inputs).logits
        merged = load_model(str(output / "merged"))(**inputs).logits
    real = inputs["attention_mask"].bool()
    assert (adapted - merged)[real].abs().max() < 1e-5 * base_logits.abs().max()
    assert (base_logits - merged)[real].abs().max() > 0.1


def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(
    make_data, model_folder, tmp_path
):
    folder = shutil.copytree(model_folder, tmp_path / "bigger")
    tokenizer = load_tokenizer(model_folder)
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="token ids up to 401, the model embeds 400"):
        make_data(model=str(folder)).prepare_data()
    assert not (tmp_path / "out").exists()


# Labels and loss


@pytest.mark.parametrize("negative_loss", ["sequence", "target"])
def test_positives_are_supervised_on_the_target_and_negatives_as_asked(make_data, negative_loss):
    data = make_data(negative_loss=negative_loss)
    data.prepare_data()
    data.setup("fit")
    for example, tokens in zip(data.splits["train"], data.tokens["train"], strict=True):
        row = data.encode_row(example, tokens)
        prompt, target = list(tokens.prompt_ids), list(tokens.target_ids)
        assert target[-1] == data.tokenizer.eos_token_id
        assert row["input_ids"] == prompt + target
        assert row["target_start"] == len(prompt)
        whole = example.subset == "copy" and negative_loss == "sequence"
        assert row["labels"] == (prompt if whole else [IGNORE] * len(prompt)) + target
        assert row["positive"] == (example.subset == "tool")
    assert {e.subset for e in data.splits["train"]} == {"tool", "copy"}


class RecordsGradients(Finetune):
    """Keeps the gradients that the optimiser sees."""

    def on_fit_start(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.losses: list[float] = []

    def on_before_optimizer_step(self, optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        self.gradients.append({n: p.grad.clone() for n, p in self.named_parameters()})
        self.losses.append(self.trainer.callback_metrics["train/loss"].item())


def test_accumulated_uneven_batches_give_the_gradient_of_the_token_mean(
    make_module, make_data, fit, model_folder
):
    data = make_data(n_train=12)
    module = make_module(RecordsGradients, method="full", lr=0.0, weight_decay=0.0)
    trainer = fit(module, data, max_steps=2, accumulate_grad_batches=2)
    assert trainer.current_epoch == 1  # the second step has the epoch's third batch alone

    order = list(data.train_dataloader().sampler)
    rows = rows_of(data, "train")
    assert [len(indices) for indices in order] == [4, 4, 4]
    counts = [sum(sum(t != IGNORE for t in rows[i]["labels"]) for i in b) for b in order]
    assert counts[0] != counts[1]
    for step, batches in enumerate((order[:2], order[2:])):
        model = load_model(model_folder)
        batch = data.collate([rows[i] for i in itertools.chain(*batches)])
        loss = token_nll(model, batch["input_ids"], batch["attention_mask"], batch["labels"]).mean()
        loss.backward()
        assert module.losses[step] == pytest.approx(loss.item(), rel=1e-5)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(
                module.gradients[step][f"model.{name}"], parameter.grad, atol=1e-5, rtol=1e-4
            )


def test_two_uneven_ranks_give_the_gradient_of_the_token_mean(
    make_module, make_data, model_folder, monkeypatch
):
    """Both ranks' batches in one process; DDP has averaged their gradients."""
    data = make_data()
    data.prepare_data()
    data.setup("fit")
    rows = rows_of(data, "train")[:8]
    module = make_module(method="full")
    module.configure_model()
    optimizer = torch.optim.SGD(module.parameters())
    rank_losses = [module.training_step(data.collate(part), 0) for part in (rows[:5], rows[5:])]
    torch.stack(rank_losses).mean().backward()

    def reduce(tensor, reduce_op):
        assert reduce_op == "sum"
        return tensor  # `training_step` has seen the batches of both ranks

    strategy = SimpleNamespace(reduce=reduce)
    trainer = SimpleNamespace(strategy=strategy, world_size=2, accumulate_grad_batches=1)
    monkeypatch.setattr(Finetune, "trainer", trainer)
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    module.on_before_optimizer_step(optimizer)

    model = load_model(model_folder)
    batch = data.collate(rows)
    loss = token_nll(model, batch["input_ids"], batch["attention_mask"], batch["labels"]).mean()
    loss.backward()
    assert logged == {"train/loss": pytest.approx(loss.item(), rel=1e-5)}
    for name, parameter in model.named_parameters():
        gradient = module.get_parameter(f"model.{name}").grad
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-5, rtol=1e-4)


def test_first_token_scores_on_a_hand_made_case(make_module, make_data):
    """Five positives, two of them called; three negatives, one of them called."""
    data = make_data(n_train=40)
    data.prepare_data()
    data.setup("fit")
    module = make_module()
    module.configure_model()
    module.eval()
    call_token = data.tokenizer(OPEN, add_special_tokens=False).input_ids[0]
    module.opening_tokens = [call_token]  # `on_fit_start` finds it, see below
    module.subset_nll = GroupedMean(len(data.subsets))  # `setup` makes it
    rows = rows_of(data, "train")
    positives = [row for row in rows if row["positive"]]
    negatives = [row for row in rows if not row["positive"]]
    cases = [
        (positives[0], True),
        (negatives[0], False),
        (positives[1], False),
        (negatives[1], True),
        (positives[2], False),
        (positives[3], True),
        (negatives[2], False),
        (positives[4], False),
    ]
    other = data.tokenizer("a", add_special_tokens=False).input_ids[0]
    forced: list[int] = []

    def force(layer, args, logits_NV):
        assert len(forced) == len(logits_NV)
        return torch.nn.functional.one_hot(torch.tensor(forced), logits_NV.shape[1]).float()

    module.causal_model().lm_head.register_forward_hook(force)
    n_tokens = 0
    for part in (cases[:3], cases[3:]):
        forced.clear()
        for row, called in part:
            # Everywhere else the opposite is predicted, so that a neighbour's verdict is wrong.
            tokens = [other if called else call_token] * len(row["labels"])
            tokens[row["target_start"]] = call_token if called else other
            forced += [t for t, label in zip(tokens[1:], row["labels"][1:], strict=True)
                       if label != IGNORE]  # fmt: skip
        n_tokens += len(forced)
        with torch.no_grad():
            module.validation_step(data.collate([row for row, _ in part]), 0)
    scores = {name: value.item() for name, value in module.opening_metrics.compute().items()}
    assert scores == pytest.approx({"val/precision": 2 / 3, "val/recall": 2 / 5, "val/f1": 0.5})
    assert module.val_nll.denominator.item() == n_tokens


def test_first_token_scores_where_the_tag_is_one_token_with_what_follows(
    make_module, make_data, fit, model, model_folder, tmp_path
):
    """Calls begin with another token than the tag alone does, in a model that always opens one."""
    folder = str(shutil.copytree(model_folder, tmp_path / "merging"))
    tokenizer = load_tokenizer(model_folder)
    tokenizer.add_tokens([f"{OPEN}\n"])
    tokenizer.save_pretrained(folder)
    model.resize_token_embeddings(401)
    model.save_pretrained(folder)
    calls = [f"{OPEN}\ncalculator({i}+1)\n{CLOSE}" for i in range(40)]
    examples = [make_example(f"Do {i}", call, "positive") for i, call in enumerate(calls)]
    examples += [make_example(f"Room {i}", f"Room {i}", "negative") for i in range(40)]
    write_jsonl(tmp_path / "mine.jsonl", examples)

    class AlwaysCalls(Finetune):
        def on_fit_start(self):
            super().on_fit_start()
            head = self.causal_model().lm_head
            head.register_forward_hook(
                lambda layer, args, logits: (
                    torch.nn.functional.one_hot(torch.full(logits.shape[:1], 400), 401) + 0 * logits
                )
            )

    module = make_module(AlwaysCalls, model=folder)
    data = make_data(model=folder, jsonl=str(tmp_path / "mine.jsonl"), validation_fraction=0.2)
    trainer = fit(module, data, max_steps=1, val_check_interval=1)
    assert module.opening_tokens == [400]
    assert trainer.callback_metrics["val/recall"].item() == 1


def test_validation_loss_is_the_mean_over_all_supervised_tokens(make_module, make_data, fit):
    data = make_data(n_validation=10)  # batches of 4, 4 and 2
    module = make_module(lr=0.0, lora_dropout=0.5)
    trainer = fit(module, data, max_steps=1, val_check_interval=1)
    rows = rows_of(data, "validation")
    batch = data.collate(rows)
    with torch.no_grad():
        nll_N = token_nll(load_model(module.hparams.model), *list(batch.values())[:3])
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(nll_N.mean().item(), 1e-5)


def test_the_worst_subset_s_loss_is_that_of_its_own_tokens(make_module, make_data, fit):
    data = make_data(n_validation=12)
    module = make_module(lr=0.0)
    trainer = fit(module, data, max_steps=1, val_check_interval=1)
    model, losses = load_model(module.hparams.model), []
    for subset in ("tool", "copy"):
        pairs = zip(data.splits["validation"], data.tokens["validation"], strict=True)
        rows = [data.encode_row(*pair) for pair in pairs if pair[0].subset == subset]
        batch = data.collate(rows)
        with torch.no_grad():
            losses.append(token_nll(model, *list(batch.values())[:3]).mean().item())
    assert abs(losses[0] - losses[1]) > 1e-3
    assert trainer.callback_metrics["val/worst_loss"].item() == pytest.approx(max(losses), 1e-5)


# Checkpoints


@pytest.fixture
def checkpoints(tmp_path):
    """A fresh pair of callbacks: one checkpoint after each step, one after each validation."""
    folder = tmp_path / "checkpoints"

    def make() -> list:
        return [
            RngState(),
            ModelCheckpoint(
                folder, filename="{step}", every_n_train_steps=1, save_top_k=-1,
                save_on_train_epoch_end=False, enable_version_counter=False,
            ),
            ModelCheckpoint(
                folder, filename="validated-{step}", save_top_k=-1,
                save_on_train_epoch_end=False, enable_version_counter=False,
            ),
        ]  # fmt: skip

    make.folder = folder
    return make


def test_checkpoints_hold_trainable_weights_alone(make_module, make_data, fit, checkpoints):
    module = make_module()
    module.configure_model()
    names = module.trainable_keys()
    fit(module, make_data(), max_steps=1, callbacks=checkpoints())
    saved = torch.load(checkpoints.folder / "step=1.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == names
    assert len(saved["optimizer_states"][0]["state"]) == len(names)


# Epochs of 6 batches, validation after every 4th.
@pytest.mark.parametrize(
    ("accumulate", "names"),
    [
        (
            1,
            (
                "step=2",  # in mid-epoch
                "step=4",  # just before a validation in mid-epoch
                "validated-step=4",  # just after it
                "step=5",
                "step=6",  # at the boundary of epochs
                "validated-step=8",
                "step=9",  # in the second epoch
            ),
        ),
        (2, ("step=1", "step=3", "step=4")),
    ],
    ids=["every batch a step", "two batches a step"],
)
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    make_module, make_data, fit, checkpoints, tmp_path, accumulate, names
):
    options = {
        "max_steps": 11 // accumulate,
        "val_check_interval": 4,
        "gradient_clip_val": 0.5,
        "accumulate_grad_batches": accumulate,
    }
    whole = make_module(output=str(tmp_path / "whole"), lora_dropout=0.1)
    fit(whole, make_data(), callbacks=checkpoints(), **options)
    expected = adapter_file(tmp_path / "whole")
    for name in names:
        output = tmp_path / f"resumed from {name}"
        resumed = make_module(output=str(output), lora_dropout=0.1)
        path = checkpoints.folder / f"{name}.ckpt"
        trainer = fit(
            resumed, make_data(), ckpt_path=path, callbacks=[RngState()], seed=9, **options
        )
        assert trainer.global_step == options["max_steps"]
        written = adapter_file(output)
        assert [n for n in expected if not torch.equal(written[n], expected[n])] == [], name


def test_dropout_makes_the_random_state_matter(make_module, make_data, fit, checkpoints, tmp_path):
    """Without `RngState` the resumed run would draw other dropout masks: the test above has teeth."""
    whole = make_module(output=str(tmp_path / "whole"), lora_dropout=0.1)
    fit(whole, make_data(), max_steps=4, callbacks=checkpoints())
    resumed = make_module(output=str(tmp_path / "resumed"), lora_dropout=0.1)
    fit(resumed, make_data(), max_steps=4, ckpt_path=checkpoints.folder / "step=2.ckpt", seed=9)
    first, second = (adapter_file(tmp_path / name) for name in ("whole", "resumed"))
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "other",
    [{"target_modules": ("q_proj",)}, {"lora_r": 2}, {"method": "full"}],
    ids=["modules", "rank", "method"],
)
def test_a_checkpoint_of_another_configuration_is_refused(
    make_module, make_data, fit, checkpoints, other
):
    fit(make_module(), make_data(), max_steps=1, callbacks=checkpoints())
    message = r"trainable weights are not this model's: \d+ differ, for example 'model\."
    with pytest.raises(ValueError, match=message):
        fit(make_module(**other), make_data(), 2, ckpt_path=checkpoints.folder / "step=1.ckpt")


def test_the_best_checkpoint_is_exported_where_one_is_kept(make_module, make_data, fit, tmp_path):
    """The first, with the highest loss called the best."""
    best = ModelCheckpoint(tmp_path, monitor="val/loss", mode="max", save_on_train_epoch_end=False)
    module = make_module()
    fit(module, make_data(), max_steps=3, val_check_interval=1, callbacks=[best])
    assert best.best_model_path.endswith("step=1.ckpt")
    kept = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    written = adapter_file(Path(module.hparams.output))
    for name, value in kept.items():
        own_name = name.removeprefix("model.").replace(".default.", ".")
        assert torch.equal(value, written[own_name]), name


@pytest.mark.parametrize("method", ["lora", "full"])
def test_weights_that_are_gathered_give_the_same_files(
    make_module, make_data, fit, monkeypatch, tmp_path, method
):
    """As under FSDP, where no process has a whole model to write."""
    options = {"method": method, "lr": 1e-3}
    whole = make_module(output=str(tmp_path / "whole"), **options)
    fit(whole, make_data(), max_steps=2)
    monkeypatch.setattr(Finetune, "is_sharded", True)
    sharded = make_module(output=str(tmp_path / "sharded"), **options)
    fit(sharded, make_data(), max_steps=2)
    folders = [Path(module.hparams.output) for module in (whole, sharded)]
    for name in ("adapter/adapter_model.safetensors",) * (method == "lora") + (
        "merged/model.safetensors",
    ):
        assert_bit_equal(*(load_file(folder / name) for folder in folders))
