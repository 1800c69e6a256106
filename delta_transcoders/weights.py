"""A model's weights as they lie on disk, for what needs no whole model: its hash, or some of its layers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from delta_transcoders.families import family_of
from delta_transcoders.families.sites import HookSite
from delta_transcoders.fingerprints import hash_tensors
from delta_transcoders.hub import local_folder
from delta_transcoders.language_models import check_model_source, load_config, load_model, shards

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class StoredWeights(Mapping[str, Tensor]):
    """The weights that `load_model` would load, by the same names, each read when it is asked for.

    A tied weight is there once, as in `named_parameters`. Where the safetensors files do not hold all of
    the model under its own names (other formats, older names), it is loaded as a whole after all, as it
    is where they are damaged, for its error.

    Args:
        source: folder or hub id.
        dtype: torch's name of the weights' type, `float32` or `bfloat16`.

    Attributes:
        config: the model's.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: as `load_model`.
    """

    def __init__(self, source: str, dtype: str = "float32") -> None:
        from transformers import AutoModelForCausalLM

        check_model_source(source)
        folder = local_folder(source, patterns=["*.json", "*.safetensors"])
        self._dtype = getattr(torch, dtype)
        with torch.device("meta"):
            self._model = AutoModelForCausalLM.from_config(load_config(str(folder)))
        self._files = _files_of_weights(folder)
        if any(name not in self._files for name, _ in self._model.named_parameters()):
            self._files, self._model = {}, load_model(source, dtype)
        self.config = self._model.config
        self._names = [name for name, _ in self._model.named_parameters()]

    def __getitem__(self, name: str) -> Tensor:
        if not self._files:
            return self._model.get_parameter(name).detach()
        # Opened for each: the pages of a file that is open count as the process's memory.
        with safe_open(self._files[name], "pt") as file:
            return file.get_tensor(name).to(self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def fingerprint(self) -> str:
        """`model_fingerprint` of the loaded model."""
        return hash_tensors(self)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every weight by its name in the model, a tied one under both of its names."""
        return {name: tuple(weight.shape) for name, weight in self._model.state_dict().items()}

    def with_layers(self, layers: Collection[int]) -> PreTrainedModel:
        """The model in evaluation mode with the weights of these decoder layers; others may have none."""
        for layer in layers if self._files else ():
            path = f"{family_of(self.config).blocks_path}.{layer}"
            module = self._model.get_submodule(path)
            weights = {n: self[f"{path}.{n}"] for n, _ in module.named_parameters()}
            module.load_state_dict(weights, assign=True)
        return self._model.eval()


def changed_mlps(
    base: StoredWeights, finetuned: StoredWeights, layers: Collection[int], site: HookSite
) -> list[int]:
    """Those of the layers whose MLP, from the site's input to its output, two models do not share."""
    model, family = base.with_layers(()), family_of(base.config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    changed = []
    for layer in layers:
        weights = [names[id(p)] for p in family.mlp(model, layer, site).parameters()]
        if not all(torch.equal(base[name], finetuned[name]) for name in weights):
            changed.append(layer)
    return changed


def _files_of_weights(folder: Path) -> dict[str, Path]:
    """The file of each stored tensor; empty where there are none, or damaged ones."""
    files = {}
    for name in shards(folder) or ["model.safetensors"]:
        try:
            with safe_open(folder / name, "pt") as file:
                files |= dict.fromkeys(file.keys(), folder / name)
        except (OSError, SafetensorError):
            return {}
    return files
