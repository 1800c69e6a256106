"""A finetuned tiny model beside its base, and students of it."""

import pytest
import torch

from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.end_to_end.student import Student
from delta_transcoders.end_to_end.trained import TrainedTranscoder, from_scratch
from delta_transcoders.families.sites import GEMMA_SCOPE
from delta_transcoders.interventions.sources import DictionarySource
from delta_transcoders.language_models import load_model, scored_batch, tokenize
from delta_transcoders.tasks.calculator.task import Calculator

N_LAYERS, D_MODEL = 3, 32


@pytest.fixture
def rows(tokenizer):
    examples = Calculator().generate(12, 4, 2, seed=0)["train"]
    return tokenize(tokenizer, Calculator(), examples)


@pytest.fixture
def batch(rows, tokenizer):
    return scored_batch(rows, tokenizer.pad_token_id)


@pytest.fixture
def finetuned(model_folder):
    """The tiny model with all MLPs moved a little."""
    model = load_model(model_folder)
    generator = torch.Generator().manual_seed(1)
    for layer in model.model.layers:
        weight = layer.mlp.down_proj.weight.data
        weight += 0.3 * weight.std() * torch.randn(weight.shape, generator=generator)
    return model


@pytest.fixture
def make_student(model_folder, finetuned, tokenizer):
    def make(kind: str, *, n_features: int = 4, seed: int = 0, moved: float = 0.0, **options):
        """`moved`: size of the decoder rows, which are zero from scratch."""
        generator = torch.Generator().manual_seed(seed)
        deltas = {}
        for layer in range(N_LAYERS):
            first = from_scratch(D_MODEL, n_features, layer, seed)
            first.W_dec += moved * torch.randn(first.W_dec.shape, generator=generator)
            deltas[layer] = DictionarySource(TrainedTranscoder(first))
        bases = {}
        if kind == "dictionary":
            bases = {
                layer: DictionarySource(
                    Transcoder(
                        W_enc=torch.randn(D_MODEL, 64, generator=generator) / D_MODEL**0.5,
                        b_enc=torch.zeros(64),
                        W_dec=torch.randn(64, D_MODEL, generator=generator) / 4,
                        b_dec=torch.zeros(D_MODEL),
                        threshold=torch.full((64,), 0.2),
                    )
                )
                for layer in range(N_LAYERS)
            }
        base = load_model(model_folder)
        return Student(kind, finetuned, base, tokenizer, deltas, bases, GEMMA_SCOPE, **options)

    return make
