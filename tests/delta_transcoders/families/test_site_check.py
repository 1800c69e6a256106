"""The site check finds where a planted dictionary belongs, in every family and at every layer."""

import warnings

import pytest
import torch

from delta_transcoders.activations.capture import boot_bridge, capture_hooks
from delta_transcoders.activations.site_check import hook_names, hook_site_check, require_site
from delta_transcoders.families import family_of
from delta_transcoders.language_models import load_model, load_tokenizer


def test_a_planted_dictionary_s_site_is_found_and_every_other_refused(folder, fitted):
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    family = family_of(model.config)
    drawn = torch.randint(6, 400, (8, 40), generator=torch.Generator().manual_seed(0))
    bos = tokenizer("").input_ids
    drawn[:, : len(bos)] = torch.tensor(bos)
    bridge = boot_bridge(model, tokenizer)
    names = [n for layer in range(family.n_layers) for n in hook_names(family.candidates, layer)]
    activations = capture_hooks(bridge, drawn, torch.ones_like(drawn), names)
    for layer in range(family.n_layers):
        for site in family.candidates:
            x, y = (
                activations[name] * site.factor(family.d_model) for name in site.hook_points(layer)
            )
            table = hook_site_check(activations, fitted(x, y), layer, family.candidates)
            assert table[0].site == site
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                require_site(table, site)
            for other in family.candidates:
                if other != site:
                    with pytest.raises(ValueError, match="is not where the base dictionary"):
                        require_site(table, other)
