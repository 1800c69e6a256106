"""How the files beside this were made, by commit 8a66e85's own code: in a checkout of it,

PYTHONPATH=. python make.py FOLDER
"""

import shutil
import sys
import tempfile
from pathlib import Path

import torch
from delta_transcoders.activations.hook_sites import HOOK_SITES
from delta_transcoders.transcoders.corrections import (
    AffineCorrection,
    CorrectionConfig,
    save_correction,
)
from delta_transcoders.transcoders.delta import DeltaConfig, save_delta
from delta_transcoders.transcoders.gemma_scope import load_base, save_base
from delta_transcoders.transcoders.jumprelu import JumpReLUTranscoder
from safetensors.torch import save_file

from delta_transcoders.activations.layout import CacheMeta
from delta_transcoders.activations.targets import add_residuals
from delta_transcoders.activations.writing import CacheWriter, finish_cache
from delta_transcoders.export import export
from delta_transcoders.fingerprints import model_fingerprint, tokenizer_fingerprint
from delta_transcoders.report.ranking import write_ranking
from delta_transcoders.tiny_gemma import build_tiny_gemma, train_tokenizer

D, WIDTH, D_NEW, N = 8, 16, 3, 6
L0 = 4


def dictionary(n_features: int) -> JumpReLUTranscoder:
    return JumpReLUTranscoder(
        W_enc=torch.randn(D, n_features),
        b_enc=torch.randn(n_features),
        W_dec=torch.randn(n_features, D),
        b_dec=torch.randn(D),
        threshold=torch.rand(n_features),
    )


def write_cache(folder: Path, model: str, tokenizer: str, bases: dict) -> dict:
    meta = CacheMeta(
        layers=tuple(bases),
        d_in=D,
        d_out=D,
        dtype="float16",
        hook_site=HOOK_SITES["gemma_scope"],
        text_policy="prompt_target_eos",
        model_fingerprint=model,
        model_dtype="float32",
        tokenizer_fingerprint=tokenizer,
        subsets=("tool", "copy"),
        n_examples={"train": 2, "validation": 1},
        texts_sha256={"train": "0" * 64, "validation": "1" * 64},
    )
    writer = CacheWriter(folder, meta)
    for split, n_examples in meta.n_examples.items():
        example_ids = torch.arange(n_examples).repeat_interleave(N // 2)
        n = len(example_ids)
        writer.add(
            split,
            {layer: (torch.randn(n, D), torch.randn(n, D)) for layer in bases},
            token_ids=torch.arange(n) + 10,
            positions=torch.arange(1, n + 1) % 7,
            example_ids=example_ids,
            subset_ids=example_ids % 2,
        )
    writer.finish()
    command = "python evaluate.py --config configs/tiny/activations.yaml"
    cache = finish_cache(folder, meta, command=command)
    names = ("x", "y", "residual-p0.5")
    for layer, base in bases.items():
        add_residuals(cache, layer, "p0.5", base, {"hash": "2" * 64})
    return {
        f"cache {name} {layer}": value
        for layer in bases
        for name, value in cache.load("train", layer, names).items()
    }


def main(out: Path) -> None:
    torch.manual_seed(0)
    run = Path(tempfile.mkdtemp()) / "study"
    tokenizer = train_tokenizer(["1 + 2"], vocab_size=262)
    model = build_tiny_gemma(tokenizer, d_model=D, n_layers=2, n_heads=2, n_kv_heads=1, d_mlp=16)
    model.save_pretrained(run / "finetune/merged")
    tokenizer.save_pretrained(run / "finetune/merged")
    fingerprint, bases, values = model_fingerprint(model), {}, {}
    x = values["x"] = torch.randn(N, D)
    for layer in range(2):
        bases[layer] = base = dictionary(WIDTH)
        save_base(run / "base_transcoders", layer, base, L0)
        base_id = load_base(run / "base_transcoders", layer, average_l0=L0)[1]
        delta, site = dictionary(D_NEW), HOOK_SITES["gemma_scope"]
        config = DeltaConfig(
            layer=layer,
            d_in=D,
            d_out=D,
            d_new=D_NEW,
            base_id=f"runs/tiny/{base_id.path.rpartition('study/')[2]}",
            base_hash=base_id.hash,
            model_fingerprint=fingerprint,
            hook_site="gemma_scope",
            hook_in=site.names(layer)[0],
            hook_out=site.names(layer)[1],
            sparsity={"mode": "batch_topk", "l0": 2},
            target="residual",
            percentile=0.5,
            average_l0_base=L0,
            seed=0,
            measured={"l0_delta": 2.0},
        )
        save_delta(run / "delta" / f"layer_{layer}", delta, config)
        correction = AffineCorrection(W=torch.randn(D, D), b=torch.randn(D))
        named = {"hook_site": "gemma_scope", "model_fingerprint": fingerprint, "fvu": 0.5}
        named |= {"kind": "ridge", "n_parameters": 72, "base_hash": base_id.hash}
        save_correction(
            run / "corrections/ridge" / f"layer_{layer}",
            correction,
            CorrectionConfig(layer=layer, d_in=D, **named),
        )
        with torch.no_grad():
            values |= {
                f"base {layer}": base(x),
                f"delta {layer}": delta(x),
                f"ridge {layer}": correction(x),
                f"half of the delta {layer}": base(x) + 0.5 * delta(x),
            }
    values |= write_cache(run / "activations", fingerprint, tokenizer_fingerprint(tokenizer), bases)
    effects = [
        {"layer": 0, "feature": i, "ablation": "drop", "subset": "tool", "d_call_logprob": [i, -i]}
        for i in range(D_NEW)
    ]
    row = {"layer": 0, "feature": 0, "ablation": "drop", "subset": "tool", "rank": 1}
    write_ranking(run / "ranking", [row], effects, "runs/tiny/delta")
    for name in ("gemma_scope", "saelens", "circuit_tracer"):
        export(run, name, run / name, alpha=0.5)
    shutil.rmtree(run / "circuit_tracer/model")  # Hugging Face's own files
    for name in ("base_transcoders", "delta", "corrections", "activations", "ranking"):
        shutil.copytree(run / name, out / name)
    for name in ("gemma_scope", "saelens", "circuit_tracer"):
        shutil.copytree(run / name, out / name, ignore=shutil.ignore_patterns("README.md"))
    values = {name: value.contiguous() for name, value in values.items()}
    save_file(values, out / "values.safetensors")


main(Path(sys.argv[1]))
