"""A capture holds a batch and a shard, however many texts there are, and goes on where it was stopped."""

import errno
import signal

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

import evaluate
from delta_transcoders import files
from delta_transcoders.activations import writing
from delta_transcoders.activations.cache import ActivationCache
from delta_transcoders.signals import Stopped
from delta_transcoders.tensor_files import save_tensors
from lightning_modules.activation_capture import ActivationCapture


def test_captured_activations_are_let_go_of(study, arguments, tmp_path, monkeypatch):
    captured: list[StorageWeakRef] = []
    alive: list[int] = []
    predict_step = ActivationCapture.predict_step

    def recorded(*args):
        alive.append(sum(not storage.expired() for storage in captured))
        prediction = predict_step(*args)
        tensors = [tensor for pair in prediction.activations.values() for tensor in pair]
        captured.extend(StorageWeakRef(tensor.untyped_storage()) for tensor in tensors)
        return prediction

    monkeypatch.setattr(ActivationCapture, "predict_step", recorded)
    options = {
        "data.batch_size": 4,
        "trainer.callbacks.output": tmp_path / "cache",
        "trainer.callbacks.shard_rows": 64,
        "trainer.callbacks.dtype": "float32",
    }
    evaluate.main(arguments("tiny/activations.yaml", study, options))
    assert ActivationCache(tmp_path / "cache").n_tokens("train") > 10 * 64
    assert len(alive) == 16 + 4  # batches of 64 training texts and 15 for validation
    assert len(captured) == 4 * len(alive)
    assert max(alive) <= 4 * 2  # of two batches, which a shard of 64 rows may touch


@pytest.fixture
def captured(study, arguments, tmp_path, monkeypatch):
    """Capture into a folder, ended by an error at a batch or at none; the batches that the model computed."""
    predict_step = ActivationCapture.predict_step

    stopped = Stopped(signal.SIGTERM)

    def run(folder: str, stop_at: int | None = None, error=stopped, **options) -> int:
        computed = []

        def counted(module, batch, *args):
            if len(computed) == stop_at:
                raise error
            prediction = predict_step(module, batch, *args)
            computed.extend([batch] * (prediction is not None))
            return prediction

        monkeypatch.setattr(ActivationCapture, "predict_step", counted)
        options = {
            "data.batch_size": 4,
            "trainer.callbacks.output": tmp_path / folder,
            "trainer.callbacks.shard_rows": 64,
            **options,
        }
        if stop_at is None:
            evaluate.main(arguments("tiny/activations.yaml", study, options))
        else:
            with pytest.raises(type(error)):
                evaluate.main(arguments("tiny/activations.yaml", study, options))
        return len(computed)

    return run


def files_of(folder) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.safetensors")}


def test_a_stopped_capture_goes_on_after_its_last_shard(captured, tmp_path):
    assert captured("whole") == 20
    first = captured("again", stop_at=9)
    assert not (tmp_path / "again").exists()
    written = files_of(tmp_path / ".again.partial")
    second = captured("again", stop_at=10)
    third = captured("again")
    assert (
        second == 10 and 20 + 2 <= first + second + third < 20 + 2 + 10
    )  # a shard has few batches
    assert files_of(tmp_path / "again") == files_of(tmp_path / "whole")
    assert written and written.items() <= files_of(tmp_path / "again").items()
    assert {p.name for p in tmp_path.iterdir()} == {"whole", "again"}
    cache = ActivationCache(tmp_path / "again")
    assert cache.n_tokens("train") == ActivationCache(tmp_path / "whole").n_tokens("train")


@pytest.mark.parametrize(
    "options", [{"data.batch_size": 8}, {"model.layers": "[1]"}, {"data.n_train": 40}]
)
def test_a_capture_of_something_else_starts_anew(captured, tmp_path, options):
    captured("again", stop_at=9)
    captured("whole", **options)
    captured("again", **options)
    assert files_of(tmp_path / "again") == files_of(tmp_path / "whole")


def test_a_capture_that_fails_leaves_nothing(captured, study, arguments, tmp_path, monkeypatch):
    def failing(*args):
        raise RuntimeError("planted")

    monkeypatch.setattr(ActivationCapture, "predict_step", failing)
    options = {"trainer.callbacks.output": tmp_path / "cache"}
    with pytest.raises(RuntimeError, match="planted"):
        evaluate.main(arguments("tiny/activations.yaml", study, options))
    assert not list(tmp_path.iterdir())


def test_a_capture_without_room_goes_on_after_its_last_shard(
    captured, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", "delta_transcoders")
    with monkeypatch.context() as patch:
        patch.setattr(writing, "save_tensors", full_after(12))
        with pytest.raises(OSError, match="No space left"):
            captured("again")
    written = files_of(tmp_path / ".again.partial")
    assert len(written) == 12
    assert "tokens are written and stay: once the cause is mended, the same" in caplog.text
    with monkeypatch.context() as patch:  # still
        patch.setattr(files, "free_bytes", lambda path: 0)
        with pytest.raises(OSError, match=r"again will take .* GB, 0\.0 GB are free"):
            captured("again")
    assert files_of(tmp_path / ".again.partial") == written
    assert captured("again") < captured("whole") == 20
    assert files_of(tmp_path / "again") == files_of(tmp_path / "whole")


def test_a_capture_without_memory_on_the_device_goes_on_after_its_last_shard(captured, tmp_path):
    first = captured("again", stop_at=9, error=torch.OutOfMemoryError("CUDA out of memory"))
    assert files_of(tmp_path / ".again.partial")
    assert first + captured("again") < 20 + 9
    captured("whole")
    assert files_of(tmp_path / "again") == files_of(tmp_path / "whole")


def full_after(n: int):
    """`save_tensors` on a disk that has room for n files."""
    left = [save_tensors] * n

    def save(path, tensors):
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        return left.pop()(path, tensors)

    return save


def test_a_trial_run_leaves_an_interrupted_one_alone(captured, tmp_path):
    first = captured("again", stop_at=9)
    written = files_of(tmp_path / ".again.partial")
    captured("again", **{"trainer.fast_dev_run": "true"})
    assert written and files_of(tmp_path / ".again.partial") == written
    assert [p.name for p in tmp_path.iterdir()] == [".again.partial"]
    assert first + captured("again") < 20 + 10
