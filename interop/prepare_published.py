"""Public sets of every layout as other tools are to read them, and what our own code makes of them.

    python -m interop.prepare_published MODEL OUT

`OUT/published/{case}/` is the set, and `OUT/expected/{case}.safetensors` holds x.L [N, d_model] of random
inputs, a.L [N, n_features] and y.L [N, d_model]. For some, `OUT/models/…` is a random model of the
family, and `OUT/expected/{case} in a model.safetensors` what `replacement.expected` says of it.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers as hf

from delta_transcoders.dictionaries.bases import load_base
from delta_transcoders.dictionaries.files.study_parts import save_model
from delta_transcoders.families.sites import HOOK_SITES
from delta_transcoders.language_models import load_tokenizer
from delta_transcoders.tensor_files import save_tensors
from interop.published_sets import CASES, LAYERS, D
from interop.replacement import activations, expected

PROMPT = "What is 12 * 34? Room 7 is open."
SIZES = {
    "hidden_size": D,
    "intermediate_size": 2 * D,
    "num_hidden_layers": len(LAYERS),
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": D // 2,
    "max_position_embeddings": 128,
}
LLAMA_ROPE = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA_ROPE |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}
GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 100.0, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
# The family that each of these sets is published for, its kind of position embeddings, and a folder: by such
# a name circuit-tracer knows that the first four tokens are to be spared.
MODELS = {
    "Qwen 3": (hf.Qwen3Config, {}, "qwen3"),
    "Llama 3.2 1B": (hf.LlamaConfig, {"rope_parameters": LLAMA_ROPE}, "llama3"),
    "Gemma Scope 2, affine": (
        hf.Gemma3TextConfig,
        {"rope_parameters": GEMMA_ROPE, "layer_types": list(GEMMA_ROPE)},
        "gemma-3-it",
    ),
}


def make_model(
    kind: type[hf.PretrainedConfig], options: dict, tokenizer: str, folder: Path
) -> None:
    """A model folder for transformers 4.57 too; gains and logits are not flat."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    loaded = load_tokenizer(tokenizer)
    ids = {name: getattr(loaded, name) for name in names}
    config = kind(**SIZES, **ids, **options, vocab_size=len(loaded), tie_word_embeddings=True)
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    written = folder.with_name(f"{folder.name} as saved")
    model.save_pretrained(written)
    loaded.save_pretrained(written)
    save_model(folder, written)


def main(tokenizer: str, out: Path) -> None:
    """
    Args:
        tokenizer: folder of a model, whose tokenizer the random ones get.
    """
    for earlier in ("published", "models"):
        shutil.rmtree(out / earlier, ignore_errors=True)
    x = np.random.default_rng(7).normal(size=(512, D)).astype(np.float32)
    for case in CASES:
        folder = out / "published" / case.name
        case.write(folder)
        dictionaries, tensors = {}, {}
        for layer in LAYERS:
            dictionary, found = load_base(folder, layer, d_model=D)
            dictionaries[layer] = dictionary
            a, tie = activations(torch.from_numpy(x), dictionary)
            keep = ~tie.any(dim=1)
            kept = torch.from_numpy(x)[keep]
            tensors |= {f"x.{layer}": kept, f"a.{layer}": a[keep], f"y.{layer}": dictionary(kept)}
        save_tensors(out / "expected" / f"{case.name}.safetensors", tensors)
        if case.name in MODELS:
            kind, options, name = MODELS[case.name]
            model = out / "models" / name
            make_model(kind, options, tokenizer, model)
            site = HOOK_SITES[found.hook_site]
            of_model = expected(str(model), PROMPT, site, dictionaries, leading=found.leading)
            save_tensors(out / "expected" / f"{case.name} in a model.safetensors", of_model)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
