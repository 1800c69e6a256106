"""Cached activations as batches of tokens: for base dictionaries, and with residuals for deltas."""

from __future__ import annotations

from collections.abc import Iterator

from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch.utils.data import DataLoader, IterableDataset

from datamodules.batching import ResumableData, ResumableDataLoader
from delta_transcoders.activations.cache import ActivationCache, Batch
from delta_transcoders.fingerprints import tokenizer_fingerprint
from delta_transcoders.language_models import check_model_source, load_tokenizer
from delta_transcoders.processes import rank_and_world_size
from delta_transcoders.weights import StoredWeights


class TokenStream(IterableDataset):
    """Several passes over a cache in one iteration, each in an order of its own.

    Attributes:
        start: batches to leave out at the next iteration, for a resumed run.
    """

    def __init__(
        self, cache: ActivationCache, layers: list[int], targets: list[str], passes: int, hparams
    ) -> None:
        self.cache, self.layers, self.targets, self.passes = cache, layers, targets, passes
        self.hparams = hparams
        self.start = 0
        self.rank, self.world_size = rank_and_world_size()
        self.n_batches = cache.n_batches("train", hparams.batch_tokens, self.world_size)

    def __len__(self) -> int:
        return self.passes * self.n_batches

    def __iter__(self) -> Iterator[Batch]:
        first, start = divmod(self.start, self.n_batches)
        self.start = 0
        for epoch in range(first, self.passes):
            yield from self.cache.stream(
                "train",
                self.layers,
                self.targets,
                batch_tokens=self.hparams.batch_tokens,
                buffer_tokens=self.hparams.buffer_tokens,
                seed=self.hparams.seed,
                epoch=epoch,
                rank=self.rank,
                world_size=self.world_size,
                start_batch=start if epoch == first else 0,
            )


class HeldOutStream(IterableDataset):
    """One pass over the validation tokens in a fixed order, y as the last target of each layer."""

    def __init__(self, data: ActivationData) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Batch]:
        h = self.data.hparams
        rank, world_size = rank_and_world_size()
        yield from self.data.cache.stream(
            "validation",
            self.data.layers,
            [*self.data.targets, "y"],
            batch_tokens=h.batch_tokens,
            buffer_tokens=h.batch_tokens,  # the order does not matter here
            seed=0,
            epoch=0,
            rank=rank,
            world_size=world_size,
        )


class ActivationData(ResumableData):
    """A cache's x and y, in shuffled batches (`Batch`) that hold the same tokens of all layers.

    Args:
        cache: folder that `ActivationWriter` wrote.
        model: folder or hub id of the model whose activations these must be.
        model_dtype: of the weights that were captured from.
        layers: those to train; all of the cache where None.
        batch_tokens: tokens per step and process.
        buffer_tokens: tokens held in memory to shuffle among, per process.
        passes: over the cache; training may stop earlier.
        seed: of the order.
    """

    def __init__(
        self,
        cache: str,
        model: str,
        model_dtype: str = "float32",
        layers: list[NonNegativeInt] | None = None,
        batch_tokens: PositiveInt = 2048,
        buffer_tokens: PositiveInt = 65536,
        passes: PositiveInt = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_model_source(model)
        self.save_hyperparameters()

    @property
    def targets(self) -> list[str]:
        """Names of the cached targets that dictionaries learn."""
        return ["y"]

    def prepare_data(self) -> None:
        """Refuse a cache of another model or tokenizer, before anything is trained on it."""
        h = self.hparams
        self._open()
        self.cache.expect(
            model_fingerprint=StoredWeights(h.model, h.model_dtype).fingerprint(),
            tokenizer_fingerprint=tokenizer_fingerprint(load_tokenizer(h.model)),
        )

    def setup(self, stage: str) -> None:
        self._open()  # anew: one process alone prepares, and it may have added targets

    def _open(self) -> None:
        self.cache = ActivationCache(self.hparams.cache)
        chosen = self.hparams.layers
        self.layers = list(self.cache.meta.layers if chosen is None else chosen)
        if not self.layers:
            raise ValueError("layers is empty, expected at least one (or null for all)")
        self.cache.check_layers(self.layers)

    def first_batch(self) -> Batch:
        """The batch that fixes scales and starting thresholds."""
        return next(iter(TokenStream(self.cache, self.layers, self.targets, 1, self.hparams)))

    def train_dataloader(self) -> ResumableDataLoader:
        stream = TokenStream(
            self.cache, self.layers, self.targets, self.hparams.passes, self.hparams
        )
        return self.training_loader(stream, stream)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(HeldOutStream(self), batch_size=None)
