"""A capture holds a batch and a shard, however many texts there are."""

from torch.multiprocessing.reductions import StorageWeakRef

import evaluate
from delta_transcoders.activations.cache import ActivationCache
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
