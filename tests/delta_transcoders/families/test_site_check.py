"""The site check finds where a planted dictionary belongs, in every family and at every layer."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.random_dictionaries import fitted_dictionary
from delta_transcoders.activations.capture import boot_bridge, capture_hooks
from delta_transcoders.activations.site_check import hook_names, hook_site_check, require_site
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.families import ModelFamily, family_of
from delta_transcoders.language_models import load_model, load_tokenizer
from tests.delta_transcoders.families.conftest import CASES

TWO = [case for case in CASES if case.name in ("gemma3", "llama3")]
two_families = pytest.mark.parametrize("case", TWO, ids=lambda case: case.name, indirect=True)


@pytest.fixture
def model(folder) -> tuple[ModelFamily, dict[str, Tensor]]:
    """The family, and activations at every hook point of its candidates."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    family = family_of(model.config)
    drawn = torch.randint(6, 400, (8, 40), generator=torch.Generator().manual_seed(0))
    bos = tokenizer("").input_ids
    drawn[:, : len(bos)] = torch.tensor(bos)
    bridge = boot_bridge(model, tokenizer)
    names = [n for layer in range(family.n_layers) for n in hook_names(family.candidates, layer)]
    return family, capture_hooks(bridge, drawn, torch.ones_like(drawn), names)


def tables(model, fit: Callable):
    """Of every layer and site, the table of a dictionary that `fit(x, y)` has made there."""
    family, activations = model
    for layer in range(family.n_layers):
        for site in family.candidates:
            x, y = (
                activations[name] * site.factor(family.d_model) for name in site.hook_points(layer)
            )
            yield site, hook_site_check(activations, fit(x, y), layer, family.candidates)


def check_that_it_is_found_and_every_other_refused(model, fit: Callable) -> None:
    for site, table in tables(model, fit):
        assert table[0].site == site
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            require_site(table, site)
        for other in model[0].candidates:
            if other != site:
                with pytest.raises(ValueError, match="is not where the base dictionary"):
                    require_site(table, other)


def test_a_planted_dictionary_s_site_is_found_and_every_other_refused(model, fitted):
    check_that_it_is_found_and_every_other_refused(model, fitted)


@two_families
@pytest.mark.parametrize("skip", [False, True], ids=["", "skip"])
@pytest.mark.parametrize("activation", ["jumprelu", "relu", "topk", "relu_topk"])
def test_so_is_that_of_every_kind_of_dictionary(model, activation, skip):
    check_that_it_is_found_and_every_other_refused(
        model, lambda x, y: fitted_dictionary(x, y, 512, 64, 0, activation, skip)
    )


def refused_at_every_site(model, table) -> bool:
    for site in model[0].candidates:
        with pytest.raises(ValueError, match=r"layer \d fits at no site \(best FVU \d+\.?\d*, at"):
            require_site(table, site)
    return True


@pytest.mark.parametrize("name", ["W_enc", "W_dec"])
def test_a_transposed_matrix_fits_at_no_site(model, fitted, name):
    """Its shape does not tell where it is square."""

    def turned(x: Tensor, y: Tensor) -> Transcoder:
        base = fitted(x, y, n_features=model[0].d_model)
        tensors = base.state_dict()
        return Transcoder(**tensors | {name: tensors[name].T}, activation=base.activation)

    assert all(refused_at_every_site(model, table) for _, table in tables(model, turned))


@two_families
def test_a_transposed_skip_is_refused_or_a_poor_fit(model):
    def turned(x: Tensor, y: Tensor) -> Transcoder:
        tensors = fitted_dictionary(x, y, 160, 32, 0, "relu", skip=True).state_dict()
        return Transcoder(**tensors | {"W_skip": tensors["W_skip"].T}, activation="relu")

    for _, table in tables(model, turned):
        if table[0].fvu < 1:
            with pytest.warns(UserWarning, match="does it belong to this model"):
                require_site(table, table[0].site)
        else:
            assert refused_at_every_site(model, table)


def test_another_model_s_set_fits_at_no_site(model, fitted):
    """Of equal width, but what its directions mean is another matter."""
    order = torch.randperm(model[0].d_model, generator=torch.Generator().manual_seed(1))
    found = tables(model, lambda x, y: fitted(x[:, order], y[:, order]))
    assert all(refused_at_every_site(model, table) for _, table in found)
