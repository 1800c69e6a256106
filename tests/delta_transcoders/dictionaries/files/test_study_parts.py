"""A study's own parts: what is shared loads again, and is refused where it does not belong."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import transformers as hf
from huggingface_hub import metadata_load

from delta_transcoders.activations.cache import ActivationCache
from delta_transcoders.dictionaries.bases import load_base
from delta_transcoders.dictionaries.delta import load_base_of, load_deltas, save_delta
from delta_transcoders.dictionaries.files import PARTS
from delta_transcoders.dictionaries.files.gemma_scope import save_base
from delta_transcoders.dictionaries.files.rounding import rounded, rounding_cost
from delta_transcoders.dictionaries.files.study_parts import part_folder, save_model
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.export import export
from delta_transcoders.fingerprints import model_fingerprint
from delta_transcoders.interventions.loading import load_control, load_delta_set
from delta_transcoders.language_models import load_model, load_tokenizer


@pytest.fixture
def merged(dictionaries):
    return load_model(str(dictionaries / "finetune/merged"))


@pytest.fixture
def bases(dictionaries):
    return str(dictionaries / "base_transcoders")


@pytest.fixture
def pushed(dictionaries, hub, tmp_path):
    """Hub id of the study's deltas."""
    export(dictionaries, "deltas", tmp_path / "deltas", push_to_hub="user/deltas")
    return "user/deltas"


@pytest.fixture
def shared(dictionaries, tmp_path):
    """Folders of all parts."""
    for part in PARTS:
        export(dictionaries, part, tmp_path / "shared" / part)
    return tmp_path / "shared"


def test_pushed_deltas_load_by_their_hub_id(dictionaries, pushed, merged, bases):
    loaded = load_delta_set(pushed, bases, merged)
    local = load_delta_set(dictionaries / "delta", bases, merged)
    assert (loaded.label, loaded.site, list(loaded.layers)) == (local.label, local.site, [0, 1])
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    for name in ("base", "delta"):
        for layer in loaded.layers:
            got, want = (s.sources[name][layer](x, None)[0] for s in (loaded, local))
            assert torch.equal(got, want)
    assert list(load_control(pushed, local.site, 32)) == [0, 1]


def test_a_stranger_needs_nothing_but_what_was_shared(shared):
    """Base model and adapter, base dictionaries and deltas fit together, with no folder of the study."""
    from peft import PeftModel

    base = load_model(str(shared / "base_model"))
    PeftModel.from_pretrained(base, str(shared / "adapter"))
    merged = load_model(str(shared / "merged"))
    deltas = load_delta_set(shared / "deltas", str(shared / "base_transcoders"), merged)
    assert list(deltas.layers) == [0, 1]


@pytest.mark.parametrize("part", ["merged", "base_model"])
def test_a_shared_model_is_the_model_and_older_readers_take_it(dictionaries, shared, part):
    source = dictionaries / {"merged": "finetune/merged"}.get(part, part)
    texts = ["7*8", "<start_of_turn>What is 12 * 34?<end_of_turn>\n<tool_call>"]
    for text in texts:
        ids = [load_tokenizer(str(f))(text).input_ids for f in (source, shared / part)]
        assert ids[0] == ids[1]
        models = [load_model(str(folder)) for folder in (source, shared / part)]
        with torch.inference_mode():
            got, want = (model(torch.tensor([ids[0]])).logits for model in models)
        assert torch.equal(got, want)
    config = json.loads((shared / part / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    tokenizer = json.loads((shared / part / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["additional_special_tokens"] == ["<start_of_turn>", "<end_of_turn>"]


def test_the_adapter_gives_the_same_model(dictionaries, shared):
    from peft import PeftModel

    config = json.loads((shared / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base_model"
    adapted, wanted = (
        PeftModel.from_pretrained(load_model(str(dictionaries / "base_model")), str(folder))
        for folder in (shared / "adapter", dictionaries / "finetune/adapter")
    )
    for got, want in zip(adapted.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(got, want)


def test_base_dictionaries_keep_their_bytes(dictionaries, shared):
    files = sorted((dictionaries / "base_transcoders").rglob("params.npz"))
    assert len(files) == 2
    for path in files:
        copy = shared / path.relative_to(dictionaries)
        assert copy.read_bytes() == path.read_bytes()


def test_rounded_parts_fit_together_and_say_what_rounding_costs(
    dictionaries, merged, hub, tmp_path
):
    """bfloat16 on the hub: the deltas name the rounded bases, and no others fit."""
    out = tmp_path / "out"
    export(dictionaries, "base_transcoders", out, dtype="bfloat16", push_to_hub="user/bases")
    options = {"dtype": "bfloat16", "base_repository": "user/bases"}
    export(dictionaries, "deltas", tmp_path / "deltas", push_to_hub="user/deltas", **options)
    loaded = load_delta_set("user/deltas", str(hub.root / "user/bases"), merged)
    x = ActivationCache(dictionaries / "activations").load("validation", 1, ["x"])["x"].float()
    for layer, (path, delta, config) in load_deltas(dictionaries / "delta").items():
        base, _ = load_base_of(path, config, str(dictionaries / "base_transcoders"))
        assert not (base.threshold < 0).any()
        for name, exact in (("base", base), ("delta", delta)):
            tensors = {n: t.bfloat16().float() for n, t in exact.state_dict().items()}
            got = loaded.sources[name][layer](x, None)[0]
            assert torch.equal(got, Transcoder(**tensors)(x))
            assert not torch.equal(got, exact(x))
        shared = load_deltas(hub.root / "user/deltas")[layer][2]
        assert shared.base_id == f"user/bases/layer_{layer}/sae_weights.safetensors"
        assert replace(shared, **{n: getattr(config, n) for n in BASE}) == config
    halves = [dictionaries / "base_transcoders", hub.root / "user/bases"]
    sizes = [sum(p.stat().st_size for p in f.rglob("*") if p.suffix in WEIGHTS) for f in halves]
    assert sizes[1] < 0.55 * sizes[0]
    with pytest.raises(ValueError, match="holds no dictionary whose path ends like user/bases"):
        load_delta_set("user/deltas", str(dictionaries / "base_transcoders"), merged)

    card = (out / "README.md").read_text()
    hashes = [load_base(f, 1, percentile=0.5)[1].hash for f in (hub.root / "user/bases", halves[0])]
    assert (
        f"| `{hashes[0]}` | `{hashes[1]}` |" in card and "What rounding to bfloat16 costs" in card
    )
    cache = ActivationCache(dictionaries / "base_activations")
    x = cache.load("validation", 1, ["x"])["x"][:4096]
    cost = rounding_cost(base, load_base(hub.root / "user/bases", 1)[0], x)
    assert 0 < cost.overall < cost.worst and 0 < cost.n_changed < cost.n_active
    row = f"{cost.overall:.2g} | {cost.worst:.2g} | {cost.n_changed} of {cost.n_active}"
    assert f"| 1 | {row} |" in card
    card = (tmp_path / "deltas/README.md").read_text()
    assert '"user/bases", bridge.original_model)' in card
    assert f"| `{delta.fingerprint()}` |" in card  # as it was trained


BASE = ("base_id", "base_file", "base_hash")
WEIGHTS = (".npz", ".safetensors")


def test_what_rounding_costs_by_hand():
    """One feature whose threshold lies between a number and what it is rounded to."""
    weight = torch.tensor([[1.001953125]])  # 1 + 2^-9, which bfloat16 has not
    zero = torch.zeros(1)
    tensors = {"W_enc": weight, "b_enc": zero, "W_dec": torch.ones(1, 1), "b_dec": zero}
    exact = Transcoder(**tensors, threshold=torch.ones(1))
    cost = rounding_cost(exact, rounded(exact, "bfloat16"), torch.tensor([[1.0], [2.0]]))
    assert (cost.n_tokens, cost.n_active, cost.n_changed) == (2, 2, 1)
    y = torch.tensor([1.001953125, 2.00390625])
    off = torch.tensor([1.001953125, 0.00390625])  # the first falls silent, the second is rounded
    assert cost.overall == pytest.approx((off.norm() / y.norm()).item())
    assert cost.worst == pytest.approx((off[0] / y.square().mean().sqrt()).item())


def test_without_held_out_tokens_the_cost_of_rounding_is_not_invented(dictionaries, tmp_path):
    run = tmp_path / "study"
    for part in ("delta", "finetune", "base_transcoders"):
        (run / part).parent.mkdir(exist_ok=True)
        (run / part).symlink_to(dictionaries / part)
    out = export(run, "deltas", tmp_path / "out", dtype="bfloat16")
    assert "What that costs was not measured" in (out / "README.md").read_text()
    assert load_deltas(out)[0][2].base_hash == load_deltas(run / "delta")[0][2].base_hash
    (run / "delta").unlink()
    with pytest.raises(ValueError, match="which name a hook site, and nothing beside"):
        export(run, "base_transcoders", tmp_path / "bases", dtype="bfloat16")


def test_rounded_bases_are_one_a_layer(dictionaries, tmp_path):
    run = tmp_path / "study"
    shutil.copytree(dictionaries / "base_transcoders", run / "base_transcoders")
    base, _ = load_base(run / "base_transcoders", 0, percentile=0.5)
    save_base(run / "base_transcoders", 0, base, 3)
    with pytest.raises(ValueError, match="several dictionaries of layer 0, and --dtype bfloat16"):
        export(run, "base_transcoders", tmp_path / "out", dtype="bfloat16")
    assert not (tmp_path / "out").exists()


def test_no_name_of_this_machine_is_shared(dictionaries, shared, tmp_path):
    for format in ("gemma_scope", "saelens", "circuit_tracer"):
        export(dictionaries, format, shared / format)
    texts = [p for p in shared.rglob("*") if p.suffix in (".json", ".yaml", ".md")]
    assert len(texts) > 25
    for path in texts:
        assert str(dictionaries) not in path.read_text(), path


# Cards


@pytest.fixture
def names(dictionaries):
    """What stands for the names in a card's code."""
    return {
        "FINETUNED_MODEL": dictionaries / "finetune/merged",
        "FOLDER_OF_THE_BASE_DICTIONARIES": dictionaries / "base_transcoders",
        "FOLDER_OF_THE_BASE_MODEL": dictionaries / "base_model",
    }


@pytest.mark.parametrize("format", [*PARTS, "gemma_scope"])
def test_the_cards_code_runs_as_it_is_written(
    dictionaries, tmp_path, capsys, names, run_card, format
):
    run_card(export(dictionaries, format, tmp_path / format), **names)
    assert capsys.readouterr().out


def test_the_cards_code_for_deltas_of_a_model_in_bfloat16(
    dictionaries, tmp_path, capsys, names, run_card
):
    study = shutil.copytree(dictionaries, tmp_path / "study")
    fingerprint = model_fingerprint(load_model(str(study / "finetune/merged"), "bfloat16"))
    for path, delta, config in load_deltas(study / "delta").values():
        save_delta(path, delta, replace(config, model_fingerprint=fingerprint))
    manifest = study / "activations/manifest.json"
    content = json.loads(manifest.read_text())
    assert content["meta"]["model_dtype"] == "float32"
    content["meta"] |= {"model_fingerprint": fingerprint, "model_dtype": "bfloat16"}
    manifest.write_text(json.dumps(content))
    run_card(export(study, "deltas", tmp_path / "out"), **names)
    assert capsys.readouterr().out


def test_the_cards_code_for_deltas_on_the_base_models_mlp(
    dictionaries, tmp_path, capsys, names, run_card
):
    base_model = load_model(str(dictionaries / "base_model"))
    for layer, (_, delta, config) in load_deltas(dictionaries / "delta").items():
        changed = replace(
            config,
            target="mlp_difference",
            base_id="base_model",
            base_hash=model_fingerprint(base_model),
            percentile=None,
            average_l0_base=None,
        )
        save_delta(tmp_path / f"mlp_difference/layer_{layer}", delta, changed)
    out = export(dictionaries, "deltas", tmp_path / "out", deltas=tmp_path / "mlp_difference")
    run_card(out, **names)
    assert capsys.readouterr().out


def test_a_pushed_card_names_its_repository_and_no_local_folder(dictionaries, hub, pushed):
    card = hub.root / pushed / "README.md"
    assert 'load_delta_set("user/deltas", "FOLDER_OF_THE_BASE_DICTIONARIES"' in card.read_text()
    assert "THIS_REPOSITORY" not in card.read_text()
    fields = metadata_load(card)
    assert (fields["library_name"], fields["license"]) == ("delta-transcoders", "apache-2.0")
    assert "base_model" not in fields  # a local folder, which the hub does not know


# Refused


def test_a_wrong_model_or_base_is_refused_after_the_round_trip(
    dictionaries, pushed, merged, bases, tmp_path
):
    other = load_model(str(dictionaries / "base_model"))
    assert model_fingerprint(other) != model_fingerprint(merged)
    with pytest.raises(ValueError, match=r"layer_0 was trained on another model: hash"):
        load_delta_set(pushed, bases, other)
    for layer in (0, 1):
        base, base_id = load_base(bases, layer, percentile=0.5)
        base.b_dec = base.b_dec + 1
        save_base(tmp_path / "bases", layer, base, base_id.average_l0)
    with pytest.raises(ValueError, match=r"layer_0 was trained on another base dictionary: hash"):
        load_delta_set(pushed, str(tmp_path / "bases"), merged)


@pytest.mark.parametrize(
    ("part", "missing", "message"),
    [
        ("deltas", "delta", r"delta has no layer_\*/config.json: run .*STUDY/delta.yaml --study"),
        ("merged", "finetune/merged/tokenizer.json", r"merged has no tokenizer.json: .*lora.yaml"),
        ("adapter", "finetune/adapter/adapter_model.safetensors", "no adapter_model.safetensors"),
        ("base_model", "base_model", r"base_model has no config.json: .*base_model.yaml"),
        ("base_transcoders", "base_transcoders", r"has no layer_.*/base_transcoder.yaml"),
    ],
)
def test_a_missing_stage(dictionaries, tmp_path, part, missing, message):
    study = shutil.copytree(
        dictionaries, tmp_path / "study", ignore=shutil.ignore_patterns("*activations", "logs")
    )
    if (study / missing).is_dir():
        shutil.rmtree(study / missing)
    else:
        (study / missing).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        export(study, part, tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


def test_a_missing_delta_of_a_model_of_one_s_own(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "models.json").write_text("{}")
    (tmp_path / "study.json").write_text('{"file": "mine.yaml"}')
    with pytest.raises(
        FileNotFoundError, match=r"run `python study\.py --config mine\.yaml --study"
    ):
        part_folder(tmp_path, "deltas")


def test_deltas_of_two_models_are_not_shared_as_one(dictionaries, tmp_path):
    study = shutil.copytree(dictionaries, tmp_path / "study")
    path = study / "delta/layer_1/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_fingerprint": "0" * 64}))
    with pytest.raises(ValueError, match="model_fingerprint differs between layers"):
        export(study, "deltas", tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


def test_an_absent_source_of_deltas(hub, merged, bases):
    with pytest.raises(ConnectionError, match=r"'user/none' is neither .*`hf download user/none"):
        load_delta_set("user/none", bases, merged)
    for source in ("runs/none", "./none", "none"):
        with pytest.raises(FileNotFoundError, match=f"no folder '{source}'"):
            load_delta_set(source, bases, merged)


LLAMA_ROPE = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA_ROPE |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}
LINEAR, PLAIN = ({"rope_type": name, "rope_theta": 100.0} for name in ("linear", "default"))
GEMMA_ROPE = {"full_attention": LINEAR | {"factor": 8.0}, "sliding_attention": PLAIN}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Llama", {"rope_parameters": LLAMA_ROPE}),
        ("Gemma3", {"rope_parameters": GEMMA_ROPE, "layer_types": list(GEMMA_ROPE)}),
    ],
)
def test_a_models_positions_are_the_same_after_writing(study, tmp_path, kind, options):
    """The old names stand beside the new ones, and change nothing for readers of the new ones."""
    name = {"Gemma3": "Gemma3TextConfig"}.get(kind, f"{kind}Config")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 400}
    model = hf.AutoModelForCausalLM.from_config(getattr(hf, name)(**sizes, **options))
    model.save_pretrained(tmp_path / "model")
    load_tokenizer(str(study / "base_model")).save_pretrained(tmp_path / "model")
    save_model(tmp_path / "shared", tmp_path / "model")
    ids = torch.arange(30)[None]
    found = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "shared")
    with torch.inference_mode():
        torch.testing.assert_close(found(ids).logits, model.eval()(ids).logits)
    config = json.loads((tmp_path / "shared" / "config.json").read_text())
    assert config["rope_theta"] == 100
    assert config["rope_scaling"]["factor"] == 8
    assert config.get("rope_local_base_freq") == {"Gemma3": 100}.get(kind)
