"""Load a study's exports with SAELens, alone and attached to the finetuned model, and compare.

.venv-saelens/bin/python interop/check_saelens.py OUT
"""

import sys
from pathlib import Path

import torch
from comparison import Comparison, run_card
from sae_lens import SAE, __version__
from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
from sae_lens.saes.transcoder import JumpReLUTranscoder


def load(comparison: Comparison, case: str, layer: int) -> JumpReLUTranscoder:
    sae = SAE.load_from_disk(comparison.out / "saelens" / case / f"layer_{layer}")
    card = comparison.card("saelens", case, layer)
    assert type(sae) is JumpReLUTranscoder
    hooks = sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_name_out
    assert hooks == (card["hook_in"], card["hook_out"])
    return sae


@torch.inference_mode()
def check_in_the_model(case: str, comparison: Comparison) -> None:
    """Attached to the finetuned model, each with its error, they see what we see and change nothing."""
    expected = comparison.expected(f"{case}, one request")
    folder = str(comparison.out / "circuit_tracer" / case / "model")
    model = SAETransformerBridge.boot_transformers(folder, device="cpu")
    layers = sorted(int(name[2:]) for name in expected if name.startswith("a."))
    saes = {layer: load(comparison, case, layer) for layer in layers}
    for sae in saes.values():
        model.add_sae(sae, use_error_term=True)
    logits, cache = model.run_with_cache(expected["ids"][None])
    comparison.logits(f"saelens, {case}, in the model", logits[0], expected["logits"])
    differ = n_active = 0
    worst = 0.0
    for layer, sae in saes.items():
        found = cache[model.get_sae_hook_name(sae)][0, expected["positions"]]
        ours, certain = expected[f"a.{layer}"], ~expected[f"tie.{layer}"].bool()
        differ += int((((found > 0) != (ours > 0)) & certain).sum())
        n_active += int((ours > 0).sum())
        worst = max(worst, ((found - ours).norm() / ours.norm().clamp(min=1e-12)).item())
    comparison.check(
        f"saelens, {case}, features in the model",
        differ == 0 and worst <= 1e-4,
        f"{n_active} active on {len(expected['positions'])} tokens of {len(layers)} layers, {differ} differ; "
        f"activations by {worst:.1e} of their norm",
    )


@torch.inference_mode()
def main(out: Path) -> int:
    print(f"sae-lens {__version__}, torch {torch.__version__}")
    comparison = Comparison(out)
    for case in comparison.cases("saelens"):
        for layer, x, a, y in comparison.layers(case):
            sae = load(comparison, case, layer)
            comparison.compare(f"saelens, {case}, layer {layer}", sae.encode(x), sae(x), a, y)
    for case in comparison.requests():
        check_in_the_model(case, comparison)
        loaded = run_card(out / "saelens" / case)["sae"]
        is_one = type(loaded) is JumpReLUTranscoder
        comparison.check(f"the card's code, {case}", is_one, str(type(loaded)))
    return comparison.missed


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
