import warnings

import pytest
import torch

from delta_transcoders.activations.capture import boot_bridge, capture_hooks
from delta_transcoders.activations.site_check import (
    SiteFit,
    hook_names,
    hook_site_check,
    require_site,
)
from delta_transcoders.families.gemma2 import Gemma2
from delta_transcoders.families.sites import HOOK_SITES

CANDIDATES = Gemma2.candidates


@pytest.fixture
def activations(model, tokenizer):
    torch.manual_seed(0)
    ids = torch.randint(6, 400, (8, 40))
    names = hook_names(CANDIDATES, 1)
    return capture_hooks(boot_bridge(model, tokenizer), ids, torch.ones_like(ids), names)


@pytest.mark.parametrize("site", CANDIDATES, ids=lambda site: site.name)
def test_the_site_a_dictionary_was_fitted_at_fits_best(activations, fitted, site):
    x, y = (activations[name] * site.factor(32) for name in site.hook_points(1))
    table = hook_site_check(activations, fitted(x, y), 1, CANDIDATES)
    assert table[0].site == site
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert require_site(table, site) == table[0]
    for other in CANDIDATES:
        if other != site:
            with pytest.raises(ValueError, match=f" layer 1 .*{site.names(1)[0]} -> "):
                require_site(table, other)


def test_a_rival_must_be_clearly_better():
    ours, theirs = (SiteFit(HOOK_SITES[name], 2, 0.4, 0.9) for name in ("gemma_scope", "original"))
    with pytest.warns(UserWarning, match="layer 2: .* about as well at another .* 0.4 .* FVU 0.33"):
        assert require_site([theirs._replace(fvu=0.33), ours], ours.site) == ours
    with pytest.raises(ValueError, match=r"layer 2 belongs: FVU 0\.4 .* but FVU 0\.31"):
        require_site([theirs._replace(fvu=0.31), ours], ours.site)


def test_a_poor_fit_only_warns(activations, fitted):
    site = HOOK_SITES["gemma_scope"]
    base = fitted(*(activations[n] for n in site.hook_points(1)))
    table = hook_site_check(activations, base, 1, CANDIDATES)
    assert table[0].site == site
    poor = [table[0]._replace(fvu=0.9, cosine=0.3)]
    with pytest.warns(UserWarning, match=r"layer 1.*FVU 0.90 .* does it belong to this model"):
        require_site(poor, site)
    with pytest.warns(
        UserWarning, match=r"FVU 0.90 .*: an average L0 of 6 is small; choose a larger"
    ):
        require_site(poor, site, average_l0=6)


def test_a_dictionary_that_fits_nowhere_is_refused_as_that():
    ours, theirs = (SiteFit(HOOK_SITES[name], 2, 2.6, 0.1) for name in ("gemma_scope", "original"))
    for fvu in (1.2, 1.0, float("nan")):
        with pytest.raises(
            ValueError, match=rf"layer 2 fits at no site .*{fvu:.3g}, at 'orig.*: another"
        ):
            require_site([theirs._replace(fvu=fvu), ours._replace(fvu=max(fvu, 2.6))], ours.site)
    with pytest.raises(ValueError, match="is not where the base dictionary of layer 2 belongs"):
        require_site([theirs._replace(fvu=0.9), ours], ours.site)
