"""One hand-written ReLU feature is all that the finetuned model has beside its base; nothing is trained.

Both are a GPT-2 with ReLU neurons. In one MLP the base model has a neuron that neither reads nor writes; in
the finetuned model it is the feature, which a delta can therefore hold exactly.
"""

import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import evaluate
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.generation import AnswerReader, greedy_texts
from delta_transcoders.language_models import load_tokenizer, tokenize
from delta_transcoders.report.tables import read_metrics
from delta_transcoders.tasks.calculator.task import Calculator
from delta_transcoders.tasks.examples import Examples

D_MODEL, N_LAYERS, LAYER, NEURON, FEATURE = 32, 3, 1, 17, 2
MOST = 5  # tokens of an answer


@pytest.fixture(scope="module")
def planted() -> tuple[torch.Tensor, torch.Tensor]:
    """What the feature reads and writes, [D] each; its bias is .5."""
    read_D, write_D = torch.randn(2, D_MODEL, generator=torch.Generator().manual_seed(5))
    return read_D / read_D.norm(), 20 * write_D / write_D.norm()


@pytest.fixture(scope="module")
def folder(model_folder, planted, tmp_path_factory):
    """`base`, `finetuned`, and `evaluation.jsonl`: as targets what the finetuned model answers."""
    folder = tmp_path_factory.mktemp("planted")
    tokenizer = load_tokenizer(model_folder)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    sizes = {"n_embd": D_MODEL, "n_layer": N_LAYERS, "n_head": 4, "n_positions": 128}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(**sizes, **ids, vocab_size=400, activation_function="relu")
        model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # the default scale leaves logits almost flat
            parameter += torch.randn(parameter.shape, generator=_seeded(parameter)) * 0.1
        mlp = model.transformer.h[LAYER].mlp
        norm = model.transformer.h[LAYER].ln_2
        norm.weight.fill_(1)
        norm.bias.zero_()  # the site is before the gain, the neuron after it
        for at in (mlp.c_fc.weight[:, NEURON], mlp.c_fc.bias[NEURON], mlp.c_proj.weight[NEURON]):
            at.zero_()
        model.save_pretrained(folder / "base")
        mlp.c_fc.weight[:, NEURON], mlp.c_proj.weight[NEURON] = planted
        mlp.c_fc.bias[NEURON] = 0.5
    model.save_pretrained(folder / "finetuned")
    for name in ("base", "finetuned"):
        tokenizer.save_pretrained(folder / name)
    examples = Calculator().generate(60, 4, 1, seed=0)["train"]
    task, ends = Examples("none", "exact"), {tokenizer.eos_token_id}
    reader = AnswerReader(tokenizer, task, ends, examples)
    prompts = [row.prompt_ids for row in tokenize(tokenizer, task, examples)]
    texts = greedy_texts(model, prompts, MOST, reader)
    rows = [
        {"prompt": e.prompt, "target": text, "subset": "all"}
        for e, text in zip(examples, texts, strict=True)
        if text.strip()
    ]
    assert len(rows) > 40
    (folder / "evaluation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _seeded(parameter: torch.Tensor) -> torch.Generator:
    return torch.Generator().manual_seed(parameter.numel())


@pytest.fixture(scope="module")
def curve(folder, planted, random_delta, save_transplant, arguments):
    """Of the planted feature among 11 others, which write a little anywhere."""
    deltas = {layer: random_delta(D_MODEL, 4, seed=layer, size=0.05) for layer in range(N_LAYERS)}
    tensors = deltas[LAYER].state_dict()
    tensors["W_enc"][:, FEATURE], tensors["W_dec"][FEATURE] = planted
    tensors["b_enc"][FEATURE] = 0.5
    deltas[LAYER] = Transcoder(**tensors)
    base, finetuned = folder / "base", folder / "finetuned"
    delta = save_transplant(folder / "n12", deltas, base, finetuned)
    options = {
        "task": "delta_transcoders.tasks.examples.Examples",
        "task.jsonl": folder / "evaluation.jsonl",
        "task.judge": "exact",
        "subsets": "null",
        "model.model": finetuned,
        "model.base_model": base,
        "model.deltas": f"[{delta}]",
        "model.output": folder / "curve",
        "model.grid": "[1, 2, 4]",
        "model.correct": "{all: exact_match}",
        "model.side": "{}",
        "model.n_random": 4,
        "model.max_new_tokens": MOST,
        "data.model": finetuned,
        "data.jsonl": folder / "evaluation.jsonl",
        "data.subsets": "null",
    }
    evaluate.main(arguments("tiny/feature_curve.yaml", folder, options))
    return folder / "curve"


def test_it_is_found_first_and_is_all_that_is_needed(curve):
    (chosen,) = json.loads((curve / "features.json").read_text()).values()
    expected = {str(layer): [] for layer in range(N_LAYERS)}
    assert chosen["1"] == expected | {str(LAYER): [FEATURE]}
    rows = {r["n"]: r for r in read_metrics(curve / "curve.csv") if r["draw"] == ""}
    assert float(rows["0"]["share_of_finetuned"]) < 0.5
    assert float(rows["1"]["share_of_finetuned"]) == 1
    (row,) = read_metrics(curve / "n90.csv")
    assert row["n90"] == "1"
    assert float(rows["1"]["mean_kl"]) == pytest.approx(0, abs=1e-5)


def test_its_fidelity_is_reported(curve):
    (row,) = read_metrics(curve / "n90.csv")
    found = {name: float(row[name]) for name in ("cos", "unexplained", "norm_ratio")}
    assert found == pytest.approx({"cos": 1, "unexplained": 0, "norm_ratio": 1}, abs=1e-5)
    assert row["n_layers"] == "1"
