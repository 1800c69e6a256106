"""What our own code makes of a model whose MLPs stand beside dictionaries: what other tools are held to."""

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
    """One prompt in a model of which some or all layers have a base, a delta, or both.

    Args:
        model: folder.
        leading: how many tokens keep the model's own output; special tokens do too.

    Returns:
        ids [T]; positions [n] that do not keep it; logits [T, V] of the model itself, `replaced` of those
        MLPs' outputs replaced by the dictionaries', `removed` of the error kept and all features (with
        deltas: the deltas' alone) set to zero. On these positions, by layer: what the dictionaries leave of
        the MLP's output, error.L [n, d_model], all of it where there are none; and where there are,
        activations a.L [n, n_features] and features at their threshold tie.L.
    """
    tokenizer = load_tokenizer(model)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    bridge = boot_bridge(load_model(model), tokenizer)
    captured = capture(bridge, ids, torch.ones_like(ids), range(len(bridge.blocks)), site, leading)
    parts = {"base": bases} if not deltas else {"base": bases, "delta": deltas}
    taken = [*parts][-1]
    # The same dictionary without any feature: its bias and its skip.
    bank = {name: _sources(part) for name, part in (*parts.items(), ("rest", parts[taken]))}
    replaced, removed = {}, {}
    for layer in sorted({*bases, *(deltas or {})}):
        used = [name for name, part in parts.items() if layer in part]
        replaced[layer] = Write(0.0, tuple(map(Term, used)))
        if layer in parts[taken]:
            removed[layer] = Write(1.0, (Term(taken, -1.0), Term("rest", keep_features=())))
    rows = [RAW, Intervention("replaced", replaced), Intervention("removed", removed)]
    engine = InterventionEngine(bridge, tokenizer, bank, site, leading=leading)
    with engine.applied(rows):
        logits = bridge.original_model(ids.expand(len(rows), -1)).logits
    tensors = dict(zip(("logits", "replaced", "removed"), logits, strict=True), ids=ids[0])
    tensors["positions"] = captured.positions
    for layer, (x, y) in captured.activations.items():
        used = [part[layer] for part in parts.values() if layer in part]
        if used:
            tensors[f"a.{layer}"], tensors[f"tie.{layer}"] = activations(x, *used)
        tensors[f"error.{layer}"] = y - sum(dictionary(x) for dictionary in used)
    return tensors


def _sources(dictionaries: Mapping[int, Transcoder]) -> dict[int, DictionarySource]:
    return {layer: DictionarySource(dictionary) for layer, dictionary in dictionaries.items()}
