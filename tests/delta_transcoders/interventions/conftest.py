"""Random dictionaries for the random tiny model, and an engine that knows them."""

import pytest
import torch

from delta_transcoders.activations.capture import boot_bridge
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.generation import AnswerReader, greedy_texts
from delta_transcoders.interventions.engine import InterventionEngine
from delta_transcoders.interventions.sources import DictionarySource, mlp_sources
from delta_transcoders.language_models import load_model, pad, position_ids, tokenize
from delta_transcoders.tasks.calculator.examples import make_example
from delta_transcoders.tasks.calculator.task import Calculator

N_LAYERS, D_MODEL, N_BASE, N_NEW = 3, 32, 64, 6


def random_dictionary(n_features: int, seed: int, bias: float) -> Transcoder:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return Transcoder(
        W_enc=normal(D_MODEL, n_features) / D_MODEL**0.5,
        b_enc=0.1 * normal(n_features),
        W_dec=normal(n_features, D_MODEL) / 4,
        b_dec=bias * normal(D_MODEL),
        threshold=torch.full((n_features,), 0.2),
    )


@pytest.fixture
def bank(model_folder):
    """base and delta (no bias), and base_mlp: the MLPs of the model itself."""
    return {
        "base": {
            layer: DictionarySource(random_dictionary(N_BASE, layer, bias=0.1))
            for layer in range(N_LAYERS)
        },
        "delta": {
            layer: DictionarySource(random_dictionary(N_NEW, 10 + layer, bias=0.0))
            for layer in range(N_LAYERS)
        },
        "base_mlp": mlp_sources(load_model(model_folder), range(N_LAYERS)),
    }


@pytest.fixture
def engine(model_folder, tokenizer, bank):
    bridge = boot_bridge(load_model(model_folder), tokenizer)
    return InterventionEngine(bridge, tokenizer, bank)


@pytest.fixture
def examples():
    """Three prompts of different lengths with targets of different lengths."""
    return [
        make_example("What is 12+34?", "<tool_call>calculator(12+34)</tool_call>", "positive"),
        make_example("Anna sold 5 lamps.", "Anna sold 5 lamps.", "negative"),
        make_example(
            "Now 7*8, and be quick, please.", "<tool_call>calculator(7*8)</tool_call>", "tool_ood"
        ),
    ]


@pytest.fixture
def prompts(examples):
    return [example.prompt for example in examples]


@pytest.fixture
def rows(tokenizer, examples):
    return tokenize(tokenizer, Calculator(), examples)


@pytest.fixture
def generate():
    """`generate(engine, prompts, interventions, max_new_tokens)`: the engine's texts."""

    def run(engine, prompts, interventions, max_new_tokens):
        ids = [engine.tokenizer(prompt).input_ids for prompt in prompts]
        reader = AnswerReader(engine.tokenizer, Calculator(), {engine.tokenizer.eos_token_id})
        return engine.generate(ids, interventions, max_new_tokens, reader)

    return run


@pytest.fixture
def greedy(tokenizer):
    """`greedy(model, prompts, max_new_tokens)`: the plain model's texts."""

    def run(model, prompts, max_new_tokens, tokenizer=tokenizer, **options):
        ids = [tokenizer(prompt).input_ids for prompt in prompts]
        reader = AnswerReader(tokenizer, Calculator(), {tokenizer.eos_token_id})
        return greedy_texts(model, ids, max_new_tokens, reader, **options)

    return run


@pytest.fixture
def batch():
    """`batch(tokenizer, prompts)`: left-padded ids and mask [B, T]."""

    def make(tokenizer, prompts):
        rows = [tokenizer(prompt).input_ids for prompt in prompts]
        ids = pad(rows, tokenizer.pad_token_id, "left")
        return ids, pad([[1] * len(row) for row in rows], 0, "left")

    return make


@pytest.fixture
def logits(batch):
    """`logits(engine, prompts, interventions)`: logits [B, T, V] of one pass, and its mask [B, T]."""

    @torch.inference_mode()
    def run(engine, prompts, interventions):
        ids, mask = batch(engine.tokenizer, prompts)
        positions = position_ids(mask)
        with engine.applied(interventions):
            out = engine.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        return out, mask.bool()

    return run
