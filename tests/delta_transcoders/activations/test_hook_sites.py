import warnings

import pytest
import torch

from delta_transcoders.activations.capture import boot_bridge, capture_hooks
from delta_transcoders.activations.hook_sites import (
    ALTERNATIVES,
    HOOK_SITES,
    hook_names,
    hook_site_check,
    require_site,
)
from delta_transcoders.dictionaries.jumprelu import JumpReLUTranscoder


def fitted(x, y):
    """Random features with biases, so that scale matters, and the decoder that suits y best."""
    generator = torch.Generator().manual_seed(0)
    W_enc = torch.randn(x.shape[1], 64, generator=generator)
    b_enc = torch.randn(64, generator=generator) * (x @ W_enc).std()
    a = torch.cat([(x @ W_enc + b_enc).relu(), torch.ones(len(x), 1)], 1)
    solution = torch.linalg.lstsq(a.double(), y.double()).solution.float()
    return JumpReLUTranscoder(
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=solution[:-1],
        b_dec=solution[-1],
        threshold=torch.zeros(64),
    )


@pytest.fixture
def activations(model, tokenizer):
    torch.manual_seed(0)
    ids = torch.randint(6, 400, (8, 40))
    names = hook_names(1)
    return capture_hooks(boot_bridge(model, tokenizer), ids, torch.ones_like(ids), names)


def test_alternatives_hold_the_known_sites_and_nothing_twice():
    assert len(set(ALTERNATIVES)) == len({site.name for site in ALTERNATIVES}) == 12
    assert set(HOOK_SITES.values()) <= set(ALTERNATIVES)


@pytest.mark.parametrize("site", ALTERNATIVES, ids=lambda site: site.name)
def test_the_site_a_dictionary_was_fitted_at_fits_best(activations, site):
    x, y = (activations[name] * site.factor(32) for name in site.names(1))
    table = hook_site_check(activations, fitted(x, y), layer=1)
    assert table[0].site == site
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert require_site(table, site) == table[0]
    other = HOOK_SITES["original" if site == HOOK_SITES["gemma_scope"] else "gemma_scope"]
    with pytest.raises(ValueError, match=f"{other.name}.* layer 1 .*{site.names(1)[0]} -> "):
        require_site(table, other)


def test_a_poor_fit_only_warns(activations):
    site = HOOK_SITES["gemma_scope"]
    table = hook_site_check(activations, fitted(*(activations[n] for n in site.names(1))), 1)
    assert table[0].site == site
    poor = [table[0]._replace(fvu=0.9, cosine=0.3)]
    with pytest.warns(UserWarning, match="layer 1.*FVU 0.90"):
        require_site(poor, site)
