"""A tiny random Gemma 2 with its tokenizer, on disk; nothing here touches the network."""

import itertools
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from delta_transcoders.language_models import load_model, load_tokenizer
from delta_transcoders.tiny_gemma import build_tiny_gemma, train_tokenizer
from delta_transcoders.toolcalls.base_text import base_documents


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> str:
    """A Hugging Face folder: random weights (seed 0), d_model 32, 3 layers, context 128."""
    folder = tmp_path_factory.mktemp("tiny_gemma")
    texts = [f"{a}\n{b}" for a, b in itertools.islice(base_documents(0), 500)]
    tokenizer = train_tokenizer(texts, vocab_size=400)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_tiny_gemma(tokenizer, d_model=32, n_layers=3, d_mlp=64, context=128)
        for parameter in model.parameters():  # the default scale leaves logits almost flat
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tokenizer(model_folder):
    return load_tokenizer(model_folder)


@pytest.fixture
def model(model_folder):
    return load_model(model_folder)
