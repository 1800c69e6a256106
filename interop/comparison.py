"""The comparison that both tools' checks make; runs in their environments, without our package."""

import json
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from safetensors.torch import load_file

TOLERANCE = 1e-5
LOGITS = 1e-5
"""Of the largest logit."""


class Comparison:
    """Compares encodings and reconstructions layer by layer, and remembers whether any missed."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.missed = False

    def cases(self, format: str, required: bool = True) -> list[str]:
        """The exports of one format.

        Raises:
            FileNotFoundError: there are none, though required.
        """
        return self._names(f"{format}/*", required)

    def requests(self) -> list[str]:
        """The exports that one request in the finetuned model was prepared for.

        Raises:
            FileNotFoundError: there are none.
        """
        found = self._names("expected/*, one request.safetensors")
        return [name.partition(",")[0] for name in found]

    def _names(self, pattern: str, required: bool = True) -> list[str]:
        found = sorted(path.name for path in self.out.glob(pattern))
        if required and not found:
            raise FileNotFoundError(
                f"no {self.out}/{pattern}: give what interop.prepare has written"
            )
        return found

    def card(self, format: str, case: str, layer: int) -> dict[str, Any]:
        """What `export.json` says of a layer."""
        text = (self.out / format / case / "export.json").read_text()
        return json.loads(text)["layers"][str(layer)]

    def expected(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.out / "expected" / f"{name}.safetensors")

    def layers(self, case: str):
        """(layer, x [N, d_model], a [N, n_features], y [N, d_model]) of a case."""
        tensors = self.expected(case)
        for layer in sorted(int(name[2:]) for name in tensors if name.startswith("x.")):
            yield layer, *(tensors[f"{kind}.{layer}"] for kind in "xay")

    def check(self, what: str, ok: bool, figures: str) -> None:
        print(f"{'ok  ' if ok else 'MISS'} {what}: {figures}", flush=True)
        self.missed |= not ok

    def compare(
        self,
        what: str,
        a: torch.Tensor,
        y: torch.Tensor,
        expected_a: torch.Tensor,
        expected_y: torch.Tensor,
    ) -> None:
        error = ((y - expected_y).norm() / expected_y.norm()).item()
        norms = expected_y.norm(dim=1).clamp(min=1e-12)  # a delta writes nothing on some tokens
        worst = ((y - expected_y).norm(dim=1) / norms).max().item()
        differing = ((a > 0) != (expected_a > 0)).sum().item()
        self.check(
            what,
            worst <= TOLERANCE and differing == 0 and a.shape == expected_a.shape,
            f"reconstruction differs by {error:.1e} of its norm (worst token {worst:.1e}); "
            f"{(expected_a > 0).sum()} active on {len(a)} tokens, {differing} differ",
        )

    def logits(self, what: str, logits: torch.Tensor, expected: torch.Tensor) -> None:
        error = ((logits - expected).abs().max() / expected.abs().max()).item()
        figures = f"logits differ by at most {error:.1e} of the largest"
        self.check(what, error <= LOGITS, figures)


def run_card(folder: Path) -> dict[str, Any]:
    """Run the code that an export's card loads it with, from the folder; the names it sets."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    huggingface_hub.snapshot_download = lambda repository: repository
    names = {}
    exec(code.replace("THIS_REPOSITORY", str(folder)), names)
    return names
