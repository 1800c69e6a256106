"""Every stage on an emulated accelerator: the CPU's results, and an error wherever devices are mixed.

Not collected by itself: `test_devices.py` runs it in a process of its own, because a device stays registered
and PyTorch counts the devices at the first backward pass.
"""

import itertools
import math
import re
import shutil
from types import SimpleNamespace

import emulated_device
import lightning
import numpy as np
import pytest
import torch
from emulated_device import NAME, host_waits
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import callbacks.rng_state
import evaluate
import lightning_modules.feature_ranking
import lightning_modules.finetune
import lightning_modules.language_model
import lightning_modules.linear_corrections
import train
from datamodules.evaluation_prompts import EvaluationPrompts
from delta_transcoders import files, generation, language_models
from delta_transcoders.activations import capture
from delta_transcoders.activations.capture import boot_bridge
from delta_transcoders.dictionaries.convergence import ConvergenceTracker
from delta_transcoders.dictionaries.corrections import AffineCorrection, Moments
from delta_transcoders.dictionaries.delta import random_directions
from delta_transcoders.dictionaries.sparsity import BatchTopK, JumpReLU, SparsityConfig
from delta_transcoders.dictionaries.stack import DictionaryStack, Variant
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.generation import AnswerReader
from delta_transcoders.interventions import application
from delta_transcoders.interventions.attachment import attached
from delta_transcoders.interventions.engine import InterventionEngine
from delta_transcoders.interventions.intervention import from_spec
from delta_transcoders.interventions.loading import load_delta_set
from delta_transcoders.interventions.sources import MLPSource
from delta_transcoders.metrics.grouped import GroupedMean
from delta_transcoders.metrics.reconstruction import GroupedReconstruction
from delta_transcoders.tasks.calculator.base_text import base_documents
from delta_transcoders.tasks.calculator.examples import read_jsonl
from delta_transcoders.tasks.calculator.rules import PlantedRules
from delta_transcoders.tasks.calculator.task import Calculator
from delta_transcoders.tasks.paragraphs import Paragraphs
from delta_transcoders.tiny_gemma import build_tiny_gemma
from delta_transcoders.weight_patches.patch import WeightPatch
from lightning_modules.dictionary_training import DictionaryTraining
from lightning_modules.spillover import Spillover

emulated_device.register()

ON_DEVICE = {"trainer.accelerator": NAME, "trainer.strategy": NAME}
MIXED = "Expected all tensors to be on the same device"

# The kernels are the CPU's own; what is left are sums in another order.
ATOL = RTOL = 5e-5

STEPS = {"trainer.max_steps": 2, "trainer.val_check_interval": 2, "trainer.log_every_n_steps": 1}
CALLS = {"data.n_train": 32, "data.n_validation": 8, "data.n_evaluation": 3, "data.batch_size": 8}
DICTIONARY = {
    "data.batch_tokens": 256,
    "trainer.max_steps": 4,
    "trainer.val_check_interval": 2,
    "trainer.log_every_n_steps": 2,
}
DELTA = DICTIONARY | {"model.d_new": "[6]", "model.l0": 2, "data.n_check_examples": 8}
PROMPTS = {"data.n_per_subset": 2, "model.max_new_tokens": 4}
END_TO_END = STEPS | {
    "trainer.max_steps": 6,
    "data.batch_size": 8,
    "data.n_train": 24,
    "data.n_validation": 8,
    "model.d_new": 4,
    "model.budgets": "[4, 2]",
    "model.attribution_examples": 6,
    "model.attribution_steps": 2,
}
ON_DICTIONARIES = {
    "model.student": "dictionary",
    "model.base_transcoders": "{study}/base_transcoders",
}
PATCHES = {
    "data.batch_size": 8,
    "data.n_train": 16,
    "data.n_validation": 8,
    "model.n_features": "[8]",
}
DELETIONS = {
    "data.jsonl": "{study}/rules.jsonl",
    "data.n_per_subset": 4,
    "model.max_new_tokens": 4,
    "model.n_deleted": "[2]",
    "model.n_random": 4,
}
CONDITIONS = (
    "[no_delta, full, base_mlp, dictionary_error, random_delta, alpha_0.5, "
    "{condition: ridge, terms: [{source: base}, {source: ridge}]}]"
)
STAGES = {
    "base_model": (
        train,
        "base_model",
        STEPS
        | {"model.d_model": 32, "model.n_layers": 2, "model.d_mlp": 64, "data.vocab_size": 400}
        | {"data.n_documents": 32, "data.n_validation": 8, "data.batch_size": 8},
    ),
    "lora": (train, "lora", STEPS | CALLS),
    "full": (
        train,
        "lora",
        STEPS | CALLS | {"model.method": "full", "model.gradient_checkpointing": "true"},
    ),
    "capture": (evaluate, "activations", {"data.n_train": 8, "data.n_validation": 4}),
    "capture of another site and dtype": (
        evaluate,
        "activations",
        {"data.n_train": 8, "data.n_validation": 4, "model.hook_site": "original"}
        | {"model.dtype": "bfloat16", "trainer.callbacks.dtype": "bfloat16"},
    ),
    "lora on bfloat16": (train, "lora", STEPS | CALLS | {"model.dtype": "bfloat16"}),
    "behaviour": (evaluate, "behaviour", PROMPTS),
    "behaviour in bfloat16": (evaluate, "behaviour", PROMPTS | {"model.dtype": "bfloat16"}),
    "base dictionaries": (
        train,
        "base_transcoder",
        DICTIONARY
        | {"model.width": 64, "model.l0": "[4, 8]"}
        | {"model.output": "{study}/new_base_transcoders"},
    ),
    "delta": (train, "delta", DELTA),
    "delta, jumprelu": (
        train,
        "delta",
        DELTA | {"model.sparsity": "{mode: jumprelu}", "model.decoder_init": "tied"},
    ),
    "delta, l1": (
        train,
        "delta_original",
        DELTA | {"model.lr": 1e-3, "model.calibrate": "true"},
    ),
    "delta of the MLP difference": (
        train,
        "mlp_difference",
        {k: v for k, v in DELTA.items() if k != "data.n_check_examples"},
    ),
    "behaviour while training": (
        train,
        "delta_behaviour",
        DELTA | {f"trainer.callbacks.{k}": 2 for k in ("n_prompts", "max_new_tokens")},
    ),
    "corrections": (train, "corrections", {"data.batch_tokens": 256, "data.n_check_examples": 8}),
    "experiment": (
        evaluate,
        "exp2a",
        PROMPTS
        | {"model.layers": "[0, all]", "model.conditions": CONDITIONS}
        | {
            "model.controls": "{ridge: '{study}/corrections/ridge'}",
            "model.reconstruction": "true",
        },
    ),
    "unit firing": (evaluate, "unit_firing", {"model.n": 2}),
    "ranking": (evaluate, "ranking", {"data.n_per_subset": 2, "model.layers": "[0]"}),
    "removal": (
        evaluate,
        "removal",
        PROMPTS | {"model.delta": "{study}/delta", "model.n_draws": 1},
    ),
    "feature curve": (
        evaluate,
        "feature_curve",
        {"model.deltas": "['{study}/delta']", "model.student": "dictionary", "model.grid": "[2]"}
        | {"model.base_transcoders": "{study}/base_transcoders", "model.n_random": 1}
        | {"model.correct": "{tool: tool_call}", "model.max_new_tokens": 2},
    ),
    "end to end": (train, "delta_end_to_end", END_TO_END),
    "end to end, on dictionaries": (
        train,
        "delta_end_to_end",
        END_TO_END
        | ON_DICTIONARIES
        | {"model.bridging": "true", "model.gradient_checkpointing": "true"}
        | {"data.own_continuations": "true", "data.max_new_tokens": 4},
    ),
    "weight refit": (train, "weight_refit", STEPS | PATCHES),
    "weight baselines": (
        evaluate,
        "weight_baselines",
        PROMPTS | {"model.n_features": "[8]", "model.alphas": "[0.5]"},
    ),
    "deletion of features": (evaluate, "deletion_features", DELETIONS),
    "deletion of components": (
        evaluate,
        "deletion_components",
        DELETIONS | {"model.patch": "{study}/weight_refit/svd_n8"},
    ),
}


@pytest.fixture(scope="module")
def prepared(dictionaries, arguments, tmp_path_factory):
    """The study with corrections and weight patches; read only."""
    study = shutil.copytree(dictionaries, tmp_path_factory.mktemp("prepared") / "study")
    rules = PlantedRules()
    rules.write(study / "rules.jsonl", rules.generate(32, 16, 8, seed=0)["evaluation"])
    for name in ("corrections", "weight refit"):
        entry, config, options = STAGES[name]
        entry.main(arguments(f"tiny/{config}.yaml", study, options))
    shutil.rmtree(study / "logs")
    return study


@pytest.fixture
def run(prepared, arguments, tmp_path, monkeypatch):
    monkeypatch.setenv(files.RUN, "the same")

    def run_stage(name: str, on: dict):
        """A stage in a copy of the study; returns the copy."""
        study = shutil.copytree(prepared, tmp_path / on.get("trainer.accelerator", "cpu"))
        entry, config, options = STAGES[name]
        options = {k: str(v).replace("{study}", str(study)) for k, v in options.items()}
        entry.main(arguments(f"tiny/{config}.yaml", study, options | on))
        return study

    return run_stage


def tensors_in(path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    with np.load(path) as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


def scalars_in(folder) -> dict[str, list[float]]:
    events = EventAccumulator(str(folder)).Reload()
    tags = set(events.Tags()["scalars"]) - {"train/tokens_per_second"}
    return {tag: [e.value for e in events.Scalars(tag)] for tag in tags}


def assert_same_text(one: str, two: str) -> None:
    """Numbers within the tolerance, everything between them to the letter."""
    number = re.compile(r"(-?\b\d+(?:\.\d+)?(?:e[+-]?\d+)?\b)")
    for a, b in zip(number.split(one), number.split(two), strict=True):
        if number.fullmatch(a) and number.fullmatch(b):
            assert math.isclose(float(a), float(b), rel_tol=RTOL, abs_tol=ATOL), (a, b)
        else:
            assert a == b


def assert_same_study(one, two) -> None:
    names = [
        {p.relative_to(study) for p in study.rglob("*") if not p.name.startswith("events.")}
        for study in (one, two)
    ]
    assert names[0] == names[1]
    for a, b in ((one / name, two / name) for name in sorted(names[0])):
        if a.suffix in (".safetensors", ".npz"):
            found, expected = tensors_in(b), tensors_in(a)
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                # The halves of a cache are rounded apart where the floats differ in the last bit.
                step = 2e-3 if value.dtype in (torch.float16, torch.bfloat16) else RTOL
                # NaN stands where a unit reads nothing.
                torch.testing.assert_close(found[key], value, rtol=step, atol=ATOL, equal_nan=True)
        elif a.suffix in (".csv", ".json", ".jsonl"):
            assert_same_text(
                a.read_text().replace(str(one), "STUDY"), b.read_text().replace(str(two), "STUDY")
            )
    for folder in {path.parent for path in (one / "logs").rglob("events.*")}:
        expected, found = scalars_in(folder), scalars_in(two / folder.relative_to(one))
        assert found.keys() == expected.keys()
        for tag, values in expected.items():
            assert found[tag] == pytest.approx(values, rel=RTOL, abs=ATOL, nan_ok=True), tag


ON = torch.arange(6.0).reshape(2, 3)

REFUSED = {
    "an elementwise op": lambda on, off: on + off,
    "one that writes to the CPU": lambda on, off: off.add_(on[0, 0]),
    "a product": lambda on, off: on @ off.T,
    "a list": lambda on, off: torch.cat([on, off]),
    "a list of scalars": lambda on, off: torch.stack([on[0, 0], off[0, 0]]),
    "a condition": lambda on, off: torch.where(off > 0, on, 0),
    "an index along a dimension": lambda on, off: on.index_select(0, torch.tensor([0])),
    "a sum by index": lambda on, off: on.index_add_(0, torch.tensor([0, 1]), on),
    "an index from the device": lambda on, off: off[on[0].long() % 2],
    "values to be put": lambda on, off: on.__setitem__(torch.tensor([1]), off[:1]),
    "a mask of the CPU to fill": lambda on, off: on.masked_fill_(off > 0, 0),
    "a loss": lambda on, off: torch.nn.functional.cross_entropy(on, torch.tensor([0, 1])),
    "a buffer of a module": lambda on, off: torch.nn.LayerNorm(3)(on),
}
ALLOWED = {
    "a scalar of the CPU": lambda on, off: on * off[1, 1],
    "an index of the CPU": lambda on, off: on[torch.tensor([1, 0])],
    "a mask of the CPU": lambda on, off: on[off > 2],
    "a scalar to be put": lambda on, off: on.index_put((torch.tensor([1]),), off[0, 1]),
    "a copy to the device": lambda on, off: on.clone().copy_(off * 2),
    "a slice to be copied": lambda on, off: on.clone()[0].copy_(off[1]),
    "a shape changed in place": lambda on, off: on.clone().unsqueeze_(0).squeeze_(0).t_(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_device_refuses_to_be_mixed(name):
    with pytest.raises(RuntimeError, match=MIXED):
        REFUSED[name](ON.to(NAME), ON.clone())


@pytest.mark.parametrize("name", ALLOWED)
def test_the_device_allows_what_cuda_allows(name):
    result = ALLOWED[name](ON.to(NAME), ON.clone())
    assert result.device.type == NAME
    assert torch.equal(result.cpu(), ALLOWED[name](ON.clone(), ON.clone()))


def test_the_device_draws_numbers_of_its_own():
    with pytest.raises(RuntimeError, match="device type for generator"):
        torch.randn(2, generator=torch.Generator(), device=NAME)
    torch.manual_seed(1)
    on_device, after = torch.randn(3, device=NAME), torch.randn(3)
    torch.manual_seed(1)
    assert torch.equal(torch.randn(3), after)
    assert not torch.equal(on_device.cpu(), after)
    with pytest.raises(TypeError):
        on_device.numpy()


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_gives_what_it_gives_on_the_cpu(run, name):
    assert_same_study(run(name, {}), run(name, ON_DEVICE))


def test_spillover_gives_what_it_gives_on_the_cpu(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv(files.RUN, "the same")
    merged, text = str(prepared / "finetune" / "merged"), tmp_path / "general.txt"
    text.write_text("\n\n".join(f"{a} {b}" for a, b in itertools.islice(base_documents(5), 8)))
    for device in ("cpu", NAME):
        module = Spillover(
            model=merged,
            base_model=str(prepared / "base_model"),
            delta=str(prepared / "delta"),
            base_transcoders=str(prepared / "base_transcoders"),
            output=str(tmp_path / device / "spillover"),
            conditions=["full"],
        )
        trainer = lightning.Trainer(
            accelerator=device,
            strategy=NAME if device == NAME else "auto",
            logger=False,
            enable_progress_bar=False,
        )
        data = EvaluationPrompts(str(text), merged, Paragraphs(), batch_size=4)
        trainer.test(module, data, verbose=False)
    assert_same_study(tmp_path / "cpu", tmp_path / NAME)


def on_cpu(module, name: str, pick=lambda result: result.cpu()):
    """A function whose result is left on the CPU."""

    def plant(monkeypatch):
        function = getattr(module, name)
        planted = lambda *args, **kwargs: pick(function(*args, **kwargs))  # noqa: E731
        monkeypatch.setattr(module, name, planted)

    return plant


def not_moved(cls, method: str = "to"):
    """A module that does not follow to the device."""
    return lambda monkeypatch: monkeypatch.setattr(cls, method, lambda self, *args, **kwargs: self)


def unregistered(cls, buffer: str):
    """A buffer that is a plain attribute, made on the CPU."""

    def plant(monkeypatch):
        register = cls.register_buffer

        def planted(self, name, tensor, *args, **kwargs):
            if name == buffer:
                setattr(self, name, tensor.cpu())
            else:
                register(self, name, tensor, *args, **kwargs)

        monkeypatch.setattr(cls, "register_buffer", planted)

    return plant


def moments_on_cpu(monkeypatch):
    planted = lambda *args: Moments(*args[:-1], torch.device("cpu"))  # noqa: E731
    monkeypatch.setattr(lightning_modules.linear_corrections, "Moments", planted)


def rows_on_cpu(monkeypatch):
    make = application._layer_rows
    planted = lambda *args: make(*args[:3], torch.device("cpu"), *args[4:])  # noqa: E731
    monkeypatch.setattr(application, "_layer_rows", planted)


def unmoved_batch(self, batch):
    return batch.x_LBI.cpu().float(), batch.targets_TBD.cpu().float()


PLANTED = {
    "positions of the model": ("base_model", on_cpu(language_models, "position_ids")),
    "labels of the validation": (
        "lora",
        on_cpu(
            lightning_modules.finetune,
            "supervised_logits",
            lambda pair: (pair[0], pair[1].cpu()),
        ),
    ),
    "loss of full finetuning": ("full", not_moved(GroupedMean, "_apply")),
    "positions of the capture": ("capture", on_cpu(capture, "position_ids")),
    "positions of a generation": ("behaviour", on_cpu(generation, "position_ids")),
    "a batch": (
        "base dictionaries",
        lambda monkeypatch: monkeypatch.setattr(DictionaryTraining, "_floats", unmoved_batch),
    ),
    "a base dictionary": ("delta", not_moved(Transcoder)),
    "running thresholds": ("delta", unregistered(BatchTopK, "smallest_V")),
    "best values": ("delta", unregistered(ConvergenceTracker, "best_fvu_V")),
    "L0 aimed at": ("delta, jumprelu", unregistered(JumpReLU, "target_V")),
    "scales": ("delta, l1", unregistered(DictionaryStack, "target_scale_V")),
    "the base's MLP": ("delta of the MLP difference", not_moved(MLPSource)),
    "a delta in training": (
        "behaviour while training",
        on_cpu(DictionaryStack, "export"),
    ),
    "moments": ("corrections", moments_on_cpu),
    "a correction": ("corrections", unregistered(AffineCorrection, "b")),
    "a control": ("experiment", unregistered(AffineCorrection, "b")),
    "rows of a batch": ("experiment", rows_on_cpu),
    "sums of reconstructions": ("experiment", not_moved(GroupedReconstruction, "_apply")),
    "differences of neurons": ("weight baselines", not_moved(WeightPatch)),
    "captured rows": (
        "ranking",
        on_cpu(
            lightning_modules.feature_ranking,
            "capture",
            lambda captured: captured._replace(rows=captured.rows.cpu()),
        ),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_tensor_on_the_cpu_is_found(run, name, monkeypatch):
    stage, plant = PLANTED[name]
    plant(monkeypatch)
    with pytest.raises(RuntimeError) as raised:
        run(stage, ON_DEVICE)
    # torchmetrics raises an error of its own from it, and so does the cleaning up after it.
    error, messages = raised.value, []
    while error is not None:
        messages.append(str(error))
        error = error.__context__
    assert any(MIXED in message for message in messages), messages


def on_both(make):
    """What `make` returns under the CPU's and under the device's context, the latter moved to the CPU."""
    results = []
    for device in ("cpu", NAME):
        torch.manual_seed(5)
        with torch.device(device):
            tensors = make()
            after = torch.rand(1, device="cpu")  # the CPU's generator went on alike
        results.append([t.cpu() for t in (*tensors, after)])
    return results


@pytest.mark.parametrize("decoder_init", ["zero", "tied", "kaiming"])
def test_first_weights_of_dictionaries_are_the_same_on_every_device(decoder_init):
    def make():
        variant = Variant("layer_0", layer=0, target=0, l0=2)
        size = {"d_in": 8, "d_out": 8, "n_features": 4, "seed": 3}
        stack = DictionaryStack(
            [variant], sparsity=SparsityConfig(), decoder_init=decoder_init, **size
        )
        return stack.W_enc.detach(), stack.W_dec.detach()

    one, two = on_both(make)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert one[0].norm() > 0


def test_first_weights_of_the_tiny_model_are_the_same_on_every_device(tokenizer):
    def make():
        model = build_tiny_gemma(tokenizer, d_model=16, n_layers=1, d_mlp=16, context=16)
        return [p.detach() for p in model.parameters()]

    one, two = on_both(make)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_random_directions_are_the_same_on_every_device():
    def make():
        shapes = {"W_enc": (4, 3), "b_enc": (3,), "W_dec": (3, 4), "b_dec": (4,), "threshold": (3,)}
        delta = Transcoder(**{name: torch.ones(s) for name, s in shapes.items()})
        return [random_directions(delta, seed=2).W_dec]

    one, two = on_both(make)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("mode", ["batch_topk", "jumprelu", "l1"])
def test_a_step_of_dictionaries_never_waits_for_the_device(mode):
    variants = [Variant(f"layer_{i}", layer=i, target=i, l0=2) for i in range(3)]
    with torch.device(NAME):
        stack = DictionaryStack(
            variants,
            d_in=8,
            d_out=8,
            n_features=4,
            sparsity=SparsityConfig(mode=mode),
            seed=0,
            decoder_init="tied",
        )
        x, targets = torch.randn(3, 16, 8), torch.randn(3, 16, 8)
    optimizer = torch.optim.Adam(stack.parameters(), fused=True)
    host_waits.clear()
    stack.training_loss(x, targets).total.backward()
    stack.prepare_gradients(1.0)
    optimizer.step()
    stack.finish_step()
    assert not host_waits


def test_a_step_of_a_language_model_waits_for_its_supervised_tokens_and_the_progress_bar(
    run, monkeypatch
):
    module, seen = lightning_modules.language_model.LanguageModelTraining, []
    step = module.on_before_optimizer_step

    def counted(self, optimizer):
        step(self, optimizer)
        seen.append(host_waits.copy())

    monkeypatch.setattr(module, "on_before_optimizer_step", counted)
    run("base_model", ON_DEVICE | {"trainer.max_steps": 3, "trainer.log_every_n_steps": 50})
    # Logits and labels, and the logits' gradient; Lightning reads the loss for the progress bar.
    assert seen[1] - seen[0] == {"nonzero": 3, "_local_scalar_dense": 1}


def test_random_states_of_the_device_are_restored():
    def callback_on(device: str):
        callback = callbacks.rng_state.RngState()
        strategy = SimpleNamespace(root_device=torch.device(device))
        callback.setup(SimpleNamespace(strategy=strategy), None, "fit")
        return callback

    saved = callback_on(NAME).state_dict()
    expected = torch.rand(3), torch.rand(3, device=NAME).tolist()
    resumed = callback_on(NAME)
    resumed.load_state_dict(saved)
    resumed.on_train_start(None, None)
    assert torch.equal(torch.rand(3), expected[0])
    assert torch.rand(3, device=NAME).tolist() == expected[1]

    elsewhere = callback_on("cpu")
    elsewhere.load_state_dict(saved)
    with pytest.warns(match=f"a run on {NAME}, this one is on cpu"):
        elsewhere.on_train_start(None, None)


def test_engine_and_attachment_give_what_they_give_on_the_cpu(prepared):
    source = str(prepared / "finetune" / "merged")
    tokenizer = language_models.load_tokenizer(source)
    task = Calculator()
    examples = list(read_jsonl(prepared / "finetune" / "data" / "evaluation.jsonl").values())[:3]
    rows = language_models.tokenize(tokenizer, task, examples)
    prompts, reader = (
        [row.prompt_ids for row in rows],
        AnswerReader(tokenizer, task, {tokenizer.eos_token_id}, examples),
    )
    results = []
    for device in ("cpu", NAME):
        model = language_models.load_model(source)
        deltas = load_delta_set(prepared / "delta", str(prepared / "base_transcoders"), model)
        bridge = boot_bridge(model.to(device), tokenizer)
        for by_layer in deltas.sources.values():
            for dictionary in by_layer.values():
                dictionary.to(device)
        engine = InterventionEngine(bridge, tokenizer, deltas.sources)
        conditions = [from_spec(name, [0, 1]) for name in ("raw", "no_delta", "full")]
        scores = engine.teacher_forced(rows, conditions)
        texts = engine.generate(prompts, conditions, 5, reader)
        with attached(bridge, deltas, "full", layers=[1]) as application_:
            logits = bridge(tokenizer(examples[0].prompt, return_tensors="pt").input_ids.to(device))
            texts.append(
                bridge.generate(
                    examples[0].prompt, do_sample=False, max_new_tokens=4, verbose=False
                )
            )
        results.append((scores, texts, logits.cpu(), application_.replaced_LR.tolist()))
    (scores, texts, logits, replaced), (scores_, texts_, logits_, replaced_) = results
    assert texts_ == texts and replaced_ == replaced
    torch.testing.assert_close(logits_, logits, rtol=RTOL, atol=ATOL)
    for ours, theirs in zip(scores_, scores, strict=True):
        assert (ours.nll, ours.kl) == pytest.approx((theirs.nll, theirs.kl), rel=RTOL, abs=ATOL)
        assert ours.active_sums == theirs.active_sums
