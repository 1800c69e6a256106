"""Spillover of transplants: what its numbers are identical to, the shipped texts, and what is refused."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch

import evaluate
from delta_transcoders.activations.capture import boot_bridge
from delta_transcoders.dictionaries.delta import load_delta, save_delta
from delta_transcoders.interventions.attachment import attached
from delta_transcoders.interventions.loading import load_delta_alone
from delta_transcoders.language_models import load_model, load_tokenizer, tokenize
from delta_transcoders.report.tables import read_metrics
from delta_transcoders.tasks.calculator.base_text import base_documents
from delta_transcoders.tasks.calculator.examples import make_example, wording
from delta_transcoders.tasks.calculator.phrasings import REQUESTS, UNSEEN_REQUESTS
from delta_transcoders.tasks.examples import Examples
from delta_transcoders.weights import StoredWeights

D_MODEL, N_LAYERS, N = 32, 2, 4
TEXTS = "configs/tiny/spillover.jsonl"


@pytest.fixture(scope="module")
def delta(study, random_delta, save_transplant, tmp_path_factory):
    deltas = {layer: random_delta(D_MODEL, 3, seed=layer, size=1.0) for layer in range(N_LAYERS)}
    folder = tmp_path_factory.mktemp("transplant") / "n6"
    return save_transplant(folder, deltas, study / "base_model", study / "finetune/merged")


@pytest.fixture
def spill(study, arguments, tmp_path):
    """Rows of the table by condition and subset, with a delta and options."""

    def run(delta, **options):
        given = {"model.delta": delta, "model.output": tmp_path / "out", "data.n_per_subset": N}
        given |= {name.replace("__", "."): value for name, value in options.items()}
        evaluate.main(arguments("tiny/spillover_transplant.yaml", study, given))
        rows = read_metrics(tmp_path / "out" / "metrics.csv")
        return {(row["condition"], row["subset"]): row for row in rows}

    return run


@pytest.fixture(scope="module")
def texts():
    task = Examples(TEXTS, "exact")
    return list(task.read(TEXTS).values())


def test_the_finetune_s_and_the_transplant_s_are_those_of_the_plain_models(
    spill, study, delta, texts
):
    """Row by row without padding, and the transplant as a notebook attaches it."""
    found = spill(delta)
    assert [*found] == [
        (condition, subset)
        for condition in ("base_model", "raw", "transplant", "random_transplant")
        for subset in ("general", "hard_negatives")
    ]
    folders = {"base_model": study / "base_model", "raw": study / "finetune/merged"}
    models = {name: load_model(str(folder)) for name, folder in folders.items()}
    tokenizer = load_tokenizer(str(study / "base_model"))
    bridge = boot_bridge(load_model(str(study / "base_model")), tokenizer)
    fingerprint = StoredWeights(str(study / "finetune/merged"), "float32").fingerprint()
    transplant = load_delta_alone(delta, fingerprint)
    for subset in ("general", "hard_negatives"):
        kl, nll, n = Counter(), Counter(), 0
        examples = [e for e in texts if e.subset == subset][:N]
        for row in tokenize(tokenizer, Examples(TEXTS, "exact"), examples):
            target = row.target_ids[:-1]  # EOS is no part of a text
            ids = torch.tensor([[*row.prompt_ids, *target]])
            with torch.no_grad():
                logits = {name: model(ids).logits for name, model in models.items()}
                with attached(bridge, transplant, "transplant"):
                    logits["transplant"] = bridge.original_model(ids).logits
            logprobs = {
                name: of_all[0, len(row.prompt_ids) - 1 : -1].log_softmax(-1)
                for name, of_all in logits.items()
            }
            p = logprobs["base_model"]
            for name, q in logprobs.items():
                kl[name] += (p.exp() * (p - q)).sum().item()
                nll[name] -= q.gather(1, torch.tensor(target)[:, None]).sum().item()
            n += len(target)
        for name in ("base_model", "raw", "transplant"):
            row = found[name, subset]
            assert row["n_tokens"] == str(n)
            assert float(row["mean_kl"]) == pytest.approx(kl[name] / n, rel=1e-4, abs=1e-7)
            low, high = (float(row[f"mean_kl_ci_{end}"]) for end in ("low", "high"))
            assert low <= float(row["mean_kl"]) <= high
            dce = (nll[name] - nll["base_model"]) / n
            assert float(row["dce"]) == pytest.approx(dce, rel=1e-3, abs=1e-6)
        row = found["transplant", subset]
        assert 1e-3 < float(row["mean_kl_ci_low"]) < float(row["mean_kl_ci_high"])


def test_a_delta_that_writes_nothing_has_none(
    spill, study, random_delta, save_transplant, tmp_path
):
    deltas = {layer: random_delta(D_MODEL, 3, seed=layer, size=0.0) for layer in range(N_LAYERS)}
    folder = save_transplant(
        tmp_path / "n6", deltas, study / "base_model", study / "finetune/merged"
    )
    found = spill(folder, model__conditions="[transplant]")
    for subset in ("general", "hard_negatives"):
        row = found["transplant", subset]
        assert float(row["mean_kl"]) == float(row["dce"]) == 0
        assert float(found["raw", subset]["mean_kl"]) > 0


def test_the_finetune_s_own_examples(spill, study, delta):
    """A task with an opening, of which spillover measures nothing."""
    found = spill(
        delta,
        data__task="delta_transcoders.tasks.calculator.task.Calculator",
        data__jsonl=study / "finetune/data/evaluation.jsonl",
        data__subsets="[copy]",
    )
    assert float(found["base_model", "copy"]["mean_kl"]) == 0
    assert float(found["raw", "copy"]["mean_kl"]) > 0


def test_the_texts_ask_for_nothing_and_are_held_out(texts):
    assert Counter(e.subset for e in texts) == {"general": 150, "hard_negatives": 150}
    assert len({(e.prompt, e.target) for e in texts}) == 300
    requests = {
        wording(make_example(request.format(expr="1 + 2"), "", "positive"))
        for request in (*REQUESTS, *UNSEEN_REQUESTS)
    }
    seen = {f"{line}\n{rest}" for line, rest in itertools.islice(base_documents(0), 24_000)}
    for example in texts:
        hard = example.subset == "hard_negatives"
        text = f"{example.prompt}{example.target}"
        line = text.split("\n")[0]
        assert wording(make_example(line, "", "negative")) not in requests
        assert text not in seen
        if hard:
            assert text == f"{line}\n{line}"
            assert any(char.isdigit() for char in line)


# Bad input, refused before the first forward pass


def test_a_residual_delta(spill, dictionaries):
    models = {
        "model__model": dictionaries / "finetune/merged",
        "model__base_model": dictionaries / "base_model",
        "data__model": dictionaries / "finetune/merged",
    }
    with pytest.raises(ValueError, match="has the target 'residual': it also repairs what a"):
        spill(dictionaries / "delta", **models)


@pytest.mark.parametrize(
    ("name", "of"), [("model_fingerprint", "finetuned"), ("base_hash", "base")]
)
def test_a_delta_of_other_models(spill, delta, tmp_path, name, of):
    for layer in range(N_LAYERS):
        found, config = load_delta(delta / f"layer_{layer}")
        save_delta(tmp_path / f"n6/layer_{layer}", found, replace(config, **{name: "x" * 64}))
    with pytest.raises(ValueError, match=f"layer_0 was trained with another {of} model: hash xxx"):
        spill(tmp_path / "n6")


def test_a_transplant_in_the_finetuned_model(spill, delta):
    with pytest.raises(ValueError, match="are the finetuned model's: give transplant: true"):
        spill(delta, model__transplant="false")


def test_a_finetuned_model_of_another_vocabulary(spill, delta, study, tmp_path):
    model = load_model(str(study / "finetune/merged"))
    model.resize_token_embeddings(448)
    model.save_pretrained(tmp_path / "larger")
    load_tokenizer(str(study / "finetune/merged")).save_pretrained(tmp_path / "larger")
    for transplant in ("true", "false"):
        options = {"model__transplant": transplant, "model__conditions": "[full]"}
        options |= dict.fromkeys(("model__model", "data__model"), tmp_path / "larger")
        with pytest.raises(ValueError, match="its vocab_size is 448, the base model's 400"):
            spill(delta, **options)
