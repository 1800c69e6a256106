"""Every stage of `configs/smollm2`, on a random Llama of 30 tiny layers and a tokenizer like SmolLM2's."""

import itertools
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import evaluate
import train
from delta_transcoders.report import html
from delta_transcoders.report.tables import read_metrics
from delta_transcoders.tasks.calculator.base_text import base_documents

pytestmark = pytest.mark.slow

N_LAYERS = 30
BASE = "models/SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def base_model(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("llama"))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"{a}\n{b}" for a, b in itertools.islice(base_documents(0), 300)]
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_the_whole_study(arguments, pytestconfig, tmp_path, base_model):
    def run(main, stage: str, options: dict | None = None) -> None:
        text = (Path(pytestconfig.rootpath) / "configs/smollm2" / f"{stage}.yaml").read_text()
        config = tmp_path / "configs" / f"{stage}.yaml"
        config.parent.mkdir(exist_ok=True)
        config.write_text(text.replace(BASE, base_model))
        defaults = Path(pytestconfig.rootpath) / "configs/smollm2/defaults.yaml"
        config.with_name("defaults.yaml").write_text(defaults.read_text())
        main(arguments(str(config), study, options))

    study = tmp_path / "study"
    few = {"data.n_train": 40, "data.n_validation": 10, "data.n_evaluation": 3}
    run(train.main, "lora", few | {"trainer.max_steps": 4, "trainer.val_check_interval": 2})
    run(evaluate.main, "behaviour")
    run(evaluate.main, "activations")
    run(train.main, "delta", {"trainer.val_check_interval": 2})
    run(train.main, "delta_end_to_end", {"trainer.max_steps": 5, "trainer.val_check_interval": 1})
    run(evaluate.main, "exp2a")
    run(evaluate.main, "exp2b")
    for name in ("delta", "delta_end_to_end/n960", "delta_end_to_end/n32"):
        assert len(list((study / name).glob("layer_*/delta.safetensors"))) == N_LAYERS

    rows = read_metrics(study / "behaviour" / "metrics.csv")
    assert {row["condition"] for row in rows} == {"raw", "base_model"} and len(rows) == 2 * 4
    rows = read_metrics(study / "exp2a" / "metrics.csv")
    halves = ["+".join(map(str, range(*half))) for half in ((0, 15), (15, 30))]
    cells = itertools.product(["all", *halves, "15"], ["no_delta", "full", "random_delta"])
    assert {(row["layer"], row["condition"]) for row in rows} == {("", "raw"), *cells}
    assert {row["subset"] for row in rows} == {"tool", "copy"}
    of_2a = {
        row["condition"]: row for row in rows if row["layer"] == "all" and row["subset"] == "tool"
    }
    of_2b = {row["condition"]: row for row in read_metrics(study / "exp2b" / "metrics.csv")}
    for alpha, name in (("alpha_0.00", "no_delta"), ("alpha_1.00", "full")):
        ends = (float(row["mean_ce"]) for row in (of_2b[alpha], of_2a[name]))
        assert next(ends) == pytest.approx(next(ends), abs=1e-5)
    assert "dose–response" in html.render(study)
