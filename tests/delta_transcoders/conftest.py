"""A random study (bases of every layer, deltas of some), a hub of folders, and what a card's code does."""

import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalEntryNotFoundError

from delta_transcoders.dictionaries.delta import DeltaConfig, save_delta
from delta_transcoders.dictionaries.files.gemma_scope import params_path, save_base
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.families.sites import HOOK_SITES
from delta_transcoders.fingerprints import hash_tensors, model_fingerprint
from delta_transcoders.language_models import load_model

D_MODEL = 32


def random_dictionary(n_features: int, seed: int, d_model: int = D_MODEL) -> Transcoder:
    """Its first threshold is below 0, and acts as 0."""
    generator = torch.Generator().manual_seed(seed)
    threshold = torch.rand(n_features, generator=generator)
    threshold[0] = -0.2
    return Transcoder(
        W_enc=torch.randn(d_model, n_features, generator=generator),
        b_enc=torch.randn(n_features, generator=generator),
        W_dec=torch.randn(n_features, d_model, generator=generator),
        b_dec=torch.randn(d_model, generator=generator),
        threshold=threshold,
    )


@pytest.fixture(scope="session")
def fitted():
    """`fitted(x, y)`: random features with biases, so that scale matters, and the best decoder for y."""

    def fit(x: torch.Tensor, y: torch.Tensor, n_features: int = 160) -> Transcoder:
        generator = torch.Generator().manual_seed(0)
        W_enc = torch.randn(x.shape[1], n_features, generator=generator)
        b_enc = torch.randn(n_features, generator=generator) * (x @ W_enc).std()
        a = torch.cat([(x @ W_enc + b_enc).relu(), torch.ones(len(x), 1)], 1).double()
        gram = a.T @ a
        ridge = 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        solution = torch.linalg.solve(gram + ridge, a.T @ y.double()).float()
        return Transcoder(
            W_enc=W_enc,
            b_enc=b_enc,
            W_dec=solution[:-1],
            b_dec=solution[-1],
            activation="relu",
        )

    return fit


@dataclass(frozen=True)
class RandomStudy:
    folder: Path
    model: str
    bases: dict[int, Transcoder]
    deltas: dict[int, Transcoder]
    configs: dict[int, DeltaConfig]

    def variant(self, folder: Path, **changes) -> Path:
        """The deltas with another configuration, in a folder of their own."""
        for layer, delta in self.deltas.items():
            save_delta(folder / f"layer_{layer}", delta, replace(self.configs[layer], **changes))
        return folder


@pytest.fixture(scope="session")
def random_study(tmp_path_factory, model_folder) -> RandomStudy:
    """Read only. Three layers, the last with a wider base; the middle one has no delta."""
    folder = tmp_path_factory.mktemp("random_study")
    fingerprint = model_fingerprint(load_model(model_folder))
    bases = {layer: random_dictionary(width, layer) for layer, width in enumerate((40, 40, 48))}
    deltas, configs = {layer: random_dictionary(6, 10 + layer) for layer in (0, 2)}, {}
    for layer, base in bases.items():
        save_base(folder / "base_transcoders", layer, base, 8 + layer)
    for layer, delta in deltas.items():
        hook_in, hook_out = HOOK_SITES["gemma_scope"].names(layer)
        path = params_path(layer, bases[layer].n_features, 8 + layer)
        configs[layer] = DeltaConfig(
            layer=layer,
            d_in=D_MODEL,
            d_out=D_MODEL,
            d_new=6,
            base_id=f"{folder}/base_transcoders/{path}",
            base_hash=hash_tensors(bases[layer].state_dict()),
            model_fingerprint=fingerprint,
            hook_site="gemma_scope",
            hook_in=hook_in,
            hook_out=hook_out,
            sparsity={"mode": "batch_topk", "l0": 2},
            target="residual",
            percentile=0.5,
            average_l0_base=8 + layer,
            seed=0,
            measured={"l0_delta": 1.6},
        )
        save_delta(folder / "delta" / f"layer_{layer}", delta, configs[layer])
    return RandomStudy(folder, model_folder, bases, deltas, configs)


class Hub:
    """Stands in for the hub: repositories are folders. Calls must fit the real signatures."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.private: dict[str, bool] = {}

    def create_repo(self, api, repo_id, *, private=None, exist_ok=False):
        assert exist_ok
        self.private.setdefault(repo_id, private)
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        return f"https://hub/{repo_id}"

    def repo_info(self, api, repo_id):
        return SimpleNamespace(private=self.private[repo_id])

    def upload_folder(self, api, *, repo_id, folder_path, commit_message, delete_patterns):
        for pattern in delete_patterns:
            for path in (self.root / repo_id).glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)

    def snapshot_download(self, repo_id, *, allow_patterns):
        if not (self.root / repo_id).is_dir():
            raise LocalEntryNotFoundError("not cached")
        return str(self.root / repo_id)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub")
    for name in ("create_repo", "repo_info", "upload_folder"):
        checked = mock.create_autospec(getattr(HfApi, name), side_effect=getattr(hub, name))
        monkeypatch.setattr(HfApi, name, checked)
    download = mock.create_autospec(
        huggingface_hub.snapshot_download, side_effect=hub.snapshot_download
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")
    return hub


@pytest.fixture
def run_card():
    """Run the code of an export's card as it is written, with its names in capitals filled in."""

    def run(folder: Path, **names: Path) -> None:
        card = (folder / "README.md").read_text(encoding="utf-8")
        (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        for name, value in {"THIS_REPOSITORY": folder, **names}.items():
            code = code.replace(f'"{name}"', f'"{value}"')
        exec(compile(code, str(folder / "README.md"), "exec"), {})

    return run
