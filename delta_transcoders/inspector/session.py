"""A study that is opened once, and answers one prompt after the other under its interventions.

    session = Session("runs/tiny")
    for event in session.answer(Request("What is 12 * 34?", alphas=(0.5,))):
        ...

Shapes: V vocabulary, N tokens, F features of one layer's delta.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from delta_transcoders.activations.capture import boot_bridge, capture
from delta_transcoders.dictionaries.delta import ON_DICTIONARIES
from delta_transcoders.families import family_of
from delta_transcoders.families.sites import HookSite
from delta_transcoders.features.texts import shown_tokens
from delta_transcoders.fingerprints import model_fingerprint
from delta_transcoders.generation import AnswerReader, greedy_steps
from delta_transcoders.inspector.choices import Answer, Choices
from delta_transcoders.inspector.parts import find_parts
from delta_transcoders.inspector.prompt_form import PromptForm
from delta_transcoders.inspector.request import STRONGEST, Request
from delta_transcoders.interventions.engine import InterventionEngine
from delta_transcoders.interventions.intervention import Intervention
from delta_transcoders.interventions.loading import ModelMLPs, load_delta_set
from delta_transcoders.interventions.sources import mlp_sources
from delta_transcoders.language_models import (
    TokenizedExample,
    end_ids,
    load_model,
    load_tokenizer,
    scored_batch,
    supervised_logits,
    tokenize,
)
from delta_transcoders.own_study.file import make_task
from delta_transcoders.tasks.task import Example

Event = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A request that the study can answer.

    Attributes:
        example: the prompt in the form of the study's own.
        tokens: of the prompt, with the task's opening as the target.
        answers: the base model's first, where it is asked for.
        layers: where MLPs are replaced.
        n_new: longest answer in tokens.
    """

    example: Example
    tokens: TokenizedExample
    answers: tuple[Answer, ...]
    layers: tuple[int, ...]
    n_new: int

    @property
    def interventions(self) -> list[Intervention]:
        return [answer.intervention for answer in self.answers if answer.intervention is not None]

    @property
    def with_base(self) -> bool:
        return self.answers[0].intervention is None


class Session:
    """One study's models, dictionaries and task. Not for two threads at once.

    Attributes:
        parts: what it was opened from.
        absent: conditions that the study does not have, each with why.

    Raises:
        FileNotFoundError, ValueError: the study cannot be opened; see `find_parts` and `load_delta_set`.
    """

    def __init__(self, study: str) -> None:
        self.parts = parts = find_parts(study)
        self.task = make_task(parts.task)
        examples = list(self.task.read(parts.examples).values())
        self.form = PromptForm(examples)
        self.tokenizer = load_tokenizer(parts.model)
        ends = end_ids(parts.model, self.tokenizer)
        self.reader = AnswerReader(self.tokenizer, self.task, ends, examples)
        is_gpu = torch.cuda.is_available() and not parts.on_cpu
        self.device = torch.device("cuda" if is_gpu else "cpu")
        self.absent: dict[str, str] = {}
        self.base_model = self._load_base_model()
        model = load_model(parts.model, parts.dtype).to(self.device)
        family = family_of(model.config)
        self.context, self.n_layers = family.context, family.n_layers
        mlps = self._mlps if self.base_model is not None else None
        self.deltas = load_delta_set(parts.deltas, parts.base_transcoders, model, mlps)
        for by_layer in self.deltas.sources.values():
            for source in by_layer.values():
                source.to(self.device)
        self.delta = self.deltas.sources["delta"]
        bridge = boot_bridge(model, self.tokenizer)
        sources, site = self.deltas.sources, self.deltas.site
        self.engine = InterventionEngine(bridge, self.tokenizer, sources, site)
        on_dictionaries = self.deltas.target in ON_DICTIONARIES
        base_label = "base dictionary" if on_dictionaries else "base model's MLPs"
        n_features = {layer: s.n_features for layer, s in sorted(self.delta.items())}
        self.choices = Choices(n_features, self.n_layers, base_label, self.absent)

    def _load_base_model(self) -> Any:
        source = self.parts.base_model
        if source is None:
            self.absent["base_model"] = f"{self.parts.stage} of this study names no base model"
            return None
        try:
            load_tokenizer(self.parts.model, source)  # refuses another than the model's
            return load_model(source, self.parts.dtype).to(self.device)
        except (FileNotFoundError, ConnectionError) as error:
            if self.parts.base_transcoders is None:
                raise  # the deltas correct its MLPs
            self.absent["base_model"] = str(error)
            return None

    def _mlps(self, site: HookSite) -> ModelMLPs:
        sources = mlp_sources(self.base_model, range(self.n_layers), site)
        return ModelMLPs(model_fingerprint(self.base_model), sources)

    def info(self) -> dict[str, Any]:
        """What somebody who asks needs to know first."""
        pages = Path(self.parts.study, "report", "features.html")
        described, typed = self.task.describe(), self.form.first
        return {
            "study": self.parts.study,
            "title": described.get("title", ""),
            "deltas": self.deltas.label,
            "labels": self.choices.labels,
            "absent": self.absent,
            "features": {str(layer): n for layer, n in self.choices.n_features.items()},
            "opening": self.task.opening,
            "opening_name": self.task.opening_column.removesuffix("_logprob"),
            "example": (typed if self.form.is_chat else described.get("prompt", typed)).strip(),
            "pages": str(pages) if pages.is_file() else None,
            "form": self.form.words,
            "max_new_tokens": self.parts.max_new_tokens,
        }

    # What is asked

    def check(self, request: Request) -> Asked:
        """What the request comes to; costs no forward pass.

        Raises:
            ValueError: a layer or feature that is not there, or a prompt that leaves no room for an answer.
        """
        answers = self.choices.answers(request)
        layers = self.choices.layers(request)
        example = self.form.example(request.prompt)
        tokens, n_new = self._tokens(example, request.max_new_tokens)
        asked = Asked(example, tokens, tuple(answers), layers, n_new)
        self.engine.check(asked.interventions)
        return asked

    def _tokens(self, example: Example, n_new: int | None) -> tuple[TokenizedExample, int]:
        """Tokens, and how many may be written after them."""
        (row,) = tokenize(self.tokenizer, self.task, [example])
        opening: tuple[int, ...] = ()
        if self.task.opening:
            opening = tuple(self.tokenizer(self.task.opening, add_special_tokens=False).input_ids)
        n = len(row.prompt_ids)
        room = self.context - n
        if room < max(1, len(opening)):
            raise ValueError(
                f"the prompt takes {n} tokens, the model's context holds {self.context} with the answer: "
                "shorten it"
            )
        ids_1T = torch.tensor([row.prompt_ids])
        used = self.engine.tokens.used(self.engine.special_S.cpu(), ids_1T, torch.ones_like(ids_1T))
        if not used.any():
            raise ValueError(
                "the prompt holds nothing but special tokens and a text's first token, which no "
                "intervention replaces: write more"
            )
        n_new = min(n_new or self.parts.max_new_tokens, room)
        return TokenizedExample(row.prompt_ids, opening, opening), n_new

    # What is answered

    def answer(self, request: Request) -> Iterator[Event]:
        """`asked`, then `texts` after every token, then `answers`, and `tokens` where raw was asked for.

        Closing the iterator early leaves nothing behind in the model.

        Raises:
            ValueError: at once, see `check`.
        """
        return self._events(self.check(request))

    def _events(self, asked: Asked) -> Iterator[Event]:
        named = [{"name": answer.name, "label": answer.label} for answer in asked.answers]
        yield {"event": "asked", "prompt": asked.example.prompt_record, "answers": named}
        written: Sequence[Sequence[int]] = ()
        for written in self._written(asked):
            yield {"event": "texts", "texts": [self.reader.text(ids) for ids in written]}
        answers = []
        for one, ids, p in zip(named, written, self._openings(asked), strict=True):
            text = self.reader.text(ids)
            is_cut = len(ids) == asked.n_new and not self.reader.is_finished(ids)
            found = {"text": text, "is_cut": is_cut, "opening": p, "tool": self.task.execute(text)}
            answers.append(one | found)
        yield {"event": "answers", "answers": answers}
        names = [answer.name for answer in asked.answers]
        if "raw" in names:
            ids = written[names.index("raw")]
            yield {"event": "tokens", "tokens": self._features(asked, ids)}

    def _written(self, asked: Asked) -> Iterator[list[list[int]]]:
        """What has been written in each answer so far, after every token."""
        prompt, streams = asked.tokens.prompt_ids, []
        if asked.with_base:
            streams.append(greedy_steps(self.base_model, [prompt], asked.n_new, self.reader))
        if asked.interventions:
            prompts = [prompt] * len(asked.interventions)
            streams.append(
                self.engine.stream(prompts, asked.interventions, asked.n_new, self.reader)
            )
        latest: list[list[list[int]]] = [[] for _ in streams]
        try:
            for parts in itertools.zip_longest(*streams):
                latest = [new or old for new, old in zip(parts, latest, strict=True)]
                yield [row for part in latest for row in part]
        finally:
            for stream in streams:
                stream.close()

    @torch.inference_mode()
    def _openings(self, asked: Asked) -> list[float | None]:
        """Probability of the task's opening after the prompt, for each answer."""
        if not asked.tokens.opening_ids:
            return [None] * len(asked.answers)
        logits = []
        if asked.with_base:
            batch = scored_batch([asked.tokens], self.tokenizer.pad_token_id)
            batch = [tensor.to(self.device) for tensor in batch.values()]
            ids, mask, labels = batch
            logits.append(supervised_logits(self.base_model, ids, mask, labels)[0])
        if asked.interventions:
            rows = [asked.tokens] * len(asked.interventions)
            logits += self.engine.supervised(rows, asked.interventions)[0]
        ids_N1 = torch.tensor(asked.tokens.opening_ids, device=self.device)[:, None]
        logprobs = (
            logits_NV.log_softmax(-1).gather(1, ids_N1).double().sum() for logits_NV in logits
        )
        return [math.exp(logprob.item()) for logprob in logprobs]

    @torch.inference_mode()
    def _features(self, asked: Asked, written: Sequence[int]) -> list[dict[str, Any]]:
        """The strongest features of each token, as the finetuned model reads prompt and answer."""
        n_prompt = len(asked.tokens.prompt_ids)
        ids = [*asked.tokens.prompt_ids, *written]
        while len(ids) > n_prompt and ids[-1] in self.reader.end_ids:
            ids.pop()
        ids_1T = torch.tensor([ids], device=self.device)
        site, leading = self.deltas.site, self.engine.tokens.leading
        captured = capture(
            self.engine.bridge, ids_1T, torch.ones_like(ids_1T), asked.layers, site, leading
        )
        positions = captured.positions.tolist()
        features: dict[int, list[list[Any]]] = {position: [] for position in positions}
        activity = dict.fromkeys(positions, 0.0)
        for layer, (x_ND, _) in captured.activations.items():
            source = self.delta[layer]
            a_NF = source.transcoder.encode(x_ND)
            strongest = a_NF.topk(min(STRONGEST, source.n_features))
            sums = source.activity(a_NF).tolist()
            rows = zip(
                positions, sums, strongest.values.tolist(), strongest.indices.tolist(), strict=True
            )
            for position, total, values, numbers in rows:
                activity[position] += total
                found = zip(numbers, values, strict=True)
                features[position] += [[layer, f, a] for f, a in found if a > 0]
        return [
            {
                "text": text,
                "is_answer": i >= n_prompt,
                "activity": activity.get(i),
                "features": features.get(i),
            }
            for i, text in enumerate(shown_tokens(self.tokenizer, ids))
        ]
