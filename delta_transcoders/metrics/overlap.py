"""How much of what two deltas write in lies in one subspace, against chance.

Shapes: F features of a layer, D = d_model.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Rows = Mapping[int, NDArray]
"""Decoder rows [F, D] by layer; F may differ between deltas, and be 0."""


def orthonormal(rows_FD: NDArray) -> NDArray:
    """A basis of the rows' span, [rank, D]."""
    _, values, basis_RD = np.linalg.svd(rows_FD.astype(np.float64), full_matrices=False)
    tolerance = max(rows_FD.shape) * np.finfo(np.float32).eps * max(values, default=0.0)
    return basis_RD[values > tolerance]


def subspace_overlap(ours: Rows, theirs: Rows) -> float:
    """Mean squared cosine of the principal angles between the spans of two deltas' rows, over all layers.

    Σ_l ‖Q_l R_lᵀ‖²_F / Σ_l min(rank Q_l, rank R_l), with orthonormal bases Q_l and R_l: in one layer the
    similarity φ of E. Hu et al. (2021), LoRA, arXiv 2106.09685, §7.2; angles as of Å. Björck and G. Golub
    (1973). It is 1 where one span holds the other, 0 where they are orthogonal, and of two random spans
    max(rank) / D on average. nan where no layer has rows of both.
    """
    bases = {layer: (orthonormal(ours[layer]), orthonormal(theirs[layer])) for layer in ours}
    return _shared(bases)


def permuted_overlaps(ours: Rows, theirs: Rows, n_permutations: int, seed: int) -> NDArray:
    """`subspace_overlap` where the coordinates of their rows are permuted, anew for each layer: [n].

    The rows keep their norms, their angles to each other and the sizes of their entries; where they point
    does not.
    """
    generator = np.random.default_rng(seed)
    bases = {layer: (orthonormal(ours[layer]), orthonormal(theirs[layer])) for layer in ours}
    return np.array(
        [
            _shared(
                {
                    layer: (q, r[:, generator.permutation(r.shape[1])])
                    for layer, (q, r) in bases.items()
                }
            )
            for _ in range(n_permutations)
        ]
    )


def _shared(bases: Mapping[int, tuple[NDArray, NDArray]]) -> float:
    shared = sum(float(((q_RD @ r_RD.T) ** 2).sum()) for q_RD, r_RD in bases.values())
    most = sum(min(len(q_RD), len(r_RD)) for q_RD, r_RD in bases.values())
    return shared / most if most else float("nan")
