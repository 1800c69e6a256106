"""A stage that is stopped and goes on ends where one that was left alone does."""

import json
import os
import shutil
import signal
from types import SimpleNamespace

import pytest
from lightning import Callback

import evaluate
import train
from callbacks.stop_on_signal import StopOnSignal
from delta_transcoders import signals
from delta_transcoders.signals import Stopped

SIZES = {"data.n_train": 64, "data.n_validation": 15, "data.n_evaluation": 5, "data.batch_size": 8}
FINETUNE = SIZES | {"trainer.max_steps": 10, "trainer.val_check_interval": 3}
ENOUGH = {"trainer.logger": "false", "model.lora_dropout": 0.1}


@pytest.fixture(autouse=True)
def our_handlers():
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    yield
    signals.defer(False)
    signals.pending = None
    signals._came = 0.0
    for signum, handler in before.items():
        signal.signal(signum, handler)


class SignalAt(Callback):
    """Sends itself a signal the n-th time that a hook is called."""

    def __init__(self, hook: str, n: int = 1, signum: int = signal.SIGTERM) -> None:
        self.left = n
        self.signum = signum
        setattr(self, hook, self._count)

    def _count(self, trainer, *args, **kwargs) -> None:
        self.left -= 1 if trainer.state.fn != "fit" or not trainer.sanity_checking else 0
        if self.left == 0:
            os.kill(os.getpid(), self.signum)


@pytest.fixture
def stopped(monkeypatch):
    """Runs a stage until it sends itself a signal; returns what it was stopped with."""
    from lightning_modules.cli import StudyCLI

    def run(main, args, sender) -> Stopped:
        with monkeypatch.context() as patched:
            make = StudyCLI.instantiate_trainer

            def with_sender(self, **kwargs):
                trainer = make(self, **kwargs)
                trainer.callbacks.insert(0, sender)
                return trainer

            patched.setattr(StudyCLI, "instantiate_trainer", with_sender)
            signals.install()
            with pytest.raises(Stopped) as raised:
                main(args)
        signals.defer(False)
        signals.pending = None
        signals._came = 0.0
        assert raised.value.signum == sender.signum
        return raised.value

    return run


@pytest.fixture(scope="module")
def uninterrupted(study, arguments, tmp_path_factory, files_in):
    """Files of a finetune that nobody stopped, by the options that matter."""
    results = {}

    def result(options):
        key = str(sorted(options.items()))
        if key not in results:
            folder = tmp_path_factory.mktemp("uninterrupted") / "study"
            shutil.copytree(study / "base_model", folder / "base_model")
            train.main(arguments("tiny/lora.yaml", folder, options | ENOUGH))
            results[key] = weights(files_in(folder))
        return results[key]

    return result


def weights(by_name):
    return {name: data for name, data in by_name.items() if name.endswith(".safetensors")}


@pytest.fixture
def fresh(study, tmp_path):
    shutil.copytree(study / "base_model", tmp_path / "study" / "base_model")
    return tmp_path / "study"


EPOCHS = {"trainer.max_steps": -1, "trainer.max_epochs": 2, "trainer.val_check_interval": 3}


@pytest.mark.parametrize(
    ("hook", "n", "options"),
    [
        *(("on_train_batch_end", n, {}) for n in (1, 2, 3, 8, 10)),
        *(("on_validation_batch_start", n, {}) for n in (1, 2, 4)),
        *(("on_validation_batch_end", n, {}) for n in (1, 2, 6)),
        ("on_validation_epoch_end", 1, {}),
        ("on_validation_end", 2, {}),
        ("on_train_end", 1, {}),
        ("on_fit_end", 1, {}),
        *(
            ("on_train_batch_end", n, {"trainer.accumulate_grad_batches": 2})
            for n in (1, 2, 5, 6, 13)
        ),
        *(("on_train_batch_end", n, EPOCHS) for n in (7, 8, 9, 14)),
        ("on_validation_batch_end", 3, EPOCHS),
        ("on_train_end", 1, EPOCHS),
    ],
)
def test_a_finetune_goes_on_as_if_it_had_not_been_stopped(
    fresh, arguments, stopped, uninterrupted, files_in, hook, n, options
):
    options = FINETUNE | options
    before = files_in(fresh)
    args = arguments("tiny/lora.yaml", fresh, options | ENOUGH)
    stop = stopped(train.main, args, SignalAt(hook, n))
    assert files_in(fresh) == before
    train.main([*args, f"--ckpt_path={stop.checkpoint}"])
    assert weights(files_in(fresh)) == {name: data for name, data in uninterrupted(options).items()}
    assert not os.path.exists(stop.checkpoint)


def test_early_stopping_is_not_forgotten(fresh, arguments, stopped, files_in):
    """A finetune that stopped early and was then killed while it wrote must not train on."""
    options = FINETUNE | ENOUGH | {"model.lr": 1e-9, "trainer.max_steps": 60}
    options |= {"trainer.val_check_interval": 2}
    args = arguments("tiny/lora.yaml", fresh, options)
    args.append(
        "--trainer.callbacks=[{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: "
        "{monitor: val/f1, mode: max, patience: 1}}, "
        "{class_path: lightning.pytorch.callbacks.ModelCheckpoint}]"
    )
    stop = stopped(train.main, args, SignalAt("on_fit_end"))
    cli = train.main([*args, f"--ckpt_path={stop.checkpoint}"])
    assert cli.trainer.global_step < 60


def test_a_second_signal_does_not_wait(fresh, arguments, stopped, files_in):
    class Impatient(SignalAt):
        def _count(self, trainer, *args, **kwargs):
            super()._count(trainer)
            if self.left == 0:
                signals._came = 0.0  # seconds later
                os.kill(os.getpid(), self.signum)

    before = files_in(fresh)
    args = arguments("tiny/lora.yaml", fresh, FINETUNE | ENOUGH)
    stop = stopped(train.main, args, Impatient("on_train_batch_start", 2, signal.SIGINT))
    assert stop.checkpoint is None
    assert files_in(fresh) == before


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_batch_end"])
def test_a_delta_goes_on_as_if_it_had_not_been_stopped(
    dictionaries, arguments, delta_options, stopped, files_in, tmp_path, hook
):
    folder = shutil.copytree(dictionaries, tmp_path / "study")
    args = arguments("tiny/delta.yaml", folder, delta_options | {"trainer.logger": "false"})
    before = files_in(folder)
    stop = stopped(train.main, args, SignalAt(hook, 2, signal.SIGINT))
    assert files_in(folder) == before
    shutil.rmtree(folder / "delta")
    train.main([*args, f"--ckpt_path={stop.checkpoint}"])
    after = files_in(folder)
    of_run = [json.loads(found.pop("delta/done.json")) for found in (before, after)]
    assert of_run[0].pop("run") != of_run[1].pop("run")
    assert of_run[0] == of_run[1]
    assert after == before


@pytest.mark.parametrize(
    ("config", "hook"),
    [
        ("activations", "on_predict_batch_end"),
        ("behaviour", "on_test_batch_end"),
        ("exp1", "on_test_batch_end"),
    ],
)
def test_an_evaluation_ends_at_once_and_leaves_its_output_as_it_was(
    dictionaries, arguments, stopped, files_in, tmp_path, config, hook
):
    folder = shutil.copytree(dictionaries, tmp_path / "study")
    options = {"trainer.logger": "false"}
    if config != "activations":
        options |= {"data.n_per_subset": 3, "data.batch_size": 2}
    if config == "exp1":
        options |= {"model.layers": "[0]"}
    args = arguments(f"tiny/{config}.yaml", folder, options)
    before = files_in(folder)
    stop = stopped(evaluate.main, args, SignalAt(hook, 1))
    assert stop.checkpoint is None
    # A capture goes on after the last shard that it has left beside its output.
    after = {p: b for p, b in files_in(folder).items() if not p.startswith(".activations.partial/")}
    assert after == before
    output = folder / config
    evaluate.main(args)
    assert (output / "done.json").is_file()


def test_a_fit_that_cannot_go_on_from_a_checkpoint_names_none(tmp_path):
    """It was stopped after its last step, while its results were written."""
    strategy = SimpleNamespace(reduce_boolean_decision=lambda asked, all: asked)
    trainer = SimpleNamespace(
        log_dir=tmp_path, checkpoint_callbacks=[object()], fast_dev_run=False, strategy=strategy
    )
    callback, module = StopOnSignal(), SimpleNamespace(resumable=False)
    for hook in (callback.on_fit_start, callback.on_train_start, callback.on_train_end):
        hook(trainer, module)
    stopped = signals.Stopped(signal.SIGTERM)
    callback.on_exception(trainer, module, stopped)
    assert stopped.checkpoint is None
