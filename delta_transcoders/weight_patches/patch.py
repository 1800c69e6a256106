"""Changes of a model's linear weights, as what they add to the layers' outputs, and their folders.

    output + (x @ A · gate) @ B + b

A gate turns one component up and down; at 1 it is as it was.

Shapes: I a linear layer's input, D its output, C components, B rows of a pass, T positions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor, nn

from delta_transcoders.files import read_config, write_json
from delta_transcoders.tensor_files import load_tensors, save_tensors

FORMAT_VERSION = 1
TENSORS_NAME = "patch.safetensors"
CONFIG_NAME = "config.json"

Gates = Mapping[str, Tensor]
"""By layer, what each component is multiplied by, broadcast to [B, T, C]."""


class LayerPatch(nn.Module):
    """What is added to one linear layer's output.

    An absent factor is the identity; no factor at all adds nothing but b.

    Attributes (parameters, float32):
        A: [I, C] or None
        B: [C, D] or None
        b: [D] or None
    """

    def __init__(self, A: Tensor | None = None, B: Tensor | None = None, b: Tensor | None = None):
        super().__init__()
        for name, tensor in (("A", A), ("B", B), ("b", b)):
            if tensor is not None:
                tensor = nn.Parameter(tensor.detach().float().contiguous())
            self.register_parameter(name, tensor)

    @property
    def n_components(self) -> int:
        if self.A is not None:
            return self.A.shape[1]
        return 0 if self.B is None else self.B.shape[0]

    def forward(self, x_BTI: Tensor, gate: Tensor | None = None) -> Tensor:
        out = 0.0
        if self.n_components:
            a_BTC = x_BTI if self.A is None else x_BTI @ self.A
            a_BTC = a_BTC if gate is None else a_BTC * gate
            out = a_BTC if self.B is None else a_BTC @ self.B
        return out if self.b is None else out + self.b


class WeightPatch(nn.Module):
    """Patches of a model's linear layers by their paths.

    Args:
        layers: by path within the causal model.
        n_parameters: numbers that have to be kept, where these are not all of the tensors' own.
    """

    def __init__(self, layers: Mapping[str, LayerPatch], n_parameters: int | None = None) -> None:
        super().__init__()
        self.paths = tuple(layers)
        self.layers = nn.ModuleList(layers.values())
        own = sum(parameter.numel() for parameter in self.parameters())
        self.n_parameters = own if n_parameters is None else n_parameters

    def items(self) -> Iterator[tuple[str, LayerPatch]]:
        return zip(self.paths, self.layers, strict=True)


@contextmanager
def patched(model: nn.Module, patch: WeightPatch, gates: Gates | None = None) -> Iterator[None]:
    """Every forward pass of the model inside has the patch, computed in float32."""
    handles = []
    try:
        for path, layer in patch.items():

            def add(module, args, output, layer=layer, gate=gates and gates[path]):
                return output + layer(args[0].float(), gate).to(output.dtype)

            handles.append(model.get_submodule(path).register_forward_hook(add))
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class PatchConfig:
    """Which models a patch is for, and how well it does."""

    n_parameters: int
    base_fingerprint: str
    finetuned_fingerprint: str
    kl: dict[str, float]
    """KL(finetuned ‖ base with the patch), nats per target token, by subset of the validation examples."""
    format_version: int = FORMAT_VERSION


def save_patch(folder: str | Path, patch: WeightPatch, config: PatchConfig) -> None:
    """Write `patch.safetensors` (`PATH.A`, `PATH.B`, `PATH.b`), then `config.json`."""
    tensors = {
        f"{path}.{name}": parameter.detach()
        for path, layer in patch.items()
        for name, parameter in layer.named_parameters()
    }
    save_tensors(Path(folder) / TENSORS_NAME, tensors)
    write_json(Path(folder) / CONFIG_NAME, asdict(config))


def load_patch(folder: str | Path) -> tuple[WeightPatch, PatchConfig]:
    """Read a folder written by `save_patch`."""
    config = read_config(
        Path(folder) / CONFIG_NAME,
        PatchConfig,
        "no finished patch in this folder",
        remake="train it anew with `python train.py --config …/weight_refit.yaml`",
    )
    factors: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in load_tensors(Path(folder) / TENSORS_NAME).items():
        path, _, factor = name.rpartition(".")
        factors[path][factor] = tensor
    layers = {path: LayerPatch(**tensors) for path, tensors in factors.items()}
    return WeightPatch(layers, config.n_parameters), config
