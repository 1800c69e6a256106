"""Batches whose rows carry different interventions: teacher-forced scores and greedy text.

    engine = InterventionEngine(boot_bridge(model, tokenizer), tokenizer, bank)
    rows = tokenize(tokenizer, task, examples)
    engine.teacher_forced(rows, interventions)
    reader = AnswerReader(tokenizer, task, end_ids(folder, tokenizer))
    engine.generate([row.prompt_ids for row in rows], interventions, 64, reader)

Shapes: B rows of one forward pass, N supervised tokens (target and EOS), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from delta_transcoders.families import family_of
from delta_transcoders.families.sites import HookSite
from delta_transcoders.families.tokens import special_ids
from delta_transcoders.generation import AnswerReader, greedy_steps, greedy_texts
from delta_transcoders.interventions.application import Application, Gates, hooked
from delta_transcoders.interventions.intervention import RAW, Intervention
from delta_transcoders.interventions.sources import SourceBank, check_sources
from delta_transcoders.language_models import (
    TokenizedExample,
    supervised_logits,
    target_batch,
)

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TeacherForced:
    """Scores of one row, in nats; sums over its tokens, to be divided once by whoever adds up rows."""

    nll: float
    """−Σ log p(label) over the target and EOS."""
    n_tokens: int
    """Tokens of the target, EOS included; 0 where there is none."""
    kl: float
    """Σ KL(reference ‖ this row) over the same tokens; the reference is raw unless another was given."""
    opening_logprob: float | None
    """log p(`TokenizedExample.opening_ids`) after the prompt; None where there are none."""
    n_replaced: int
    """Replaced positions, summed over layers: what the sums below are to be divided by."""
    activation_sums: dict[str, float]
    """Σ|a|·‖decoder row‖ by source, over replaced positions and layers; only sources of this row that have
    features."""
    active_sums: dict[str, float]
    """Number of active features by source, summed likewise (L0 after division)."""


def _begins_with_opening(example: TokenizedExample) -> bool:
    opening = example.opening_ids
    return bool(opening) and example.target_ids[: len(opening)] == opening


class InterventionEngine:
    """Runs a bridged model on rows of which each has its own intervention.

    Rows are run together where they replace the same layers, then by length; a row's result does
    not depend on the rows beside it, apart from float rounding.

    Args:
        bridge: of `activations.capture.boot_bridge`.
        tokenizer: the model's.
        bank: the sources, on the model's device.
        site: where x is read and the output replaced; where the family's public dictionaries do if None.
        rows_per_pass: of one forward pass. Teacher forcing holds [tokens, V] float32 logits of a
            pass and of every distinct example of the call: at 256,000 entries 1 MB a token.
        prompt_only: replace nothing in decoding steps. The original study kept index 0 of every forward
            pass; with a KV cache that is each newly written token, so that only prompts were replaced.
        leading: how many of a row's first tokens are spared; if None as many as the family's policy says, or
            a source that was not trained on more.

    Raises:
        ValueError: a tokenizer that the model's family does not allow, or a source for another site.
    """

    def __init__(
        self,
        bridge: TransformerBridge,
        tokenizer: PreTrainedTokenizerBase,
        bank: SourceBank,
        site: HookSite | None = None,
        rows_per_pass: int = 256,
        prompt_only: bool = False,
        leading: int | None = None,
    ) -> None:
        self.bridge = bridge
        self.model = bridge.original_model
        self.family = family_of(self.model.config)
        self.tokens = self.family.tokens
        if leading is None:
            untrained = [s.leading for by_layer in bank.values() for s in by_layer.values()]
            leading = max([self.tokens.leading, *untrained])
        self.tokens = replace(self.tokens, leading=leading)
        self.tokens.check_tokenizer(tokenizer)
        site = site or self.family.site
        for name, by_layer in bank.items():
            for source in by_layer.values():
                if source.site not in (None, site):
                    raise ValueError(
                        f"source {name!r} is for hook site {source.site.name!r}, not for {site.name!r}"
                    )
        self.tokenizer = tokenizer
        self.special_S = special_ids(tokenizer)
        self.bank = bank
        self.site = site
        self.rows_per_pass = rows_per_pass
        self.prompt_only = prompt_only

    @property
    def n_layers(self) -> int:
        return len(self.bridge.blocks)

    def check(self, interventions: Sequence[Intervention]) -> None:
        """Refuse interventions that cannot be applied; costs no forward pass.

        Raises:
            ValueError: a layer that the model does not have, or a source that the bank does not.
        """
        for intervention in interventions:
            for layer in intervention.layers:
                if not 0 <= layer < self.n_layers:
                    raise ValueError(
                        f"condition {intervention.condition!r}: there is no layer {layer}, the model "
                        f"has {self.n_layers}, from 0"
                    )
        check_sources(self.bank, interventions)

    @contextmanager
    def applied(
        self,
        interventions: Sequence[Intervention],
        count_features: bool = False,
        gates: Gates = {},  # noqa: B006
    ) -> Iterator[Application]:
        """Every forward pass of the model inside has these interventions, one for each row.

        Works with `bridge(...)`, `bridge.hf_generate(...)` and calls of the model itself. Rows that
        are left out of the next pass must be announced with `Application.select`; rows that Hugging
        Face goes on with after their end write padding, which is spared.

        Args:
            count_features: also add up the activations of every source.
            gates: factors of features' activations, through which gradients flow (`attribution`).

        Raises:
            ValueError: see `check`, and `Application.before_pass`.
            RuntimeError: something was to be replaced and nothing was.
        """
        self.check(interventions)
        application = Application(
            interventions,
            self.bank,
            self.site,
            self.tokens,
            self.special_S,
            self.model.device,
            count_features,
            self.prompt_only,
            gates,
        )
        with hooked(self.bridge, application, application.before_pass):
            yield application

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        interventions: Sequence[Intervention],
        max_new_tokens: int,
        reader: AnswerReader,
    ) -> list[str]:
        """Greedy continuations of prompts' token ids, row by row; `reader` says where each ends."""
        self._check_rows(prompts, interventions)
        texts = [""] * len(prompts)
        for rows in self.passes(interventions, list(map(len, prompts))):
            with self.applied([interventions[row] for row in rows]) as application:
                answers = greedy_texts(
                    self.model,
                    [prompts[row] for row in rows],
                    max_new_tokens,
                    reader,
                    rows_kept=application.select,
                )
            for row, text in zip(rows, answers, strict=True):
                texts[row] = text
        return texts

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        interventions: Sequence[Intervention],
        max_new_tokens: int,
        reader: AnswerReader,
    ) -> Iterator[list[list[int]]]:
        """As `generate`, all rows in one pass: the ids written so far, after every token.

        The model has the interventions until the last step, or until the iterator is closed.
        """
        self._check_rows(prompts, interventions)
        with self.applied(interventions) as application:
            yield from greedy_steps(self.model, prompts, max_new_tokens, reader, application.select)

    @torch.inference_mode()
    def logprobs(self, examples: Sequence[TokenizedExample]) -> dict[TokenizedExample, Tensor]:
        """The untouched model's log-probabilities at each distinct example's target tokens, [N, V]."""
        distinct = list(dict.fromkeys(examples))
        found: dict[TokenizedExample, Tensor] = {}
        for rows in self.passes([RAW] * len(distinct), list(map(len, distinct))):
            chosen = [distinct[row] for row in rows]
            logits, _, _ = self.supervised(chosen, [RAW] * len(rows))
            found |= zip(chosen, (part_NV.log_softmax(-1) for part_NV in logits), strict=True)
        return found

    @torch.inference_mode()
    def teacher_forced(
        self,
        examples: Sequence[TokenizedExample],
        interventions: Sequence[Intervention],
        reference: Mapping[TokenizedExample, Tensor] | None = None,
    ) -> list[TeacherForced]:
        """Scores of the targets, row by row, on the token ids that generation sees.

        The untouched model runs once for every distinct example, whether or not a row asks for it.

        Args:
            reference: the log-probabilities [N, V] of each example that KL is measured from, of another
                model's `logprobs`; the untouched model's own where None.
        """
        self._check_rows(examples, interventions)
        distinct = list(dict.fromkeys(examples))
        known = dict(reference or {})
        raw_scores: dict[TokenizedExample, TeacherForced] = {}
        for rows in self.passes([RAW] * len(distinct), list(map(len, distinct))):
            chosen = [distinct[row] for row in rows]
            logits, labels, counts = self.supervised(chosen, [RAW] * len(rows))
            logprobs = [logits_NV.log_softmax(-1) for logits_NV in logits]
            if reference is None:
                known |= zip(chosen, logprobs, strict=True)
            references = [known[example] for example in chosen]
            scored = self._scores(chosen, logprobs, references, labels, counts)
            raw_scores |= zip(chosen, scored, strict=True)

        scores = [raw_scores[example] for example in examples]
        replaced = [row for row, intervention in enumerate(interventions) if intervention.writes]
        for part in self.passes(
            [interventions[row] for row in replaced], [len(examples[row]) for row in replaced]
        ):
            rows = [replaced[index] for index in part]
            chosen = [examples[row] for row in rows]
            logits, labels, counts = self.supervised(chosen, [interventions[row] for row in rows])
            logprobs = (logits_NV.log_softmax(-1) for logits_NV in logits)
            references = [known[example] for example in chosen]
            scored = self._scores(chosen, logprobs, references, labels, counts)
            for row, score in zip(rows, scored, strict=True):
                scores[row] = score
        for row, logprob in self._other_openings(examples, interventions).items():
            scores[row] = replace(scores[row], opening_logprob=logprob)
        return scores

    def _other_openings(
        self, examples: Sequence[TokenizedExample], interventions: Sequence[Intervention]
    ) -> dict[int, float]:
        """Of rows whose target does not begin with their opening, which is read in the target's place."""
        others = [
            i for i, e in enumerate(examples) if e.opening_ids and not _begins_with_opening(e)
        ]
        read = {i: replace(examples[i], target_ids=examples[i].opening_ids) for i in others}
        logprobs = {}
        for part in self.passes([interventions[i] for i in others], [len(read[i]) for i in others]):
            rows = [others[index] for index in part]
            logits, labels, _ = self.supervised(
                [read[row] for row in rows], [interventions[row] for row in rows]
            )
            for row, logits_NV, labels_N in zip(rows, logits, labels, strict=True):
                logprobs_N = logits_NV.log_softmax(-1).gather(1, labels_N[:, None])
                logprobs[row] = logprobs_N.double().sum().item()
        return logprobs

    def _check_rows(self, rows: Sequence[object], interventions: Sequence[Intervention]) -> None:
        if len(rows) != len(interventions):
            raise ValueError(f"{len(rows)} rows, but {len(interventions)} interventions for them")
        self.check(interventions)

    def supervised(
        self,
        examples: Sequence[TokenizedExample],
        interventions: Sequence[Intervention],
        gates: Gates = {},  # noqa: B006
    ) -> tuple[Sequence[Tensor], Sequence[Tensor], Application]:
        """Logits [N, V] and labels [N] of each row from one pass, and what was replaced on the way.

        Args:
            gates: as of `applied`.
        """
        tokens = target_batch(examples, self.tokenizer.pad_token_id)
        tokens = {name: tensor.to(self.model.device) for name, tensor in tokens.items()}
        mask_BT, has_target_B = tokens["attention_mask"], [bool(e.target_ids) for e in examples]
        # EOS is predicted and never read, in generation too: to the model and the hooks it is padding.
        read_BT = torch.nn.functional.pad(mask_BT[:, 1:], (0, 1))
        mask_BT = torch.where(
            torch.tensor(has_target_B, device=mask_BT.device)[:, None], read_BT, mask_BT
        )
        with self.applied(interventions, count_features=not gates, gates=gates) as application:
            logits_NV, labels_N = supervised_logits(
                self.model, tokens["input_ids"], mask_BT, tokens["labels"]
            )
        n_tokens = [len(example.target_ids) for example in examples]
        return logits_NV.split(n_tokens), labels_N.split(n_tokens), application

    def _scores(
        self,
        examples: Sequence[TokenizedExample],
        logprobs: Iterable[Tensor],
        references: Sequence[Tensor],
        labels: Sequence[Tensor],
        counts: Application,
    ) -> list[TeacherForced]:
        """Scores of one pass from each row's log-probabilities [N, V] and its reference's."""
        sums = []
        for example, logprobs_NV, reference_NV, labels_N in zip(
            examples, logprobs, references, labels, strict=True
        ):
            nll = -logprobs_NV.gather(1, labels_N[:, None]).double().sum()
            kl = (reference_NV.exp() * (reference_NV - logprobs_NV)).sum(-1).double().sum()
            opening = nll.new_zeros(())
            if _begins_with_opening(example):
                ids = logprobs_NV.new_tensor(example.opening_ids, dtype=torch.long)
                opening = logprobs_NV[: len(ids)].gather(1, ids[:, None]).double().sum()
            sums.append(torch.stack([nll, kl, opening]))
        n_replaced = counts.replaced_LR.sum(0).tolist()
        activations, active = (
            counts.by_row(counts.activation_sums),
            counts.by_row(counts.active_sums),
        )
        return [
            TeacherForced(
                nll=nll,
                n_tokens=len(example.target_ids),
                kl=kl,
                opening_logprob=opening if _begins_with_opening(example) else None,
                n_replaced=n_replaced[row],
                activation_sums=activations[row],
                active_sums=active[row],
            )
            for row, (example, (nll, kl, opening)) in enumerate(
                zip(examples, torch.stack(sums).tolist(), strict=True)
            )
        ]

    def passes(
        self, interventions: Sequence[Intervention], lengths: Sequence[int]
    ) -> Iterator[list[int]]:
        """Rows of each forward pass: those of the same layers together, then of like length."""
        keys = [(i.layers, length) for i, length in zip(interventions, lengths, strict=True)]
        order = sorted(range(len(keys)), key=lambda row: keys[row])
        for start in range(0, len(order), self.rows_per_pass):
            yield order[start : start + self.rows_per_pass]
