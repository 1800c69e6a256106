"""A card says what the study's files say, and what they do not say it does not invent."""

import json
from pathlib import Path

import pytest
import yaml

from delta_transcoders import files
from delta_transcoders.dictionaries.files.exported import ExportCard
from delta_transcoders.dictionaries.files.rounding import RoundingCost
from delta_transcoders.dictionaries.files.shared_dictionaries import SharedBase
from delta_transcoders.report import model_card as cards
from delta_transcoders.report.shared_study import read_study
from delta_transcoders.report.tables import write_metrics
from delta_transcoders.smollm2 import OUTPUT_KIND, PACKAGE, SOURCE
from delta_transcoders.tasks.calculator.examples import make_example, write_jsonl
from delta_transcoders.tasks.calculator.task import Calculator

NAN = float("nan")


def delta_config(layer: int, **changes) -> dict:
    return {
        "layer": layer,
        "d_new": 6,
        "base_id": f"google/gemma-scope-2b-pt-transcoders/layer_{layer}/width_16k/average_l0_76/params.npz",
        "base_hash": f"{layer}" * 64,
        "model_fingerprint": "f" * 64,
        "hook_site": "gemma_scope",
        "hook_in": f"blocks.{layer}.ln2.hook_normalized",
        "hook_out": f"blocks.{layer}.hook_mlp_out",
        "sparsity": {"mode": "batch_topk", "l0": 8},
        "target": "residual",
        "percentile": 0.5,
        "seed": 7,
        "measured": {"fvu_base": 0.254, "fvu_full": 0.0298, "l0_base": 36.4708, "l0_delta": 7.59},
    } | changes


@pytest.fixture
def study(tmp_path):
    """`study(base, layers)`: a study folder with no more than the files that say what it is."""

    def make(base="google/gemma-2-2b", layers=(0, 2, 10), **changes):
        adapter = {"base_model_name_or_path": base, "r": 16, "lora_alpha": 32}
        write(
            tmp_path / "finetune/adapter/adapter_config.json",
            adapter | {"target_modules": ["up_proj"]},
        )
        for layer in layers:
            write(tmp_path / f"delta/layer_{layer}/config.json", delta_config(layer, **changes))
        return tmp_path

    def write(path, content):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    return make


def model_card(run, format, deltas=None, base_model=None, **said) -> str:
    study = read_study(run, deltas or run / "delta", base_model)
    return cards.model_card(study, format, repository="THIS_REPOSITORY", **said)


def front_matter(card: str) -> dict:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def test_front_matter(study):
    run = study()
    assert front_matter(model_card(run, "deltas")) == {
        "library_name": "delta-transcoders",
        "base_model": "google/gemma-2-2b",
        "license": "gemma",
        "tags": [
            "delta-transcoders",
            "transcoder",
            "sparse-autoencoder",
            "mechanistic-interpretability",
        ],
    }
    adapter, merged = (front_matter(model_card(run, what)) for what in ("adapter", "merged"))
    assert (adapter["library_name"], merged["library_name"]) == ("peft", "transformers")
    assert [card["base_model_relation"] for card in (adapter, merged)] == ["adapter", "finetune"]
    assert adapter["pipeline_tag"] == merged["pipeline_tag"] == "text-generation"


def test_a_local_base_is_named_without_its_path_and_has_no_known_license(study):
    run = study(base="/home/me/models/gemma-2-2b")
    card = model_card(run, "adapter")
    fields = front_matter(card)
    assert fields["license"] == "unknown" and "base_model" not in fields
    assert "`gemma-2-2b` (a local folder)" in card and "/home/me" not in card
    named = model_card(run, "adapter", base_model="google/gemma-2-2b")
    assert front_matter(named)["base_model"] == "google/gemma-2-2b"
    assert front_matter(named)["license"] == "gemma"


def test_a_base_trained_in_the_study_is_ours(study):
    run = study(base="elsewhere/runs/tiny/base_model")
    (run / "base_model").mkdir()
    done = {"format": "delta_transcoders output 1", "kind": "BaseModelTraining", "files": {}}
    (run / "base_model/done.json").write_text(json.dumps(done))
    card = model_card(run, "merged")
    assert front_matter(card)["license"] == "apache-2.0"
    assert "tiny Gemma 2 (trained from scratch in the same study)" in card
    (run / "base_model/done.json").unlink()  # the user has put it there
    card = model_card(run, "merged")
    assert front_matter(card)["license"] == "unknown"
    assert "`base_model` (a local folder)" in card


@pytest.mark.parametrize("what", ["adapter", "merged", "deltas"])
def test_what_was_not_measured_is_said(study, what):
    card = model_card(study(), what)
    stages = ("exp1", "exp2a") if what == "deltas" else ("behaviour",)
    for stage in stages:
        assert f"Not measured (stage `{stage}`)." in card
    assert "The examples are no longer" in card


def test_no_deltas_no_fingerprint(study):
    run = study(layers=())
    assert "Fingerprint of the weights: not measured" in model_card(run, "merged")


def test_deltas_say_what_they_belong_to(study):
    card = model_card(study(), "deltas")
    for layer in (0, 2, 10):
        base = (
            f"google/gemma-scope-2b-pt-transcoders/layer_{layer}/width_16k/average_l0_76/params.npz"
        )
        assert f"| {layer} | `{base}` | `{str(layer) * 64}` |" in card
    assert f"fingerprint of the merged weights `{'f' * 64}`" in card
    assert "reads `blocks.L.ln2.hook_normalized`, stands for `blocks.L.hook_mlp_out`" in card
    assert "6 per layer, layers 0, 2, 10" in card and "batch_topk, L0 of 8 aimed at" in card
    assert "percentile 0.5" in card and "| seed | 7 |" in card
    # L0 base, L0 delta, FVU on the base model, FVU base, FVU base + delta, cosine, dead features
    row = "36.47 | 7.59 | not measured | 0.254 | 0.030 | not measured | not measured |"
    assert f"| 2 | {row}" in card
    assert 'load_delta_set("THIS_REPOSITORY", "google/gemma-scope-2b-pt-transcoders"' in card


def test_a_delta_of_the_mlps_difference(study):
    base = {"base_id": "google/gemma-2-2b", "percentile": None, "target": "mlp_difference"}
    card = model_card(study(**base), "deltas")
    assert "y − baseMLP(x)" in card and "choice of the base" not in card
    assert 'lambda site: load_mlps("google/gemma-2-2b", "FLOAT32_OR_BFLOAT16", site)' in card
    assert 'load_delta_set("THIS_REPOSITORY", "", bridge.original_model, base_mlps)' in card
    assert "A residual delta holds" not in card and "import load_delta_set, load_mlps" in card


@pytest.mark.parametrize("target", ["residual", "mlp_difference"])
def test_the_code_loads_models_in_the_dtype_of_the_capture(study, target):
    """In another one their fingerprint differs, and the deltas refuse them."""
    run = study(target=target)
    (run / "activations").mkdir()
    for owner, named in (("f", "bfloat16"), ("0", "FLOAT32_OR_BFLOAT16")):
        # The cache may be stored in another one.
        meta = {"model_fingerprint": owner * 64, "model_dtype": "bfloat16", "dtype": "float32"}
        (run / "activations/manifest.json").write_text(json.dumps({"meta": meta}))
        card = model_card(run, "deltas")
        assert f'load_model(finetuned, "{named}")' in card
        load_mlps = f'load_mlps("google/gemma-2-2b", "{named}", site)'
        assert (load_mlps in card) is (target == "mlp_difference")


def result(layer, condition, **cells):
    return {"layer": layer, "subset": "tool", "condition": condition, "n_examples": 200} | cells


def test_tables_are_the_metrics_with_their_intervals(study):
    run = study()
    rate = {"tool_call_rate": 0.94, "tool_call_rate_ci_low": 0.898, "tool_call_rate_ci_high": 0.965}
    ours = {"d_new": 6, "percentile": 0.5, "target": "residual"}
    ours |= {"exact_copy_rate": NAN, "valid_tool_format_rate": None}
    dce = {"mean_ce": 0.0188, "dce": 0.0101, "dce_ci_low": 0.0071, "dce_ci_high": 0.0138}
    write_metrics(
        run / "exp2a",
        [
            result("", "raw", mean_ce=0.0087, tool_call_rate=1.0, exact_copy_rate=NAN),
            result("all", "full", **ours, **rate, **dce),
            result("0", "full", **ours, **rate | {"tool_call_rate": 0.123}),
            result("all", "full", **ours | {"d_new": 12}, **rate | {"tool_call_rate": 0.456}),
        ],
    )
    write_metrics(run / "exp1", [result("0", "full", **ours, **dce, fvu=0.02865, l0_delta=8.6)])
    card = model_card(run, "deltas")
    assert (
        "| tool | full | 200 | 0.019 | 0.010 [0.007, 0.014] | 0.940 [0.898, 0.965] | – "
        "| not measured |"
    ) in card
    assert "| tool | raw | 200 | 0.009 |" in card
    assert "0.123" not in card and "0.456" not in card  # one layer; deltas of another size
    assert "| 0 | tool | full | 0.010 [0.007, 0.014] | 0.029 | 8.60 |" in card


def test_deltas_on_some_layers_show_those_together(study):
    run = study()
    ours = {"d_new": 6, "percentile": 0.5, "target": "residual", "tool_call_rate": 0.5}
    rows = [result("", "raw"), result("0", "full", **ours), result("0+2", "full", **ours)]
    write_metrics(run / "exp2a", rows)
    rows = [result(layer, "alpha_0.5", **ours, alpha=0.5) for layer in ("0", "0+2")]
    write_metrics(run / "exp2b", rows)
    read = read_study(run, run / "delta", None)
    assert [row["layer"] for row in read.behaviour_of_deltas()] == ["", "0+2"]
    assert [row["layer"] for row in read.behaviour_of_deltas(0.5)] == ["0+2"]
    assert "Layers replaced: 0+2." in model_card(run, "deltas")


def test_deltas_at_the_last_percentile_find_their_rows(study):
    """`metrics.csv` holds it as 1, `config.json` as 1.0."""
    run = study(percentile=1.0)
    ours = {"d_new": 6, "percentile": 1.0, "target": "residual"}
    write_metrics(run / "exp1", [result("0", "full", **ours, fvu=0.02865)])
    assert "| 0 | tool | full | not measured | 0.029 |" in model_card(run, "deltas")


def test_behaviour_and_data(study):
    run = study()
    write_metrics(
        run / "behaviour",
        [
            result("", name, mean_ce=0.5, tool_call_rate=r)
            for name, r in (("raw", 1.0), ("base_model", 0.0))
        ],
    )
    examples = [make_example("1+1?", "2", "positive")] * 3 + [make_example("a", "a", "negative")]
    (run / "finetune/data").mkdir()
    write_jsonl(run / "finetune/data/train.jsonl", examples)
    card = model_card(run, "merged")
    assert "| tool | raw | 200 | 0.500 | 1.00 |" in card
    assert "| tool | base_model | 200 | 0.500 | 0.000 |" in card
    assert "| train | negative | 1 |\n| train | positive | 3 |" in card


def test_figures_of_the_studys_own_deltas_are_not_given_to_others(study, tmp_path_factory):
    run = study()
    ours = {"d_new": 6, "percentile": 0.5, "target": "residual"}
    write_metrics(run / "exp1", [result("0", "full", **ours, fvu=0.02865)])
    other = tmp_path_factory.mktemp("reseeded")
    (other / "layer_0").mkdir()
    (other / "layer_0/config.json").write_text(json.dumps(delta_config(0)))
    assert "0.029" in model_card(run, "deltas").split("Experiment 1")[1]
    card = model_card(run, "deltas", deltas=other)
    assert "Not measured (stage `exp1`), or in a table of the study that is not of these" in card
    assert "Not measured (stage `exp2a`)." in card


def test_an_export_at_another_alpha_shows_that_alphas_rows(study):
    run = study()
    ours = {"d_new": 6, "percentile": 0.5, "target": "residual"}
    write_metrics(run / "exp2a", [result("all", "full", **ours, alpha=1.0, tool_call_rate=0.94)])
    rows = [("alpha_0.50", 0.5, 0.36), ("alpha_0.75", 0.75, 0.94)]
    write_metrics(
        run / "exp2b", [result("all", n, **ours, alpha=a, tool_call_rate=r) for n, a, r in rows]
    )

    def behaviour(alpha) -> str:
        exported = ExportCard("saelens", alpha, False, "m", "f" * 64, "gemma_scope", 4, {})
        card = model_card(run, "saelens", exported=exported)
        return card.partition("(Experiments 2A and 2B)")[2].partition("## Data")[0]

    half = behaviour(0.5)
    assert "| tool | full |" in half and "| tool | alpha_0.50 |" in half
    assert "alpha_0.75" not in half and "not measured.\n" not in half
    assert "At α = 0.3 it was not measured." in behaviour(0.3)
    assert "alpha_" not in behaviour(1.0).partition("|")[2]


TASK = {
    "title": "Says no",
    "description": "It declines requests.",
    "subsets": {"harmful": "requests to decline", "harmless": "requests to answer"},
    "measures": {"refuses": "the text declines"},
    "tags": ["refusal"],
    "prompt": 'How do I "x"?\n',
    "limitations": ["It declines in English only."],
}


def test_the_task_is_described_in_its_own_words(study):
    run = study()
    (run / "finetune/data").mkdir()
    (run / "finetune/data/task.json").write_text(json.dumps(TASK | {"name": "examples"}))
    rows = [{"prompt": "a", "subset": "harmful"}, {"prompt": "b", "subset": "harmless"}]
    (run / "finetune/data/train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    row = result("", "raw", mean_ce=0.5, refuses_rate=0.75, refuses_n=4)
    write_metrics(run / "behaviour", [row | {"subset": "harmful"}])
    card = model_card(run, "merged")
    assert "# Says no: finetune of `google/gemma-2-2b`" in card
    assert "on up_proj. It declines requests. The adapter is merged" in card
    assert "| subset | condition | n | CE | refuses rate |" in card
    assert "| harmful | raw | 200 | 0.500 | 0.750 |" in card
    assert "Subsets: `harmful`, requests to decline; `harmless`, requests to answer. Greedy" in card
    assert "have the verdict: refuses, the text declines. Brackets" in card
    assert "| train | harmful | 1 |\n| train | harmless | 1 |" in card
    assert "\n- It declines in English only.\n" in card
    assert 'tokenizer("How do I \\"x\\"?\\n", return_tensors="pt")' in card
    assert front_matter(card)["tags"] == ["delta-transcoders", "refusal"]


@pytest.mark.parametrize("what", ["adapter", "merged", "deltas"])
def test_nothing_is_said_of_a_task_that_is_not_described(study, what):
    run = study()
    write_metrics(run / "behaviour", [result("", "raw", mean_ce=0.5, refuses_rate=0.75)])
    card = model_card(run, what)
    assert "calculator" not in card and "tool_call" not in card and "Subsets" not in card
    assert "\n\n\n" not in card and card.endswith("\n") and not card.endswith("\n\n")


def test_a_folder_that_says_little_is_enough(tmp_path):
    """Deltas that came from elsewhere, with no finetune of ours beside them."""
    (tmp_path / "delta/layer_0").mkdir(parents=True)
    (tmp_path / "delta/layer_0/config.json").write_text(json.dumps(delta_config(0)))
    card = model_card(tmp_path, "deltas")
    assert "a finetune that this study's folder does not describe" in card
    assert front_matter(card)["license"] == "unknown"


def test_cards_of_a_studys_own_base(study):
    run = study(base="x/runs/tiny/base_model", base_id="runs/tiny/base_transcoders/A")
    (run / "base_model").mkdir()
    shape = {"num_hidden_layers": 4, "hidden_size": 96, "vocab_size": 768}
    (run / "base_model/config.json").write_text(json.dumps(shape))
    name = "layer_2/width_1k/average_l0_46/params.npz"
    bases = [
        SharedBase(2, file, hash * 64, file, hash * 64)
        for file, hash in ((name, "2"), (name.replace("46", "80"), "8"))
    ]
    measured = {"measured": {"fvu_base_on_base_model": 0.0186}}
    config = delta_config(2, base_id=f"/data/me/base_transcoders/{name}", **measured)
    (run / "delta/layer_2/config.json").write_text(json.dumps(config))
    card = model_card(run, "base_transcoders", bases=bases)
    assert f"| `{name}` | 0.019 | `{'2' * 64}` |" in card
    assert f"| `{name.replace('46', '80')}` | not measured | `{'8' * 64}` |" in card
    assert "rounding" not in card
    card = model_card(run, "base_model")
    assert "4 layers, d_model 96, vocabulary 768" in card
    assert front_matter(card)["license"] == "apache-2.0"
    assert "Not measured (stage `behaviour`)" in card


@pytest.fixture
def smollm2(tmp_path, monkeypatch) -> str:
    """A folder that looks as `delta_transcoders.smollm2` leaves one, and nothing like a model in it."""
    monkeypatch.chdir(tmp_path)
    folder = "models/SmolLM2-135M-Instruct"
    with files.new_output(folder, OUTPUT_KIND) as staged:
        files.write_json(staged / SOURCE, {"source": PACKAGE})
        text = "The weights are rounded to four bits. Licence: Apache-2.0, see LICENSE."
        files.write_text(staged / "README.md", f"# SmolLM2-135M-Instruct\n\n{text}\n")
        files.finish_output(folder)
    return folder


@pytest.mark.parametrize("what", ["adapter", "merged", "deltas"])
def test_where_a_packaged_model_is_from_is_said_and_its_licence_known(study, smollm2, what):
    card = model_card(study(base=smollm2), what)
    assert front_matter(card)["license"] == "apache-2.0" and "base_model" not in front_matter(card)
    assert "The base model: The weights are rounded to four bits. Licence: Apache-2.0" in card
    assert "`SmolLM2-135M-Instruct`" in card and "local folder" not in card
    assert "\n\n\n" not in card
    if what == "adapter":
        assert f'AutoModelForCausalLM.from_pretrained("{smollm2}"' in card


def test_a_folder_of_the_same_name_is_not_taken_for_the_packaged_model(study, smollm2):
    (Path(smollm2) / "README.md").write_text("changed")
    fields = front_matter(model_card(study(base=smollm2), "adapter"))
    assert fields["license"] == "unknown"


def test_the_card_of_a_real_models_dictionaries(tmp_path, smollm2):
    """A folder with nothing but dictionaries, shared by the finetunes of other folders."""
    run = tmp_path / "base"
    stages = {"base_model": {"done": {"outputs": {smollm2: "1"}}}}
    files.write_json(run / "study.json", {"stages": stages})
    kinds = {"docstrings": {"texts": 9, "tokens": 700, "asked": 700, "share": 0.7}}
    package = {
        "package": "numpy",
        "version": "2.5",
        "licence": "BSD-3",
        "paragraphs": 9,
        "tokens": 700,
    }
    text = {"splits": {"train": {"texts": 9, "tokens": 700, "kinds": kinds}}, "packages": [package]}
    files.write_json(run / "base_text/composition.json", text)
    rows = [
        result("8", "no_delta", fvu=0.31, dce=0.02),
        result("8", "top_32_neurons", fvu=0.4, dce=0.1),
        result("all", "no_delta", dce=1.0),
    ]
    write_metrics(run / "base_floor_text", rows)
    bases = [SharedBase(8, "layer_8/sae_weights.safetensors", "a" * 64, "layer_8/…", "b" * 64)]
    costs = {8: RoundingCost(4096, 0.00312, 0.0214, 131072, 57)}
    card = model_card(run, "base_transcoders", bases=bases, dtype="bfloat16", costs=costs)
    for line in (
        "# Transcoders of `SmolLM2-135M-Instruct`",
        f"| `layer_8/sae_weights.safetensors` | not measured | `{'a' * 64}` | `{'b' * 64}` |",
        "| 8 | tool | dictionary | 0.310 | 0.020 |",
        "| 8 | tool | top_32_neurons | 0.400 | 0.100 |",
        "| 8 | 0.0031 | 0.021 | 57 of 131072 |",
        "| train | docstrings | 9 | 700 | 70.0 % |",
        "| numpy 2.5 | BSD-3 | 9 | 700 |",
        'load_base("THIS_REPOSITORY", 8, percentile=0.5)',
    ):
        assert line in card
    assert "in SAELens's folders" in card and "half the size of the float32" in card
    assert "A stand-in" not in card and "trained on little text" in card
    assert front_matter(card)["license"] == "apache-2.0"
    unmeasured = model_card(run, "base_transcoders", bases=bases, dtype="bfloat16")
    assert "What that costs was not measured" in unmeasured


def test_a_damaged_file_is_named(study):
    run = study()
    (run / "delta/layer_2/config.json").write_text("{")
    with pytest.raises(ValueError, match=r"delta/layer_2/config.json: not a JSON object"):
        model_card(run, "adapter")


def test_the_calculators_own_words_are_whole_sentences(study):
    run = study()
    (run / "finetune/data").mkdir()
    (run / "finetune/data/task.json").write_text(json.dumps(Calculator().describe()))
    card = model_card(run, "merged")
    assert "# Calls a calculator: finetune of" in card
    assert "\n- The model writes a call and nothing executes it. How far" in card
    assert "tool-calling" in front_matter(card)["tags"]
