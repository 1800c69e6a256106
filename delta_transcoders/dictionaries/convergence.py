"""When each of many dictionaries stops improving, and the best weights of each.

Variants share a training run but not their fate: once one has gone `patience` validations without
improving, its kept copy is final, exactly as if it had been trained alone and stopped.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from delta_transcoders.dictionaries.stack import DictionaryStack, transcoder_at
from delta_transcoders.dictionaries.transcoder import Transcoder

MEASURES = ("fvu", "cosine", "relative_l2", "l0", "dead_fraction")
"""What a validation says of a variant."""


class ConvergenceTracker(nn.Module):
    """Best weights, what they do, and patience per variant; all of it in buffers, so a checkpoint resumes it.

    Attributes:
        best_fvu_V: lowest FVU seen, infinite before the first validation
        best_cosine_V, …: the other `MEASURES` at that validation
        bad_validations_V: validations since then
        converged_V: whether patience has run out
        best_W_enc, best_b_enc, …: exported tensors at the best validation, [V, …]
    """

    best_fvu_V: Tensor
    bad_validations_V: Tensor
    converged_V: Tensor

    def __init__(self, stack: DictionaryStack, patience: int):
        super().__init__()
        n_variants = len(stack.variants)
        self.patience = patience
        for name in MEASURES:
            self.register_buffer(f"best_{name}_V", torch.full((n_variants,), torch.inf).double())
        self.register_buffer("bad_validations_V", torch.zeros(n_variants, dtype=torch.int64))
        self.register_buffer("converged_V", torch.zeros(n_variants, dtype=torch.bool))
        for name, tensor in stack.export_tensors().items():
            self.register_buffer(
                f"best_{name}", tensor.clone(memory_format=torch.contiguous_format)
            )

    def update(self, measured: Mapping[str, Tensor], stack: DictionaryStack) -> Tensor:
        """Record one validation, its `MEASURES` float64 [V] each; returns which variants improved [V].

        A NaN never improves, in the FVU or in a weight: features with NaN weights are silent, and a
        silent dictionary has the FVU of none at all.
        """
        tensors = stack.export_tensors()
        finite = [tensor.flatten(1).isfinite().all(1) for tensor in tensors.values()]
        improved_V = (
            (measured["fvu"] < self.best_fvu_V) & torch.stack(finite).all(0) & ~self.converged_V
        )
        self.bad_validations_V.add_(~self.converged_V).masked_fill_(improved_V, 0)
        self.converged_V.logical_or_(self.bad_validations_V >= self.patience)
        for name in MEASURES:
            self.get_buffer(f"best_{name}_V")[improved_V] = measured[name][improved_V]
        for name, tensor in tensors.items():
            self.get_buffer(f"best_{name}")[improved_V] = tensor[improved_V]
        return improved_V

    def export(self, v: int) -> Transcoder:
        """The best weights of one variant."""
        if not self.best_fvu_V[v].isfinite():
            raise RuntimeError(f"variant {v} has no validation with a finite FVU yet")
        names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
        return transcoder_at({name: self.get_buffer(f"best_{name}") for name in names}, v)

    def best(self, v: int) -> dict[str, float]:
        """What the best weights of one variant do on the validation tokens: its `MEASURES`."""
        return {name: float(self.get_buffer(f"best_{name}_V")[v]) for name in MEASURES}
