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
from delta_transcoders.fingerprints import model_fingerprint
from delta_transcoders.generation import AnswerReader, greedy_steps
from delta_transcoders.inspector.parts import find_parts
from delta_transcoders.inspector.request import STRONGEST, WHOLE, Request
from delta_transcoders.interventions.engine import InterventionEngine
from delta_transcoders.interventions.intervention import RAW, Intervention, Term, Write, from_spec
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
from delta_transcoders.tasks.task import Example, Message

Event = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A request that the study can answer.

    Attributes:
        example: the prompt in the form of the study's own.
        tokens: of the prompt, with the task's opening as the target.
        names, labels: of each answer.
        interventions: of all answers but the base model's, which comes first.
        with_base: whether it does.
        layers: where MLPs are replaced.
        n_new: longest answer in tokens.
    """

    example: Example
    tokens: TokenizedExample
    names: tuple[str, ...]
    labels: tuple[str, ...]
    interventions: tuple[Intervention, ...]
    with_base: bool
    layers: tuple[int, ...]
    n_new: int


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
        self.examples = list(self.task.read(parts.examples).values())
        self.tokenizer = load_tokenizer(parts.model)
        ends = end_ids(parts.model, self.tokenizer)
        self.reader = AnswerReader(self.tokenizer, self.task, ends, self.examples)
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
        self.base_label = "base dictionary" if on_dictionaries else "base model's MLPs"

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
        return {
            "study": self.parts.study,
            "title": self.task.describe().get("title", ""),
            "deltas": self.deltas.label,
            "labels": {name: self._label(name) for name in WHOLE if name not in self.absent},
            "absent": self.absent,
            "base": self.base_label,
            "features": {str(layer): s.n_features for layer, s in sorted(self.delta.items())},
            "opening": self.task.opening,
            "opening_name": self.task.opening_column.removesuffix("_logprob"),
            "example": self._first_prompt(),
            "pages": str(pages) if pages.is_file() else None,
            "form": self.form(),
            "context": self.context,
            "max_new_tokens": self.parts.max_new_tokens,
        }

    def _first_prompt(self) -> str:
        """What a user would type of the study's first prompt; the task's own where it describes one."""
        first = self.examples[0].prompt
        text = first if isinstance(first, str) else first[-1].content
        return (text if self._is_chat else self.task.describe().get("prompt", text)).strip()

    # The form of the study's own prompts

    def form(self) -> str:
        """What becomes of a prompt that is typed, in words; empty where nothing does."""
        if self._is_chat:
            system = " after the study's system message" if self._system else ""
            return f"It is sent as a user's message{system}, in the tokenizer's chat template."
        return (
            "A line break is put at its end, as the study's own prompts have."
            if self._breaks
            else ""
        )

    @property
    def _is_chat(self) -> bool:
        return not isinstance(self.examples[0].prompt, str)

    @property
    def _system(self) -> tuple[Message, ...]:
        """The first message of all chats, where it is one and the same and not the user's."""
        firsts = {example.prompt[0] for example in self.examples if len(example.prompt) > 1}
        return tuple(firsts) if len(firsts) == 1 and next(iter(firsts)).role == "system" else ()

    @property
    def _breaks(self) -> bool:
        return all(str(example.prompt).endswith("\n") for example in self.examples)

    def _example(self, prompt: str) -> Example:
        if self._is_chat:
            return Example((*self._system, Message("user", prompt)), None, "")
        ends = "" if not self._breaks or prompt.endswith("\n") else "\n"
        return Example(prompt + ends, None, "")

    # What is asked

    def check(self, request: Request) -> Asked:
        """What the request comes to; costs no forward pass.

        Raises:
            ValueError: a layer or feature that is not there, or a prompt that leaves no room for an answer.
        """
        layers = self._layers(request)
        drop: dict[int, list[int]] = {}
        for layer, number in request.drop:
            self._check_feature(layer, number, layers)
            drop.setdefault(layer, []).append(number)
        alphas = request.alphas or ((1.0,) if drop else ())
        names = [name for name in WHOLE if name in request.conditions and name not in self.absent]
        labels = [self._label(name) for name in names]
        whole = [name for name in names if name != "base_model"]
        interventions = [RAW if name == "raw" else from_spec(name, layers) for name in whole]
        without = ", ".join(f"L{layer}F{number}" for layer, number in dict.fromkeys(request.drop))
        for alpha in alphas:
            writes = {
                layer: Write(
                    0.0,
                    (
                        Term("base"),
                        Term("delta", alpha, drop_features=tuple(drop.get(layer, ()))),
                    ),
                )
                for layer in layers
            }
            alpha = alpha + 0.0  # no minus zero
            names.append(f"alpha_{alpha:.2f}")
            sign, times = "−" if alpha < 0 else "+", "" if alpha == 1 else f"{abs(alpha):g} · "
            rest = f" without {without}" if drop else ""
            labels.append(f"{self.base_label} {sign} {times}delta{rest}")
            interventions.append(Intervention(names[-1], writes, float(alpha)))
        if not names:
            raise ValueError("nothing is asked for: give conditions or alphas")
        example = self._example(request.prompt)
        tokens, n_new = self._tokens(example, request.max_new_tokens)
        with_base = "base_model" in names
        self.engine.check(interventions)
        return Asked(
            example,
            tokens,
            tuple(names),
            tuple(labels),
            tuple(interventions),
            with_base,
            layers,
            n_new,
        )

    def _layers(self, request: Request) -> tuple[int, ...]:
        if request.layers is None:
            return tuple(sorted(self.delta))
        layers = tuple(sorted(set(request.layers)))
        if not layers:
            raise ValueError("no layer is chosen: give at least one")
        for layer in layers:
            if layer >= self.n_layers:
                raise ValueError(
                    f"there is no layer {layer}: the model has {self.n_layers}, 0 to {self.n_layers - 1}"
                )
            if layer not in self.delta:
                held = ", ".join(map(str, sorted(self.delta)))
                raise ValueError(f"layer {layer} has no delta; there is one at {held}")
        return layers

    def _check_feature(self, layer: int, number: int, layers: Sequence[int]) -> None:
        name = f"L{layer}F{number}"
        if layer not in self.delta:
            held = ", ".join(map(str, sorted(self.delta)))
            raise ValueError(f"there is no feature {name}: deltas are at layers {held}")
        n_features = self.delta[layer].n_features
        if number >= n_features:
            raise ValueError(
                f"there is no feature {name}: layer {layer} has {n_features}, "
                f"L{layer}F0 to L{layer}F{n_features - 1}"
            )
        if layer not in layers:
            raise ValueError(f"{name} cannot be dropped: layer {layer} is not among those replaced")

    def _label(self, name: str) -> str:
        return {
            "base_model": "base model",
            "raw": "finetuned model",
            "no_delta": f"{self.base_label} alone",
            "full": f"{self.base_label} + delta",
        }[name]

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
        asked = self.check(request)
        return self._events(asked)

    def _events(self, asked: Asked) -> Iterator[Event]:
        named = [{"name": n, "label": w} for n, w in zip(asked.names, asked.labels, strict=True)]
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
        if "raw" in asked.names:
            ids = written[asked.names.index("raw")]
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
            return [None] * len(asked.names)
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
                "text": self._token_text(token),
                "is_answer": i >= n_prompt,
                "activity": activity.get(i),
                "features": features.get(i),
            }
            for i, token in enumerate(ids)
        ]

    def _token_text(self, token: int) -> str:
        text = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        # Part of a character: its bytes, as the tokenizer writes them.
        return self.tokenizer.convert_ids_to_tokens(token) if "\ufffd" in text else text
