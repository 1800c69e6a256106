"""circuit-tracer's replacement model, held to what our own code makes of it; runs in its environment."""

from importlib.metadata import metadata, version

import torch
from comparison import Comparison
from nnsight import save


def versions() -> str:
    """The package index's circuit-tracer is a fork by others; upstream's comes from its git tags."""
    said = metadata("circuit-tracer")
    pages = [page for page in said.get_all("Project-URL", []) if page.startswith("Homepage")]
    home = pages[0].split(", ")[1] if pages else "upstream, which names no home page"
    others = [f"{name} {version(name)}" for name in ("nnsight", "torch")]
    return ", ".join([f"circuit-tracer {said['Version']} ({home})", *others])


def replaced_logits(model, prompt: str, positions: torch.Tensor, layers: list[int]) -> torch.Tensor:
    """These layers' MLP outputs are their transcoders', at its hook points, on these positions.

    Of the replacement model itself no call gives this: it keeps every MLP's error.
    """
    transcoders = model.transcoders._module
    with torch.inference_mode(), model.trace(prompt):
        for layer in layers:
            x = model.get_feature_input_loc(layer).output
            location = model.get_feature_output_loc(layer)
            output = location.output.clone()
            output[:, positions] = transcoders[layer](x)[:, positions]
            location.output = output
        logits = save(model.output.logits)
    return logits[0]


def check_model(
    model, what: str, comparison: Comparison, expected: dict[str, torch.Tensor], removed: dict
) -> None:
    """The replacement model's parts are ours, on one prompt.

    Special tokens within a prompt are spared by us and not by it: they are left out.

    Args:
        expected: of `replacement.expected`.
        removed: by layer, the features that are set to zero.
    """
    ids, positions = expected["ids"], expected["positions"]
    prompt = model.tokenizer.decode(ids[len(model.tokenizer("").input_ids) :])
    assert model.tokenizer(prompt).input_ids == ids.tolist()
    logits, found = model.get_activations(prompt)
    comparison.logits(f"{what}: the model", logits[0], expected["logits"])
    errors = model.setup_attribution(ids).error_vectors
    layers = [layer for layer in range(len(errors)) if f"a.{layer}" in expected]
    for layer in range(len(errors)):
        error = expected[f"error.{layer}"]
        apart = ((errors[layer, positions] - error).norm() / error.norm()).item()
        active = found[layer, positions] > 0
        n_ours, differ = 0, int(active.sum())
        if layer in layers:
            certain = ~expected[f"tie.{layer}"].bool()
            ours = (expected[f"a.{layer}"] > 0) & certain
            n_ours = int(ours.sum())
            differ = int(((active[:, : ours.shape[1]] & certain) != ours).sum())
            differ += int(active[:, ours.shape[1] :].sum())
        differ += int((found[layer, : positions[0]] > 0).sum())
        comparison.check(
            f"{what}: layer {layer}'s features and error",
            differ == 0 and apart <= 1e-4,
            f"{n_ours} active on {len(positions)} tokens, {differ} differ; error by {apart:.1e} of its norm",
        )
    comparison.logits(
        f"{what}: MLPs replaced",
        replaced_logits(model, prompt, positions, layers),
        expected["replaced"],
    )
    zero = [(layer, positions, features, 0.0) for layer, features in removed.items()]
    logits, _ = model.feature_intervention(prompt, zero, freeze_attention=False)
    comparison.logits(f"{what}: features removed", logits[0], expected["removed"])
