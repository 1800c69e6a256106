"""Load the exports with SAELens and compare: `.venv-saelens/bin/python interop/check_saelens.py OUT`."""

import sys
from pathlib import Path

import torch
from comparison import CASES, Comparison, run_card
from sae_lens import SAE, __version__
from sae_lens.saes.transcoder import JumpReLUTranscoder


@torch.inference_mode()
def main(out: Path) -> int:
    print(f"sae-lens {__version__}, torch {torch.__version__}")
    comparison = Comparison(out)
    for case in CASES:
        for layer, x, a, y in comparison.layers(case):
            sae = SAE.load_from_disk(out / "saelens" / case / f"layer_{layer}")
            assert isinstance(sae, JumpReLUTranscoder)
            hooks = sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_name_out
            assert hooks == (f"blocks.{layer}.ln2.hook_normalized", f"blocks.{layer}.hook_mlp_out")
            encoded = sae.encode(x)
            comparison.compare(
                f"saelens, {case}, layer {layer}", encoded, sae.decode(encoded), a, y
            )
    loaded = run_card(out / "saelens" / "full")["sae"]
    comparison.check("the card's code", isinstance(loaded, JumpReLUTranscoder), str(type(loaded)))
    return comparison.missed


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
