import math
import subprocess
import sys

import pytest

from delta_transcoders.families.gemma2 import Gemma2
from delta_transcoders.families.gemma3 import Gemma3
from delta_transcoders.families.gpt2 import GPT2
from delta_transcoders.families.llama import Llama
from delta_transcoders.families.sites import (
    GEMMA_SCOPE,
    HOOK_SITES,
    ORIGINAL,
    RESIDUAL,
    HookSite,
    sites_between,
)


def test_sites_stay_what_stored_files_call_them():
    residual, out = "blocks.{layer}.hook_mlp_in", "blocks.{layer}.hook_mlp_out"
    assert {
        "gemma_scope": HookSite("gemma_scope", "blocks.{layer}.ln2.hook_normalized", out, "1"),
        "after_gain": HookSite("after_gain", "blocks.{layer}.ln2.hook_out", out, "1"),
        "original": HookSite("original", residual, out, "1/sqrt(d_model)"),
        "residual": HookSite("residual", residual, out, "1"),
    } == HOOK_SITES
    assert ORIGINAL.names(2) == ("blocks.2.hook_mlp_in", "blocks.2.hook_mlp_out")
    assert RESIDUAL.hook_points(2) == ("blocks.2.hook_resid_mid", "blocks.2.hook_mlp_out")
    assert GEMMA_SCOPE.hook_points(2) == GEMMA_SCOPE.names(2)
    assert (GEMMA_SCOPE.factor(2304), ORIGINAL.factor(2304)) == (1.0, 1 / math.sqrt(2304))


# The MLP's output and what is added to the stream are two tensors in Gemma alone.
@pytest.mark.parametrize(("family", "n"), [(Gemma2, 12), (Gemma3, 12), (Llama, 6), (GPT2, 6)])
def test_candidates_hold_the_known_sites_and_nothing_twice(family, n):
    assert len(set(family.candidates)) == len({site.name for site in family.candidates}) == n
    assert set(HOOK_SITES.values()) <= set(family.candidates)


def test_sites_have_the_hook_points_of_their_inputs_and_outputs():
    (plain, scaled) = sites_between(["in.{layer}"], ["out.{layer}"])
    assert (plain.scale, scaled.scale) == ("1", "1/sqrt(d_model)")
    assert plain.name == "in.{layer} -> out.{layer}, times 1"


@pytest.mark.parametrize("module", ["families", "dictionaries.delta"])
def test_sites_need_no_captured_activations(module):
    code = (
        f"import sys, delta_transcoders.{module}\n"
        "print([name for name in sys.modules if name.startswith('delta_transcoders.activations')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
