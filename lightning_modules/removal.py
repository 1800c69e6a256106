"""Whether taking a delta out of the finetuned model takes the behaviour out, and no other delta does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from jsonargparse.typing import PositiveInt

from delta_transcoders.dictionaries.delta import (
    permuted_directions,
    random_directions,
    with_features,
)
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.files import read_json
from delta_transcoders.fingerprints import model_fingerprint
from delta_transcoders.interventions.intervention import Intervention, Term, Write
from delta_transcoders.interventions.loading import DictionarySet, load_delta_alone, relabel
from delta_transcoders.interventions.sources import DictionarySource, RedrawnSource
from delta_transcoders.language_models import check_model_source
from delta_transcoders.metrics.pooling import Record
from delta_transcoders.metrics.removal import removal_rows
from delta_transcoders.report.tables import write_table
from lightning_modules.interventions import Column, InterventionModule

DRAWS: dict[str, Callable[[Transcoder, int], Transcoder]] = {
    "random": random_directions,
    "permuted": permuted_directions,
}


class Removal(InterventionModule):
    """The finetuned model minus a delta, minus random ones and minus the delta's own rows dealt out anew.

    y − delta(x) at all layers with a delta at once. The controls are active where the delta is, and their
    decoder rows have the same norms: `random_directions` and `permuted_directions`, `n_draws` of each.

    Writes to `output`, beside what an experiment writes: `removal.csv`, by subset and measure what the model
    has, what is left without the delta, and the mean, least and most of each kind of control.

    Args:
        model: folder or hub id of the finetuned model.
        delta: folder or hub id of the trained deltas.
        output: folder of the results.
        features: `features.json` of a feature curve, where only some of the features are to be taken out.
        n: how many of them, in all layers; one of the curve's numbers.
        n_draws: of each kind of control.
        generate: also generate text, and give rates; without it there are KL and cross-entropy only.
        experiment, max_new_tokens, rows_per_pass, dtype: see `InterventionEvaluation`.
    """

    def __init__(
        self,
        experiment: str,
        model: str,
        delta: str,
        output: str,
        features: str | None = None,
        n: PositiveInt | None = None,
        n_draws: PositiveInt = 20,
        generate: bool = True,
        max_new_tokens: PositiveInt = 64,
        rows_per_pass: PositiveInt = 256,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        check_model_source(model)
        if (features is None) != (n is None):
            raise ValueError(
                f"features is {features!r} and n {n}: give both, to take some features out, or neither"
            )
        self.save_hyperparameters()

    def load_sets(self) -> list[DictionarySet]:
        h = self.hparams
        found = load_delta_alone(h.delta, model_fingerprint(self.model))
        by_layer = {layer: s.transcoder for layer, s in found.sources["delta"].items()}
        if h.features is not None:
            kept = self._features(found.label)
            by_layer = {layer: with_features(d, kept[str(layer)]) for layer, d in by_layer.items()}
        sources = {"delta": {layer: DictionarySource(d) for layer, d in by_layer.items()}}
        for kind, draw in DRAWS.items():
            for index in range(h.n_draws):
                sources[f"{kind}_{index:02d}"] = {
                    layer: RedrawnSource(d, draw, seed=1000 * (index + 1) + layer)
                    for layer, d in by_layer.items()
                }
        return [replace(found, sources=sources)]

    def _features(self, label: str) -> dict[str, list[int]]:
        """By layer, those that are taken out."""
        h = self.hparams
        by_number = read_json(h.features).get(label)
        if by_number is None or str(h.n) not in by_number:
            what = "no features" if by_number is None else f"features for {', '.join(by_number)}"
            raise ValueError(f"{h.features} holds {what} of the delta {label}, not for n = {h.n}")
        return by_number[str(h.n)]

    def columns_of(self, dictionaries: DictionarySet) -> list[Column]:
        columns = []
        for source in dictionaries.sources:
            name = "removed" if source == "delta" else source
            write = Write(1.0, (Term(source, -1.0),))
            intervention = Intervention(name, dict.fromkeys(dictionaries.layers, write))
            label = intervention.layer_label(self.family.n_layers)
            ours = relabel(intervention, dictionaries.label, set(dictionaries.sources))
            columns.append(Column(label, ours, dictionaries))
        return columns

    def write(self, folder: Path, table: list[dict], records: list[Record]) -> None:
        super().write(folder, table, records)
        by_group, rows = self.by_group(records), []
        for subset in self.subsets:
            of = {
                column.intervention.condition: by_group[c, subset]
                for c, column in enumerate(self.columns)
            }
            controls = {
                kind: [of[f"{kind}_{i:02d}"] for i in range(self.hparams.n_draws)] for kind in DRAWS
            }
            wordings = [record["wording"] for record in of["raw"]]
            found = removal_rows(of["raw"], of["removed"], controls, wordings)
            rows += [{"subset": subset} | row for row in found]
        write_table(folder / "removal.csv", list(rows[0]), rows)
