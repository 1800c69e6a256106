"""What our own code makes of a model whose MLPs stand beside dictionaries: what circuit-tracer is held to."""

from collections.abc import Mapping

import torch
from torch import Tensor

from delta_transcoders.activations.capture import boot_bridge, capture
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.families.sites import HookSite
from delta_transcoders.interventions.engine import InterventionEngine
from delta_transcoders.interventions.intervention import RAW, Intervention, Term, Write
from delta_transcoders.interventions.sources import DictionarySource
from delta_transcoders.language_models import load_model, load_tokenizer

ROUNDING = 1e-5


def activations(x: Tensor, *dictionaries: Transcoder) -> tuple[Tensor, Tensor]:
    """Activations of all features, and which are at their threshold.

    Whether such a feature is active is for the last bit of a sum to say: they are not compared.
    """
    a = torch.cat([d.encode(x) for d in dictionaries], dim=1)
    above = torch.cat(
        [
            x @ d.W_enc + d.b_enc - (0 if d.threshold is None else d.threshold.clamp(min=0))
            for d in dictionaries
        ],
        dim=1,
    )
    return a, above.abs() < ROUNDING


@torch.inference_mode()
def expected(
    model: str,
    prompt: str,
    site: HookSite,
    bases: Mapping[int, Transcoder],
    deltas: Mapping[int, Transcoder] | None = None,
    leading: int = 1,
) -> dict[str, Tensor]:
    """One prompt in a model of which every layer has a dictionary, or a base and a delta.

    Args:
        model: folder.
        leading: how many tokens keep the model's own output.

    Returns:
        ids [T]; logits [T, V] of the model itself, `replaced` of every MLP's output replaced by the
        dictionaries', `removed` of the error kept and all features (with deltas: the deltas' alone) set
        to zero; without the leading tokens, by layer, activations a.L [n, n_features], features at their
        threshold tie.L, and what the dictionaries leave of the MLP's output, error.L [n, d_model].
    """
    tokenizer = load_tokenizer(model)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    bridge = boot_bridge(load_model(model), tokenizer)
    layers = list(bases)
    captured = capture(bridge, ids, torch.ones_like(ids), layers, site, leading)
    # The same dictionary without any feature: its bias and its skip.
    bank = {name: _sources(bases) for name in ("base", "rest")}
    replaced = (Term("base"),)
    removed = (Term("base", -1.0), Term("rest", keep_features=()))
    if deltas:
        bank["delta"] = _sources(deltas)
        replaced, removed = (*replaced, Term("delta")), (Term("delta", -1.0),)
    writes = {"replaced": Write(0.0, replaced), "removed": Write(1.0, removed)}
    rows = [RAW, *(Intervention(n, dict.fromkeys(layers, w)) for n, w in writes.items())]
    engine = InterventionEngine(bridge, tokenizer, bank, site, leading=leading)
    with engine.applied(rows):
        logits = bridge.original_model(ids.expand(len(rows), -1)).logits
    tensors = dict(zip(("logits", "replaced", "removed"), logits, strict=True), ids=ids[0])
    for layer, (x, y) in captured.activations.items():
        used = [part[layer] for part in (bases, deltas) if part]
        tensors[f"a.{layer}"], tensors[f"tie.{layer}"] = activations(x, *used)
        tensors[f"error.{layer}"] = y - sum(dictionary(x) for dictionary in used)
    return tensors


def _sources(dictionaries: Mapping[int, Transcoder]) -> dict[int, DictionarySource]:
    return {layer: DictionarySource(dictionary) for layer, dictionary in dictionaries.items()}
