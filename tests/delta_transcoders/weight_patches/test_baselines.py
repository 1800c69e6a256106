"""Parts of a finetune's change of the weights: identities, budgets, and what is refused."""

import pytest
import torch
from torch import nn

from delta_transcoders.language_models import load_model, supervised_logits, target_batch, tokenize
from delta_transcoders.tasks.calculator.task import Calculator
from delta_transcoders.weight_patches.attribution import attribute_components
from delta_transcoders.weight_patches.baselines import (
    all_components,
    best_neurons,
    biases,
    delta_parameters,
    differences,
    neuron_differences,
    scaled_difference,
    truncated,
)
from delta_transcoders.weight_patches.patch import (
    PatchConfig,
    WeightPatch,
    load_patch,
    patched,
    save_patch,
)

RANK = 3
D_MODEL, D_MLP, N_LAYERS = 32, 64, 3  # of the test model


@pytest.fixture
def finetuned(model_folder):
    """The model with a change of rank 3 at every linear layer of its blocks, as LoRA makes it."""
    model = load_model(model_folder)
    generator = torch.Generator().manual_seed(1)
    for module in model.model.layers.modules():
        if isinstance(module, nn.Linear):
            rows, columns = module.weight.shape
            A = torch.randn(rows, RANK, generator=generator)
            B = torch.randn(RANK, columns, generator=generator)
            module.weight.data += 0.02 * A @ B
    return model


@pytest.fixture
def tokens(tokenizer):
    task = Calculator()
    examples = task.generate(6, 2, 1, seed=0)["train"]
    rows = tokenize(tokenizer, task, examples)
    return rows, {f"{k}_BT": v for k, v in target_batch(rows, tokenizer.pad_token_id).items()}


def logits(model, tokens, patch=None, gates=None):
    with torch.no_grad():
        if patch is None:
            return supervised_logits(model, **tokens)[0]
        with patched(model, patch, gates):
            return supervised_logits(model, **tokens)[0]


def test_all_of_the_change_is_the_finetuned_model(model, finetuned, tokens):
    changes = differences(model, finetuned)
    assert len(changes) == 7 * N_LAYERS
    _, batch = tokens
    before, wanted = logits(model, batch), logits(finetuned, batch)
    assert (before - wanted).abs().max() > 0.1
    by_components = all_components(changes), truncated(changes, 10**9)
    for patch in by_components:
        assert [layer.n_components for _, layer in patch.items()] == [RANK] * 7 * N_LAYERS
    for patch in (scaled_difference(changes, 1.0), *by_components):
        assert (logits(model, batch, patch) - wanted).abs().max() < 1e-5
    for unchanged in (scaled_difference(changes, 0.0), biases(changes)):
        assert torch.equal(logits(model, batch, unchanged), before)
    assert torch.equal(logits(model, batch), before)  # the hooks are gone


def test_half_of_the_change_is_half_of_the_weights(model, finetuned, tokens):
    changes = differences(model, finetuned)
    patch = scaled_difference(changes, 0.5)
    found = logits(model, tokens[1], patch)
    for path, change_ID in changes.items():
        model.get_submodule(path).weight.data += 0.5 * change_ID.T
    assert (found - logits(model, tokens[1])).abs().max() < 1e-5


def test_all_neurons_are_the_finetuned_mlps_with_the_base_s_attention(model, finetuned, tokens):
    changes = differences(model, finetuned)
    whole = neuron_differences(changes)
    scores = {path: torch.ones(layer.n_components) for path, layer in whole.items()}
    every = best_neurons(changes, scores, 3 * D_MODEL * D_MLP * N_LAYERS)
    assert every.n_parameters == 3 * D_MODEL * D_MLP * N_LAYERS
    found = [logits(model, tokens[1], patch) for patch in (whole, every)]
    for ours, theirs in zip(model.model.layers, finetuned.model.layers, strict=True):
        ours.mlp = theirs.mlp
    for logits_NV in found:
        assert (logits_NV - logits(model, tokens[1])).abs().max() < 1e-5


def test_the_neurons_with_the_largest_scores_are_taken(model, finetuned):
    changes = differences(model, finetuned)
    scores = {path: torch.zeros(D_MLP) for path in changes if ".mlp." in path}
    mlp = "model.layers.1.mlp"
    scores[f"{mlp}.gate_proj"][5] = scores[f"{mlp}.up_proj"][9] = 2.0
    scores[f"{mlp}.down_proj"][9] = 1.0  # 3 in all
    patch = best_neurons(changes, scores, 3 * D_MODEL + 1)
    assert patch.n_parameters == 3 * D_MODEL
    layers = dict(patch.items())
    assert set(layers) == {f"{mlp}.{name}" for name in ("gate_proj", "up_proj", "down_proj")}
    for name in ("gate_proj", "up_proj"):
        change_ID = changes[f"{mlp}.{name}"]
        expected = torch.zeros_like(change_ID)
        expected[:, 9] = change_ID[:, 9]
        layer = layers[f"{mlp}.{name}"]
        assert torch.equal(layer.A @ layer.B, expected)
    layer, change_ID = layers[f"{mlp}.down_proj"], changes[f"{mlp}.down_proj"]
    assert torch.equal((layer.A @ layer.B)[9], change_ID[9])
    assert (layer.A @ layer.B).count_nonzero() == D_MODEL


def test_the_components_that_tell_most_for_their_numbers_are_taken():
    """One direction each, of singular values 3, 2 and 2.9, where the last layer takes twice the numbers."""

    def single(value: float, n_in: int) -> torch.Tensor:
        change_ID = torch.zeros(n_in, 10)
        change_ID[0, 0] = value
        return change_ID

    changes = {"a": single(3.0, 10), "b": single(2.0, 10), "c": single(2.9, 30)}
    for budget, expected in ((20, "a"), (39, "a"), (40, "ac"[:1] + "b"), (80, "abc")):
        patch = truncated(changes, budget)
        assert "".join(sorted(patch.paths)) == expected, budget
        assert patch.n_parameters <= budget
    with pytest.raises(
        ValueError, match="19 parameters hold no singular component, the smallest takes 20"
    ):
        truncated(changes, 19)
    (layer,) = [layer for path, layer in truncated(changes, 80).items() if path == "c"]
    torch.testing.assert_close(layer.A @ layer.B, changes["c"])


def test_no_patch_has_more_numbers_than_the_delta(model, finetuned):
    changes = differences(model, finetuned)
    for n_features in (1, 4, 16):
        budget = delta_parameters(n_features, D_MODEL)
        assert budget == n_features * 65
        patch = truncated(changes, budget)
        own = sum(p.numel() for p in patch.parameters())
        assert own == patch.n_parameters <= budget < own + 96  # the largest component's


def test_attributions_add_up_to_what_the_patch_does(model, finetuned, tokens, tokenizer):
    rows, batch = tokens
    patch = all_components(differences(model, finetuned))
    found = attribute_components(model, patch, rows, tokenizer.pad_token_id, 32, rows_per_pass=4)

    def target_logprobs(patch=None):
        logprobs_NV = logits(model, batch, patch).log_softmax(-1)
        labels_N = torch.tensor([token for row in rows for token in row.target_ids])
        nll_N = logprobs_NV.gather(1, labels_N[:, None])[:, 0].double()
        return torch.stack([p.sum() for p in nll_N.split([len(r.target_ids) for r in rows])])

    change_E = target_logprobs(patch) - target_logprobs()
    total_E = sum(values_EC.sum(1) for values_EC in found.values())
    torch.testing.assert_close(total_E, change_E, atol=1e-3, rtol=1e-3)


def test_each_row_has_its_own_gates(model, finetuned, tokens):
    _, batch = tokens
    patch = all_components(differences(model, finetuned))
    n_rows = len(batch["input_ids_BT"])
    first = torch.zeros(n_rows, 1, 1)
    first[0] = 1
    gates = dict.fromkeys(patch.paths, first)
    n_tokens = int((batch["labels_BT"][0] != -100).sum())
    mixed, base = logits(model, batch, patch, gates), logits(model, batch)
    whole = logits(model, batch, patch)
    torch.testing.assert_close(mixed[:n_tokens], whole[:n_tokens])
    assert torch.equal(mixed[n_tokens:], base[n_tokens:])


def test_what_is_no_change_of_linear_layers_is_refused(model, finetuned, model_folder):
    with pytest.raises(ValueError, match="there is no change"):
        differences(model, load_model(model_folder))
    finetuned.model.norm.weight.data += 1
    with pytest.raises(ValueError, match=r"changed 'model\.norm\.weight', which is no weight of a"):
        differences(model, finetuned)
    finetuned.model.norm.weight.data -= 1
    finetuned.model.norm.weight.data.copy_(model.model.norm.weight.data)
    finetuned.model.embed_tokens.weight.data += 1  # tied with the head, which is linear
    with pytest.raises(ValueError, match=r"changed 'model\.embed_tokens\.weight'"):
        differences(model, finetuned)


def test_an_attention_s_change_has_no_neurons(model, finetuned):
    changes = differences(model, finetuned)
    attention = {path: change for path, change in changes.items() if ".self_attn." in path}
    with pytest.raises(ValueError, match="changed no MLP"):
        neuron_differences(attention)


def test_a_patch_is_read_as_it_was_written(model, finetuned, tmp_path):
    changes = differences(model, finetuned)
    patch = truncated(changes, 1000)
    config = PatchConfig(patch.n_parameters, "base", "finetuned", {"tool": 0.5})
    save_patch(tmp_path, patch, config)
    found, read = load_patch(tmp_path)
    assert isinstance(found, WeightPatch) and read == config
    assert found.n_parameters == patch.n_parameters
    ours, theirs = (dict(p.items()) for p in (found, patch))
    assert set(ours) == set(theirs)
    for path, layer in theirs.items():
        for name, parameter in layer.named_parameters():
            assert torch.equal(ours[path].get_parameter(name), parameter)
    with pytest.raises(FileNotFoundError, match="no finished patch in this folder"):
        load_patch(tmp_path / "none")
