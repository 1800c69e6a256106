"""The MLP's own neurons as a dictionary: all of them are the MLP, k of them are the largest k."""

import pytest
import torch

from delta_transcoders.families.sites import GEMMA_SCOPE
from delta_transcoders.interventions.neurons import NeuronSource, TopNeurons
from delta_transcoders.interventions.sources import mlp_sources
from delta_transcoders.language_models import load_model

N, D, F = 40, 32, 64


@pytest.fixture
def x_ND():
    return torch.randn(N, D, generator=torch.Generator().manual_seed(0))


def written(model_folder, k, x_ND):
    (source,) = TopNeurons(model_folder, k).load([1], GEMMA_SCOPE, D).values()
    with torch.inference_mode():
        out_ND, activations = source(x_ND, None)
    assert activations is None
    return out_ND


def test_all_neurons_are_the_mlp(model_folder, x_ND):
    with torch.inference_mode():
        y_ND, _ = mlp_sources(load_model(model_folder), [1])[1](x_ND, None)
    torch.testing.assert_close(written(model_folder, F, x_ND), y_ND, rtol=1e-5, atol=1e-6)


def test_the_k_largest_write_as_they_do_in_the_whole(model_folder, x_ND):
    """By hand: Gemma's gated neurons, and a post-norm that scales each token as the whole output."""
    layer = load_model(model_folder).model.layers[1]
    pre, post, mlp = layer.pre_feedforward_layernorm, layer.post_feedforward_layernorm, layer.mlp
    with torch.inference_mode():
        read_ND = x_ND * (1 + pre.weight)
        h_NF = mlp.act_fn(mlp.gate_proj(read_ND)) * mlp.up_proj(read_ND)
        size_NF = h_NF.abs() * mlp.down_proj.weight.norm(dim=0)
        u_ND = h_NF @ mlp.down_proj.weight.T
        scale_N1 = (u_ND.square().mean(-1, keepdim=True) + post.eps).rsqrt()
        smallest_N1 = size_NF.sort(-1, descending=True).values[:, 4:5]
        top_ND = (h_NF * (size_NF >= smallest_N1)) @ mlp.down_proj.weight.T
        expected_ND = top_ND * scale_N1 * (1 + post.weight)
    torch.testing.assert_close(written(model_folder, 5, x_ND), expected_ND, rtol=1e-4, atol=1e-5)


def test_more_neurons_leave_less(model_folder, x_ND):
    with torch.inference_mode():
        y_ND, _ = mlp_sources(load_model(model_folder), [1])[1](x_ND, None)
    errors = [(written(model_folder, k, x_ND) - y_ND).square().sum() for k in (1, 8, 32)]
    assert errors[0] > errors[1] > errors[2] > 0


@pytest.mark.parametrize("k", [0, F + 1])
def test_more_or_fewer_neurons_than_there_are(model_folder, k):
    with pytest.raises(ValueError, match=rf"k is {k}, expected 1 to 64, the MLP's neurons"):
        TopNeurons(model_folder, k).load([0], GEMMA_SCOPE, D)


def test_a_layer_that_is_stored_transposed_has_its_norms_by_neuron():
    from transformers.pytorch_utils import Conv1D

    down = Conv1D(3, 5)  # reads five neurons
    source = NeuronSource(down, down, GEMMA_SCOPE, 2)
    torch.testing.assert_close(source.norm_F, down.weight.norm(dim=1))
    h_NF = torch.tensor([[1.0, -2.0, 0.5, 3.0, 0.1]])
    kept = (h_NF.abs() * source.norm_F).topk(2).indices[0].tolist()
    only_NF = torch.zeros(1, 5)
    only_NF[0, kept] = h_NF[0, kept]
    torch.testing.assert_close(source(h_NF)[0], down(only_NF))
