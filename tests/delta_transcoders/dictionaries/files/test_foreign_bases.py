"""Base dictionaries from SAELens and circuit-tracer: round trips, and every refusal."""

import json
import pickle
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from delta_transcoders.dictionaries.bases import available_l0s, held, load_base
from delta_transcoders.dictionaries.files import circuit_tracer, saelens
from delta_transcoders.dictionaries.files.tensors import for_other_tools
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.export import export
from delta_transcoders.families.sites import HOOK_SITES
from delta_transcoders.import_dictionaries import import_bases, main

SITE = HOOK_SITES["gemma_scope"]
FOREIGN = ("saelens", "circuit_tracer")
WEIGHTS = {"saelens": "layer_1/sae_weights.safetensors", "circuit_tracer": "layer_1.safetensors"}
CONFIG = {"saelens": "layer_1/cfg.json", "circuit_tracer": "config.yaml"}
THRESHOLD = {"saelens": "threshold", "circuit_tracer": "activation_function.threshold"}


def save(folder: Path, format: str, dictionaries: dict[int, Transcoder]) -> Path:
    folder.mkdir(exist_ok=True)
    for layer, dictionary in dictionaries.items():
        if format == "saelens":
            saelens.save_layer(folder, layer, dictionary, SITE, "tiny", "finetuned", True)
        else:
            circuit_tracer.save_layer(folder, layer, dictionary)
    if format == "circuit_tracer":
        circuit_tracer.save_config(folder, SITE, "tiny", "finetuned", True)
    return folder


@pytest.fixture(params=FOREIGN)
def format(request):
    return request.param


@pytest.fixture
def bases(random_study):
    """Three layers, 40 features wide or 48."""
    return {layer: for_other_tools(base, SITE) for layer, base in random_study.bases.items()}


@pytest.fixture
def source(tmp_path, format, bases) -> Path:
    return save(tmp_path / "source", format, bases)


def test_a_foreign_folder_becomes_base_dictionaries(source, format, bases, tmp_path):
    out = import_bases(format, source, tmp_path / "out", average_l0=12, d_model=32)
    for layer, base in bases.items():
        read, base_id = load_base(out, layer, average_l0=12, d_model=32)
        assert base_id.width == base.n_features
        for name, tensor in base.state_dict().items():
            assert torch.equal(read.state_dict()[name], tensor)


def test_there_and_back_is_the_same_bytes(source, format, tmp_path):
    read = {entry.layer: load_base(source, entry.layer)[0] for entry in held(source)}
    again = save(tmp_path / "again", format, read)
    files = [p.relative_to(source) for p in source.rglob("*") if p.is_file()]
    assert len(files) == {"saelens": 6, "circuit_tracer": 4}[format]
    for file in files:
        assert (again / file).read_bytes() == (source / file).read_bytes()


def test_every_format_of_an_export_is_the_same_dictionary(random_study, tmp_path):
    """From each foreign format to the bytes that are exported as Gemma Scope's files."""
    study = {"run": random_study.folder, "model": random_study.model, "alpha": 0.5}
    scope = export(format="gemma_scope", out=tmp_path / "scope", **study)
    for format in FOREIGN:
        export(format=format, out=tmp_path / format, **study)
        # The circuit-tracer set has another layer and padding: only its widest layer is as it was.
        import_bases(format, tmp_path / format, tmp_path / f"{format}_read", layers=[2])
        (path,) = scope.glob("layer_2/*/*/params.npz")
        same = tmp_path / f"{format}_read" / path.relative_to(scope)
        assert same.read_bytes() == path.read_bytes()


def test_a_circuit_tracer_set_names_hooks_that_the_tool_knows_for_its_family(tmp_path):
    """Those of published sets: without a norm after the MLP, both names are one tensor."""
    found = {}
    for site in ("gemma_scope", "after_gain", "residual", "original"):
        for post_norm in (True, False):
            circuit_tracer.save_config(tmp_path, HOOK_SITES[site], "base", "finetuned", post_norm)
            config = yaml.safe_load((tmp_path / "config.yaml").read_text())
            hooks = config["feature_input_hook"], config["feature_output_hook"]
            found[site, post_norm] = hooks
    reads = {"gemma_scope": "ln2.hook_normalized", "after_gain": "mlp.hook_in"}
    assert found == {
        (site, post_norm): (
            reads.get(site, "hook_resid_mid"),
            "hook_mlp_out" if post_norm else "mlp.hook_out",
        )
        for site, post_norm in found
    }


def test_half_precision_is_read_exactly(source, format, bases, tmp_path):
    path = source / WEIGHTS[format]
    halves = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(halves, path)
    out = import_bases(format, source, tmp_path / "out", average_l0=12)
    read, _ = load_base(out, 1, average_l0=12)
    assert torch.equal(read.W_dec, bases[1].W_dec.bfloat16().float())


def test_listed_files_count_from_their_folder(bases, tmp_path, monkeypatch):
    source = save(tmp_path / "source", "circuit_tracer", {0: bases[0]})
    (source / "layer_0.safetensors").rename(source / "first.safetensors")
    config = yaml.safe_load((source / "config.yaml").read_text())
    config["transcoders"] = ["first.safetensors"]
    (source / "config.yaml").write_text(yaml.safe_dump(config))
    out = import_bases("circuit_tracer", source, tmp_path / "out", average_l0=3)
    assert available_l0s(out, 0, 40) == [3]
    config["transcoders"] = ["hf://owner/name/first.safetensors"]
    (source / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"hf://owner/name/first\.safetensors; download it"):
        import_bases("circuit_tracer", source, tmp_path / "other", average_l0=3)


# Refusals


def edit_tensors(source: Path, format: str, edit) -> None:
    path = source / WEIGHTS[format]
    tensors = load_file(path)
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


@pytest.mark.parametrize("name", ["W_enc", "W_dec"])
def test_a_transposed_matrix(source, format, tmp_path, name):
    edit_tensors(source, format, lambda t: t.update({name: t[name].T}))
    right = {"W_enc": "32, 40" if format == "saelens" else "40, 32", "W_dec": "40, 32"}[name]
    with pytest.raises(ValueError, match=rf"{name} .*expected \[{right}\] .*transposed") as error:
        import_bases(format, source, tmp_path / "out", average_l0=12)
    assert str(source / WEIGHTS[format]) in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t, _: t.pop("W_dec"), "W_dec is missing"),
        (
            lambda t, threshold: t.update({threshold: torch.zeros(39)}),
            r"{threshold} has shape \[39\], expected \[40\]",
        ),
        (lambda t, _: t["b_dec"].fill_(torch.nan), "b_dec .* holds NaN"),
        (lambda t, _: t["W_enc"].fill_(torch.inf), "W_enc .* holds NaN or infinite"),
        (lambda t, _: t.update(b_enc=torch.zeros(40, dtype=torch.int32)), "b_enc has dtype"),
        (lambda t, _: t.update(W_out=torch.zeros(32, 32)), "unexpected tensor W_out"),
        (lambda t, _: t.update(b_enc=t["b_enc"].double()), "b_enc has dtype torch.float64"),
        (lambda t, _: t.pop("b_dec"), "b_dec is missing"),
        (lambda t, _: t.update(b_enc=torch.zeros(40, 1)), "b_enc .*(vector|expected)"),
    ],
)
def test_tensors_that_do_not_fit(source, format, tmp_path, edit, message):
    threshold = THRESHOLD[format]
    edit_tensors(source, format, lambda t: edit(t, threshold))
    with pytest.raises(ValueError, match=message.replace("{threshold}", threshold)):
        import_bases(format, source, tmp_path / "out", average_l0=12)


def test_without_its_threshold_a_dictionary_is_another_one(bases, tmp_path):
    """In SAELens's files the architecture says that there is one; circuit-tracer's mean ReLU without."""
    for format, message in (
        ("saelens", "threshold is missing"),
        ("circuit_tracer", "layer 1: .* holds JumpReLU transcoders .*, not relu"),
    ):
        source = save(tmp_path / format, format, bases)
        edit_tensors(source, format, lambda t, name=THRESHOLD[format]: t.pop(name))
        with pytest.raises(ValueError, match=message):
            import_bases(format, source, tmp_path / "out", average_l0=12)


def test_gemma_scope_s_layout_holds_no_skip(bases, tmp_path):
    source = save(tmp_path / "source", "circuit_tracer", bases)
    edit_tensors(source, "circuit_tracer", lambda t: t.update(W_skip=torch.zeros(32, 32)))
    with pytest.raises(ValueError, match=r"layer 1: .* not jumprelu with skip"):
        import_bases("circuit_tracer", source, tmp_path / "out", average_l0=12)


def test_a_negative_threshold_means_another_function_in_circuit_tracer(bases, tmp_path):
    source = save(tmp_path / "source", "circuit_tracer", bases)
    edit_tensors(source, "circuit_tracer", lambda t: t[THRESHOLD["circuit_tracer"]].fill_(-1))
    with pytest.raises(ValueError, match="threshold holds negative values, expected none"):
        import_bases("circuit_tracer", source, tmp_path / "out", average_l0=12)


def test_a_dictionary_in_parts(tmp_path):
    (tmp_path / "layer_0").mkdir()
    (tmp_path / "layer_0/sae_weights.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(ValueError, match=r"weights.safetensors.index.json is an index of parts"):
        load_base(tmp_path, 0)


def test_another_models_d_model(source, format, tmp_path):
    with pytest.raises(ValueError, match="d_model 32, the model expects 2304"):
        import_bases(format, source, tmp_path / "out", average_l0=12, d_model=2304)


class Bomb:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (self.marker.touch, ())


def test_a_pickle_in_disguise_is_not_executed(source, format, tmp_path):
    (source / WEIGHTS[format]).write_bytes(pickle.dumps(Bomb(tmp_path / "executed")))
    with pytest.raises(ValueError, match="may be a pickle"):
        import_bases(format, source, tmp_path / "out", average_l0=12)
    assert not (tmp_path / "executed").exists()


def test_a_yaml_file_constructs_nothing(bases, tmp_path):
    source = save(tmp_path / "source", "circuit_tracer", bases)
    code = f"!!python/object/apply:pathlib.Path.touch [!!python/name:{tmp_path / 'executed'}]"
    (source / "config.yaml").write_text(f"model_kind: {code}\n")
    with pytest.raises(ValueError, match="is not YAML"):
        import_bases("circuit_tracer", source, tmp_path / "out", average_l0=12)
    assert not (tmp_path / "executed").exists()


def test_a_missing_layer(source, format, tmp_path):
    path = source / WEIGHTS[format]
    (path.parent if format == "saelens" else path).rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError, match=r"holds the layers \[0, 2\]: 1 is missing"):
        import_bases(format, source, tmp_path / "out", average_l0=12)
    with pytest.raises(FileNotFoundError, match=r"holds the layers \[0, 2\], not \[1\]"):
        import_bases(format, source, tmp_path / "out", average_l0=12, layers=[1, 2])
    out = import_bases(format, source, tmp_path / "out", average_l0=12, layers=[0, 2])
    assert sorted(path.name for path in out.iterdir()) == ["layer_0", "layer_2"]


def test_a_missing_file(source, format, tmp_path):
    (source / CONFIG[format]).unlink()
    with pytest.raises(FileNotFoundError, match=f"{CONFIG[format]} does not exist"):
        import_bases(format, source, tmp_path / "out", average_l0=12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "jumprelu"},
            "architecture is 'jumprelu', expected one of jumprelu_transcoder, jumprelu_skip_",
        ),
        ({"apply_b_dec_to_input": True}, "apply_b_dec_to_input is True, expected False"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'"),
        ({"d_out": None}, "d_out is None, expected a positive integer"),
        ({"d_sae": 41}, r"W_enc has shape \[32, 40\], expected \[32, 41\] \(by the sizes in cfg"),
        ({"metadata": None}, "holds another, `metadata`"),
        ({"metadata": {}}, "cfg.json: reads at None, expected one of ln2.hook_normalized"),
    ],
)
def test_a_saelens_configuration_that_means_something_else(bases, tmp_path, changes, message):
    source = save(tmp_path / "source", "saelens", bases)
    path = source / CONFIG["saelens"]
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        import_bases("saelens", source, tmp_path / "out", average_l0=12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_kind": "cross_layer_transcoder"}, "model_kind is 'cross_layer_transcoder'"),
        (
            {"feature_input_hook": "mlp.hook_in"},
            "for hook site 'after_gain', and .*, for 'gemma_scope'",
        ),
        (
            {"feature_output_hook": None},
            "config.yaml: writes at None, expected one of hook_mlp_out",
        ),
        ({"transcoders": {0: "a"}}, "transcoders is {0: 'a'}, expected a list"),
    ],
)
def test_a_circuit_tracer_configuration_that_means_something_else(
    bases, tmp_path, changes, message
):
    source = save(tmp_path / "source", "circuit_tracer", bases)
    path = source / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        import_bases("circuit_tracer", source, tmp_path / "out", average_l0=12)


def square(random_study) -> Transcoder:
    base = random_study.bases[0].state_dict()
    names = {"W_enc": base["W_enc"][:, :32], "W_dec": base["W_dec"][:32]}
    vectors = {name: base[name][:32] for name in ("b_enc", "b_dec", "threshold")}
    return for_other_tools(Transcoder(**names, **vectors), SITE)


def test_square_matrices_are_taken_with_a_warning(random_study, format, tmp_path):
    source = save(tmp_path / "source", format, {0: square(random_study)})
    with pytest.warns(UserWarning, match="square, so whether they are transposed"):
        import_bases(format, source, tmp_path / "out", average_l0=12)


def test_an_export_says_itself_what_foreign_folders_do_not(random_study, format, tmp_path):
    """The average L0, and by its hashes whether a square matrix has been transposed."""
    out = export(
        random_study.folder, format, tmp_path / "export", model=random_study.model, delta_only=True
    )
    layers = [0, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = import_bases(format, out, tmp_path / "read", layers=layers)
    # With the padding of a set for circuit-tracer.
    assert available_l0s(read, 2, {"saelens": 6, "circuit_tracer": 9}[format]) == [2]
    path = out / WEIGHTS[format].replace("layer_1", "layer_2")
    tensors = load_file(path)
    tensors["W_dec"] = tensors["W_dec"].flip(0)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"layer_2.* is not what was exported: hash"):
        import_bases(format, out, tmp_path / "again", layers=layers)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, r"say it \(--average-l0\)"),
        ({"average_l0": 12, "out": "source"}, FileExistsError, "source exists"),
        ({"average_l0": 12, "source": "nowhere"}, FileNotFoundError, "no such folder: nowhere"),
    ],
)
def test_what_the_user_got_wrong_is_named(
    source, format, tmp_path, monkeypatch, options, error, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        import_bases(format, **{"source": "source", "out": "out"} | options)


def test_the_command(source, format, tmp_path, monkeypatch, capsys):
    given = [
        format,
        str(source),
        str(tmp_path / "out"),
        "--average-l0",
        "12.5",
        "--layers",
        "0",
        "2",
    ]
    monkeypatch.setattr(sys, "argv", ["import_dictionaries", *given])
    main()
    assert "wrote" in capsys.readouterr().out
    assert available_l0s(tmp_path / "out", 2, 48) == [12.5]


@pytest.mark.parametrize("average_l0", [0, -4, float("nan"), float("inf")])
def test_an_average_l0_that_names_no_folder_is_refused(tmp_path, average_l0):
    (tmp_path / "source").mkdir()
    with pytest.raises(ValueError, match=f"average_l0 is {average_l0}, expected a positive"):
        import_bases("saelens", tmp_path / "source", tmp_path / "out", average_l0=average_l0)
    assert not (tmp_path / "out").exists()
