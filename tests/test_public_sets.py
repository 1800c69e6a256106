"""The studies of public models, run on random tiny models and on dictionaries laid out as they are published.

Of the shipped files everything is theirs but the hub ids, the source of lines to copy, lengths, and the width
that Gemma Scope 2's folders say.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import yaml

import evaluate
import train
from benchmarks.random_dictionaries import fitted_dictionary
from delta_transcoders.activations.cache import ActivationCache
from delta_transcoders.activations.capture import boot_bridge, capture
from delta_transcoders.dictionaries.bases import check_held, load_base
from delta_transcoders.dictionaries.delta import load_delta
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.families.sites import HOOK_SITES, SiteName
from delta_transcoders.features.files import read_features
from delta_transcoders.interventions.intervention import layer_groups
from delta_transcoders.language_models import load_model, load_tokenizer, target_batch, tokenize
from delta_transcoders.pages.feature_pages import write_pages
from delta_transcoders.report import comparisons
from delta_transcoders.report.tables import read_metrics
from delta_transcoders.study.plan import Graph
from delta_transcoders.study.public_base import SITES, VALUES, PublicBase
from delta_transcoders.study.running import command_of
from delta_transcoders.study.study_file import SCRIPTS, Stage, read_study
from delta_transcoders.tasks.calculator.task import Calculator
from interop import published_sets
from interop.published_sets import Tensors, circuit_tracer, formula
from tests.delta_transcoders.families.conftest import CASES, make_model, make_tokenizer
from tests.report_studies import page_of

D_MODEL, L0, K = 32, 64, 128


def gemma_scope_2(folder: Path, tensors: Tensors, model: str) -> None:
    """Of some layers another size, an affine twin and one in the folder of four depths lie beside it."""
    some = {
        layer: t | {"W_skip": np.eye(D_MODEL, dtype=np.float32)}
        for layer, t in tensors.items()
        if layer % 8 == 0
    }
    for held, parent, size, affine in (
        (tensors, "transcoder_all/", "big", False),
        (some, "transcoder_all/", "small", False),
        (some, "transcoder_all/", "big", True),
        (some, "transcoder/", "medium", False),
    ):
        name = f"layer_{{}}_width_1k_l0_{size}"
        published_sets.gemma_scope_2(folder, affine, parent, held, name, l0=L0, model_name=model)


@dataclass(frozen=True)
class Public:
    """A shipped study, and what its model and its set of dictionaries are like.

    Attributes:
        family: of the tiny model that stands in for the base.
        n_layers: of the real model, and of the tiny one.
        write: all layers in the published layout.
        files, width, dtype: of the chosen dictionaries, as they are stored.
    """

    name: str
    family: str
    n_layers: int
    site: str
    write: Callable[..., None]
    activation: str
    files: str
    width: int = 256
    dtype: torch.dtype = torch.bfloat16
    skip: bool = False
    leading: int = 1
    licence: str = "Apache-2.0"

    @property
    def file(self) -> str:
        return f"configs/{self.name}/study.yaml"

    @property
    def base(self) -> dict:
        return yaml.safe_load(Path(f"configs/{self.name}/base.yaml").read_text())["base"]

    @property
    def layers(self) -> list[int]:
        return self.base.get("layers", list(range(self.n_layers)))


BFLOAT16 = {"dtype": torch.bfloat16}


def qwen3(folder: Path, tensors: Tensors, model: str) -> None:
    circuit_tracer(folder, tensors=tensors, model_name=model, **BFLOAT16)


def llama_3_2(folder: Path, tensors: Tensors, model: str) -> None:
    hooks = {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}
    circuit_tracer(folder, skip=True, tensors=tensors, model_name=model, **hooks, **BFLOAT16)


def llama_3_1(folder: Path, tensors: Tensors, model: str) -> None:
    """A revision without k."""
    circuit_tracer(folder, tensors=tensors, model_name=model, activation="topk", **BFLOAT16)


GEMMA = {"family": "gemma3", "site": "after_gain", "write": gemma_scope_2, "activation": "jumprelu"}
GEMMA |= {"files": "transcoder_all/layer_{}_width_1k_l0_big/params.safetensors", "width": 1024}
GEMMA |= {"dtype": torch.float32, "licence": "Gemma terms"}
QWEN = {"family": "qwen3", "site": "after_gain", "write": qwen3, "activation": "relu"}
QWEN |= {"files": "layer_{}.safetensors"}
STUDIES = [
    Public("gemma3_270m", n_layers=18, **GEMMA),
    Public("gemma3_1b", n_layers=26, leading=4, **GEMMA),
    Public("qwen3_0.6b", n_layers=28, **QWEN),
    Public("qwen3_4b", n_layers=36, **QWEN),
    Public(
        "llama3.2_1b",
        family="llama3",
        n_layers=16,
        site="residual",
        write=llama_3_2,
        activation="relu",
        files="layer_{}.safetensors",
        skip=True,
        licence="Llama 3.2 community",
    ),
    Public(
        "llama3.1_8b",
        family="llama3",
        n_layers=32,
        site="after_gain",
        write=llama_3_1,
        activation="topk",
        files="layer_{}.safetensors",
        licence="NON-COMMERCIAL",
    ),
]


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch, pytestconfig):
    monkeypatch.chdir(pytestconfig.rootpath)


@pytest.fixture(params=STUDIES, ids=lambda public: public.name)
def public(request) -> Public:
    return request.param


# The files


def test_a_study_file_says_what_one_must_know(public):
    text = Path(public.file).read_text()
    comment = " ".join(line.removeprefix("# ") for line in text.splitlines() if line[0] == "#")
    for word in (
        "Licence: ",
        "Disk: ",
        "Memory: ",
        "Computed from sizes, not run.",
        "read second-hand",
        public.licence,
    ):
        assert word in comment, word
    one_stage = f"python train.py --config configs/public/delta.yaml --config configs/{public.name}/base.yaml"
    assert one_stage in comment
    base = yaml.safe_load(Path(f"configs/{public.name}/base.yaml").read_text())
    assert base["study"] == yaml.safe_load(text)["study"] == f"runs/{public.name}"


def test_every_stage_is_of_this_model_and_its_set(public):
    base, steps = public.base, Graph(read_study(public.file)).steps
    assert list(steps) == [
        *("finetune", "behaviour", "activations", "delta", "features", "exp1", "exp2a", "exp2b"),
        *("effects", "feature_pages", "comparisons", "report"),
    ]
    values = {label: step.config.values for label, step in steps.items()}
    assert values["finetune"]["model.model"] == values["finetune"]["data.model"] == base["model"]
    assert values["behaviour"]["model.models.base_model"] == base["model"]
    assert values["activations"]["model.layers"] == base.get("layers")
    assert values["activations"]["model.hook_site"] == base.get("hook_site")
    assert values["activations"]["model.leading"] == base.get("leading")
    assert values["delta"]["data.base_model"] == base["model"]
    assert values["delta"]["data.base_transcoders"] == base["transcoders"]
    assert values["delta"]["data.base_files"] == base.get("files")
    for experiment in ("exp1", "exp2a", "exp2b"):
        found = values[experiment]
        assert found["model.base_model"] == base["model"]
        assert found["model.base_transcoders"] == base["transcoders"]
        assert found["model.layers"] == base["groups"]
        assert found["model.rows_per_pass"] == found["data.batch_size"] == base.get("rows", 32)
    groups = layer_groups(base["groups"], public.n_layers, public.layers)
    assert groups[-1] == tuple(public.layers)


def test_a_base_is_given_on_the_command_line(public):
    given = {"all": {"base.model": "here/model", "base.rows": 2}}
    steps = Graph(read_study(public.file, options=given)).steps
    assert steps["delta"].config.values["data.base_model"] == "here/model"
    assert steps["exp2b"].config.values["model.rows_per_pass"] == 2
    command = command_of(steps["exp2b"].stage)
    assert command[2:6] == [
        *("--config", "configs/public/exp2b.yaml"),
        *("--config", f"configs/{public.name}/base.yaml"),
    ]
    assert command[-4:] == ["--base.model", "here/model", "--base.rows", "2"]
    with pytest.raises(ValueError, match=r"no option base.modle; did you mean 'model'"):
        Graph(read_study(public.file, options={"all": {"base.modle": "x"}}))


def test_a_base_goes_to_the_stages_that_read_it():
    study = read_study("configs/qwen3_0.6b/study.yaml", options={"all": {"base.layers": [3]}})
    given = {label for label, stage in study.stages.items() if "base.layers" in stage.options}
    assert given == {"activations"}
    with pytest.raises(ValueError, match=r"--delta.base.rows: there is no use of base.rows"):
        read_study("configs/qwen3_0.6b/study.yaml", options={"delta": {"base.rows": 2}})


@pytest.mark.parametrize("file", ["gemma2_2b/study.yaml", "tiny/study.yaml", "smollm2/quick.yaml"])
def test_a_base_that_no_file_reads_is_refused(file):
    with pytest.raises(ValueError, match=r"--all.base.model: .* no file says \$\{base.model\}"):
        read_study(f"configs/{file}", options={"all": {"base.model": "/no/such"}})


BAD_VALUES = {
    "rows": (0, -3, "x", None, 1.5),
    "hook_site": ("nope", 3),
    "leading": (-1, "4"),
    "layers": ([], 7, [-1], ["7"]),
    "groups": (None, "all", [], ["7-14"], [8], ["7+8"]),
    "model": ("", None, 3),
    "transcoders": ("", None),
    "files": ("", []),
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in BAD_VALUES.items() for value in values]
)
def test_a_base_of_another_type_is_refused_by_the_plan(key, value):
    with pytest.raises(
        ValueError, match=rf"\w+: base.{key} (is .*, expected \w|has layer 8, which)"
    ):
        Graph(read_study("configs/qwen3_0.6b/study.yaml", options={"all": {f"base.{key}": value}}))


def test_the_sites_of_a_base_are_all_there_are():
    assert get_args(SiteName) == SITES
    assert VALUES.keys() == asdict(PublicBase()).keys()


def test_a_study_without_its_base(tmp_path):
    stages, file = Path("configs/public/stages.yaml").resolve(), tmp_path / "study.yaml"
    (tmp_path / "base.yaml").write_text("base:\n")
    for base in ("", "base: base.yaml\n"):
        file.write_text(f"include: {stages}\nstudy: runs/x\n{base}")
        with pytest.raises(ValueError, match=r"finetune needs a base .*: give `base: base.yaml`"):
            Graph(read_study(str(file)))
    (tmp_path / "mine.yaml").write_text("model: {class_path: a.B, init_args: {output: x}}\n")
    stage = "run: train, config: mine.yaml, options: {base.model: x}"
    file.write_text(f"study: runs/x\nstages: {{finetune: {{{stage}}}}}\n")
    with pytest.raises(ValueError, match=r"finetune: there is no use of base\.model"):
        Graph(read_study(str(file)))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["public/delta"],
            r"delta.yaml needs a base .model, transcoders.: add `--config configs/M",
        ),
        (
            ["public/delta", "empty"],
            r"delta.yaml needs a base .*: add `--config configs/MODEL/base",
        ),
        (["public/lora", "--base.model=x", "--base.rows=3"], "no use of base.rows: no file says"),
        (
            ["qwen3_0.6b/base", "public/delta"],
            r"base.yaml is no stage's .*: give it after \S*delta\.y",
        ),
        (["gemma2_2b/delta", "--base.model", "/no/such"], r"no use of base.model: no file says \$"),
        (
            ["public/lora", "--base.modle=x"],
            "lora.yaml: .* no option base.modle; did you mean 'model'",
        ),
    ],
)
def test_a_stage_without_its_base_or_with_a_needless_one(tmp_path, args, message):
    (tmp_path / "empty.yaml").write_text("base:\n")
    named = {"empty": tmp_path / "empty.yaml"}
    given = [
        arg if arg.startswith(("-", "/")) else f"--config={named.get(arg, f'configs/{arg}.yaml')}"
        for arg in args
    ]
    with pytest.raises(ValueError, match=message) as error:
        train.main(given)
    assert "\n" not in str(error.value)


def test_gemma_scope_2_has_one_dictionary_of_each_layer_that_is_meant(tmp_path):
    for layer in range(26):
        names = [
            f"{folder}layer_{layer}_width_{width}_l0_{size}{affine}"
            for folder, sizes in (
                ("transcoder_all/", ("small", "big")),
                ("transcoder/", ("medium",)),
            )
            for size in sizes
            for width in ("16k", "262k")
            for affine in ("", "_affine")
        ]
        for name in names:
            (tmp_path / name).mkdir(parents=True)
            (tmp_path / name / "params.safetensors").touch()
    for public in STUDIES[:2]:
        check_held(tmp_path, public.layers, percentile=0.5, files=public.base["files"])


# The runs

FEW = {"data.n_per_subset": 1}
LENGTHS = {
    "finetune": {
        "data.n_train": 24,
        "data.n_validation": 8,
        "data.n_evaluation": 8,  # of both halves of the wordings
        "model.lr": 1e-2,  # a handful of steps must change weights in bfloat16
        "trainer.max_epochs": 1,
        "trainer.callbacks.max_new_tokens": 3,
        "task.copy_source": "synthetic",
    },
    "behaviour": {"model.max_new_tokens": 3},
    "delta": {"data.passes": 10, "data.n_check_examples": 8},  # all training tokens are a batch
    "exp1": FEW,
    "exp2a": FEW | {"model.max_new_tokens": 3},
    "exp2b": FEW | {"model.max_new_tokens": 3},
    "effects": {"model.max_new_tokens": 3},
}
QUIET = {"trainer.accelerator": "cpu", "trainer.enable_progress_bar": False}


def run_stage(stage: Stage) -> None:
    if stage.run in SCRIPTS:
        {"train": train.main, "evaluate": evaluate.main}[stage.run](command_of(stage)[2:])
    elif stage.name == "comparisons":
        comparisons.write_comparisons([Path(stage.arguments[0])], Path(stage.writes[0]))
    elif stage.name == "feature_pages":
        folder = Path(stage.arguments[0])
        write_pages(read_features(folder / "features"), folder / "report", str(folder))
    else:
        page_of(Path(stage.arguments[0]))


def arrays(base: Transcoder) -> dict[str, np.ndarray]:
    return {name: tensor.float().numpy() for name, tensor in base.state_dict().items()}


def plant(folder: Path, public: Public, model: str) -> None:
    """Dictionaries of the layers that are studied, which fit the base model."""
    bridge = boot_bridge(load_model(model), load_tokenizer(model))
    examples = Calculator().generate(48, 2, 1, seed=1)["train"]  # fewer would fit these alone
    rows = tokenize(bridge.tokenizer, Calculator(), examples)
    batch = target_batch(rows, bridge.tokenizer.pad_token_id)
    site = HOOK_SITES[public.site]
    ids, mask = batch["input_ids"], batch["attention_mask"]
    captured = capture(bridge, ids, mask, public.layers, site)
    tensors = {}
    for layer, (x_ND, y_ND) in captured.activations.items():
        l0 = K if public.activation == "topk" else L0
        fitted = fitted_dictionary(
            x_ND, y_ND, public.width, l0, layer, public.activation, skip=public.skip
        )
        tensors[layer] = arrays(fitted)
    public.write(folder, tensors, public.base["model"])


@pytest.mark.slow
def test_a_study_runs_to_its_end(public, tmp_path):
    (case,) = (case for case in CASES if case.name == public.family)
    tokenizer = make_tokenizer(case)
    base, model = tmp_path / public.base["transcoders"].split("/")[1], tmp_path / "model"
    make_model(case, tokenizer, num_hidden_layers=public.n_layers).save_pretrained(model)
    tokenizer.save_pretrained(model)
    plant(base, public, str(model))

    files = public.base.get("files", "").replace("16k", "1k") or None
    local = {"base.model": str(model), "base.transcoders": str(base), "base.files": files}
    given = LENGTHS | {"all": QUIET | local}
    folder = tmp_path / "study"
    for stage in read_study(public.file, folder=str(folder), options=given).stages.values():
        run_stage(stage)

    cache = ActivationCache(folder / "activations")
    assert cache.meta.layers == tuple(public.layers)
    assert cache.meta.hook_site.name == public.site
    first = "token" if public.leading == 1 else f"{public.leading} tokens"
    assert cache.meta.token_policy.endswith(f"the first {first}")
    for layer in public.layers:
        _, config = load_delta(folder / f"delta/layer_{layer}")
        assert config.base_id == f"{base}/{public.files.format(layer)}"
        assert (config.d_new, config.hook_site) == (128, public.site)
        assert math.isfinite(config.measured["fvu_full"])
        loaded, base_id = load_base(base, layer, files=files)
        assert base_id.hash == config.base_hash
        assert {tensor.dtype for tensor in loaded.state_dict().values()} == {public.dtype}
        assert (base_id.leading, base_id.activation) == (public.leading, public.activation)
        columns = ["x", "y", f"residual-{base.name}-p0.5"]
        x, y, residual = cache.load("validation", layer, columns).values()
        kind = (public.activation, public.skip)
        activations, written = formula(x.float().numpy(), arrays(loaded), *kind, k=K)
        expected = y.double().numpy() - written
        scale = float(np.abs(expected).max())
        # Rounding decides whether a feature at its threshold is active: where it does, only that it is rare.
        ours = loaded.encode(x.float()).numpy()
        same = ((ours > 0) == (activations > 0)).all(axis=1)
        assert same.mean() > 0.98
        found = residual.double().numpy()
        np.testing.assert_allclose(found[same], expected[same], atol=scale / 128)

    groups = [str(group) for group in public.base["groups"]]
    of_2a = read_metrics(folder / "exp2a/metrics.csv")
    conditions = ("no_delta", "full", "base_mlp", "dictionary_error")
    cells = {(row["layer"], row["condition"]) for row in of_2a}
    assert cells == {("", "raw"), *itertools.product(groups, conditions)}
    rows = [*of_2a, *read_metrics(folder / "exp1/metrics.csv")]
    assert all(math.isfinite(float(row["mean_ce"])) for row in rows)
    if public.activation == "topk":
        assert {float(row["l0_base"]) for row in of_2a if row["condition"] == "full"} == {K}
    keys = ("layer", "subset")
    found = {(*(row[k] for k in keys), row["condition"]): float(row["mean_ce"]) for row in of_2a}
    for row in read_metrics(folder / "exp2b/metrics.csv"):
        same = {"alpha_0.00": "no_delta", "alpha_1.00": "full"}.get(row["condition"])
        if same:
            expected = found[(*(row[k] for k in keys), same)]
            assert float(row["mean_ce"]) == pytest.approx(expected, abs=0.02)
    assert (folder / "exp2a/comparisons/split.csv").is_file()
