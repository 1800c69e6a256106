"""A bridged model's neurons are the model's own, in every family, and gradients reach them."""

import pytest
import torch

from delta_transcoders.activations.capture import boot_bridge, capture
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.families import family_of
from delta_transcoders.families.gpt2 import GPT2
from delta_transcoders.features.rules.attribution import attributed, neurons_read
from delta_transcoders.language_models import TokenizedExample, load_model, load_tokenizer


@pytest.fixture
def rows(folder):
    """Two rows [2, 12] of text, after BOS where the tokenizer adds it; no padding."""
    drawn = torch.randint(6, 400, (2, 12), generator=torch.Generator().manual_seed(0))
    bos = load_tokenizer(folder)("").input_ids
    drawn[:, : len(bos)] = torch.tensor(bos)
    return drawn


def test_neurons_are_the_same_under_a_bridge(folder, rows):
    found = []
    for is_bridged in (False, True):
        model = load_model(folder)
        family = family_of(model.config)
        downs = {layer: family.down(model, layer) for layer in (0, 2)}
        with torch.no_grad(), neurons_read(downs) as neurons:
            if is_bridged:
                bridge = boot_bridge(model, load_tokenizer(folder))
                capture(bridge, rows, torch.ones_like(rows), [0, 2], family.site)
            else:
                model(input_ids=rows)
        found.append(neurons)
    for layer in (0, 2):
        torch.testing.assert_close(found[0][layer], found[1][layer], rtol=1e-5, atol=1e-5)


def test_what_was_not_finetuned_has_no_attribution(case, folder, rows):
    model, base, tokenizer = load_model(folder), load_model(folder), load_tokenizer(folder)
    model.requires_grad_(False).get_input_embeddings().requires_grad_(True)  # as the stage does
    family = family_of(model.config)
    downs = {layer: family.down(model, layer) for layer in (0, 2)}
    generator = torch.Generator().manual_seed(0)
    W_FD = torch.randn(4, family.d_model, generator=generator)
    biases = {"b_enc": torch.zeros(4), "b_dec": torch.zeros(family.d_model)}
    delta = Transcoder(W_enc=W_FD.T, W_dec=W_FD, **biases, threshold=torch.zeros(4))
    deltas = {0: delta, 2: delta}
    examples = [TokenizedExample(tuple(ids[:8]), tuple(ids[8:]), ()) for ids in rows.tolist()]
    bridge = boot_bridge(model, tokenizer)
    found = attributed(bridge, downs, base, deltas, family.site, examples)
    for layer in (0, 2):
        of_layer = found[layer]
        n_neurons = 128 if case.family is GPT2 else 64
        assert of_layer.neurons.shape == (2, n_neurons)
        assert of_layer.neurons.abs().max() < 1e-6  # the bridge writes out PyTorch's layer norm
        assert of_layer.fires.any() and of_layer.features.any()
        assert not of_layer.features[of_layer.fires == 0].any()
    # In the last layer a token writes for no other: where nothing is to be written it does nothing.
    assert found[0].features[found[0].fires > 0].all()
