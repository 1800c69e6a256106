"""What a finetune changed that is to be seen without any delta."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn

from datamodules.evaluation_prompts import PromptRow
from delta_transcoders.activations.capture import boot_bridge, capture
from delta_transcoders.dictionaries.bases import held
from delta_transcoders.dictionaries.transcoder import rows_at_once
from delta_transcoders.end_to_end.losses import CHUNK_ENTRIES
from delta_transcoders.families import family_of
from delta_transcoders.interventions.loading import load_base_set
from delta_transcoders.interventions.sources import Source
from delta_transcoders.language_models import (
    check_model_source,
    check_same_architecture,
    load_model,
    load_tokenizer,
    supervised_hidden,
    target_batch,
)
from delta_transcoders.metrics.visible import LogprobChange, SeenByDictionary
from delta_transcoders.report.formatting import cell_text
from delta_transcoders.report.tables import format_table, write_table
from lightning_modules.outputs import say, stage_output

COLUMNS = ("experiment", "layer", "subset", "n_tokens", "visible_change", "change_norm")
TOKEN_COLUMNS = ("subset", "direction", "rank", "token_id", "token", "mean_change")
N_TOKENS = 20  # up, and as many down


class VisibleChange(LightningModule):
    """What the frozen base dictionaries, and the logits, show of a finetune by themselves.

    The finetuned and the base model read the same examples, prompt and target. Writes to `output`:

    `visible_change.csv`, by layer with a base dictionary T and subset: `visible_change`,
    1 − Σ‖Δy − Δŷ‖² / Σ‖Δy‖² over the tokens that are not spared (`TokenPolicy`), where Δy = y_ft − y_base are
    the outputs of the two models' MLPs and Δŷ = T(x_ft) − T(x_base) of what either reads; nan where nothing
    changed. `change_norm`: mean ‖Δy‖ / mean ‖y_base‖.

    `tokens.csv`, by subset: the 20 vocabulary entries whose log-probability the finetune raised most (`up`)
    and the 20 it lowered most (`down`), their text as Python writes it. `mean_change` is the plain mean of
    log p_ft − log p_base, in nats, over all positions that predict a token of a target (EOS included),
    however likely the entry is there.

    Args:
        model: folder or hub id of the finetuned model.
        base_model: folder or hub id of the un-finetuned model.
        base_transcoders: folder or hub id of the base dictionaries; all of their layers are measured.
        output: folder of the results.
        percentile, base_files: which of them: see `dictionaries.bases.load_base`, there `files`.
        experiment: name in the result table.
        dtype: of both models' weights.

    Raises:
        ValueError: models that are no base and finetune of one another, as with different vocabularies, or
            dictionaries of layers that they do not have.
    """

    def __init__(
        self,
        model: str,
        base_model: str,
        base_transcoders: str,
        output: str,
        percentile: float,
        base_files: str | None = None,
        experiment: str = "visible_change",
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        for source in (model, base_model):
            check_model_source(source)
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        h, data = self.hparams, self.trainer.datamodule
        check_same_architecture(h.base_model, h.model)
        self.tokenizer = load_tokenizer(h.model, h.base_model, data.hparams.model)
        # Their order everywhere below: finetuned, base.
        self.models = nn.ModuleList(load_model(m, h.dtype) for m in (h.model, h.base_model))
        self.family = family_of(self.models[0].config)
        data.check_context(self.family.context, 0)
        self.layers = sorted({entry.layer for entry in held(h.base_transcoders)})
        if self.layers[-1] >= self.family.n_layers:
            raise ValueError(
                f"{h.base_transcoders} holds dictionaries up to layer {self.layers[-1]}, the models have "
                f"{self.family.n_layers} layers, from 0: give the dictionaries of {h.base_model}"
            )
        dictionaries = load_base_set(
            h.base_transcoders, self.layers, h.percentile, self.family, h.base_files
        )
        self.site = dictionaries.site
        # Registered, as the models are, so that Lightning moves them to the device.
        self.sources = nn.ModuleList(dictionaries.sources["base"][layer] for layer in self.layers)
        self.leading = max(self.family.tokens.leading, *(s.leading for s in self.sources))
        self.subsets = data.subsets
        self.n_vocabulary = self.models[0].config.get_text_config().vocab_size
        self.seen = SeenByDictionary(len(self.layers) * len(self.subsets))
        self.logprobs = LogprobChange(len(self.subsets), self.n_vocabulary)

    def on_test_start(self) -> None:
        # After Lightning has put the weights on their device, where a bridge finds them.
        self.bridges = [boot_bridge(model, self.tokenizer) for model in self.models]

    @torch.inference_mode()
    def test_step(self, batch: list[PromptRow], batch_idx: int) -> None:
        tokens = target_batch([row.tokens for row in batch], self.tokenizer.pad_token_id)
        tokens = {name: tensor.to(self.device) for name, tensor in tokens.items()}
        subsets = [self.subsets.index(row.example.subset) for row in batch]
        subset_B = torch.tensor(subsets, device=self.device)
        self._compare_mlps(tokens, subset_B)
        n_B = torch.tensor([len(row.tokens.target_ids) for row in batch], device=self.device)
        self._compare_logprobs(tokens, subset_B.repeat_interleave(n_B))

    def _compare_mlps(self, tokens: dict[str, Tensor], subset_B: Tensor) -> None:
        ids_BT, mask_BT = tokens["input_ids"], tokens["attention_mask"]
        finetuned, base = (
            capture(bridge, ids_BT, mask_BT, self.layers, self.site, self.leading)
            for bridge in self.bridges
        )
        for index, (layer, source) in enumerate(zip(self.layers, self.sources, strict=True)):
            (x_ft, y_ft), (x_base, y_base) = finetuned.activations[layer], base.activations[layer]
            groups_N = index * len(self.subsets) + subset_B[finetuned.rows]
            change_ND = y_ft.double() - y_base.double()
            seen_ND = _written(source, x_ft) - _written(source, x_base)
            self.seen.update(groups_N, change_ND, seen_ND, y_base)

    def _compare_logprobs(self, tokens: dict[str, Tensor], subset_N: Tensor) -> None:
        """Never more than a chunk of positions has its logits in memory."""
        tokens = {f"{name}_BT": tensor for name, tensor in tokens.items()}
        at_once = max(1, CHUNK_ENTRIES // self.n_vocabulary)
        hidden = [supervised_hidden(model, **tokens).split(at_once) for model in self.models]
        for groups_N, *parts in zip(subset_N.split(at_once), *hidden, strict=True):
            ft_NV, base_NV = (
                self.family.logits(model, part_ND).log_softmax(-1)
                for model, part_ND in zip(self.models, parts, strict=True)
            )
            self.logprobs.update(groups_N, ft_NV - base_NV)

    def on_test_epoch_end(self) -> None:
        table, tokens = self._table(), self._tokens()  # on every rank: the sums are gathered
        for row in table:
            for name in ("visible_change", "change_norm"):
                if row[name] == row[name]:
                    tag = f"test/{row['subset']}/layer_{row['layer']}/{name}"
                    self.log(tag, row[name], rank_zero_only=True)
        if self.trainer.is_global_zero:
            with stage_output(self) as folder:
                write_table(folder / "visible_change.csv", COLUMNS, table)
                write_table(folder / "tokens.csv", TOKEN_COLUMNS, tokens)
            texts = [{name: cell_text(value) for name, value in row.items()} for row in table]
            say(format_table(texts, COLUMNS[1:]))
        self.trainer.strategy.barrier()

    def _table(self) -> list[dict[str, Any]]:
        seen = {name: values.reshape(-1).tolist() for name, values in self.seen.compute().items()}
        seen["n_tokens"] = [int(n) for n in seen["n_tokens"]]
        return [
            {"experiment": self.hparams.experiment, "layer": layer, "subset": subset}
            | {name: values[group] for name, values in seen.items()}
            for group, (layer, subset) in enumerate(itertools.product(self.layers, self.subsets))
        ]

    def _tokens(self) -> list[dict[str, Any]]:
        measured = {name: values.cpu() for name, values in self.logprobs.compute().items()}
        # A model may have more rows than there are tokens.
        change_SV = measured["mean_change"][:, : len(self.tokenizer)]
        rows = []
        for subset, n, change_V in zip(
            self.subsets, measured["n_positions"], change_SV, strict=True
        ):
            if n == 0:  # no example with a target
                continue
            if not change_V.isfinite().all():
                raise ValueError(
                    f"a log-probability is not finite (subset {subset}), and so nothing is written: do the "
                    f"weights of {self.hparams.model} or {self.hparams.base_model} hold NaN?"
                )
            for direction, descending in (("up", True), ("down", False)):
                order = change_V.argsort(descending=descending, stable=True)[:N_TOKENS]
                for rank, token_id in enumerate(order.tolist(), start=1):
                    text = self.tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
                    mean = change_V[token_id].item()
                    cells = (subset, direction, rank, token_id, repr(text), mean)
                    rows.append(dict(zip(TOKEN_COLUMNS, cells, strict=True)))
        return rows


def _written(source: Source, x_ND: Tensor) -> Tensor:
    """What a source writes; a wide dictionary's activations never take more memory than a part's."""
    parts = x_ND.split(rows_at_once(source.n_features))
    return torch.cat([source(part_ND, None)[0].double() for part_ND in parts])
