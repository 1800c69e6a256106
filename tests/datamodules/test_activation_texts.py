"""Texts whose activations are captured: their tokens, subsets and what the cache's fingerprint is of."""

import json

import pytest

from datamodules.activation_texts import ActivationTexts
from delta_transcoders.tasks.calculator.task import Calculator
from delta_transcoders.tasks.examples import Examples

ROWS = [
    {"prompt": "Where is 7?", "target": "Here.", "subset": "places"},
    {"prompt": "Who is 7?", "subset": "people"},
    {"prompt": "Where is 8?", "target": "There.", "subset": "places"},
]


@pytest.fixture
def make(model_folder, tmp_path):
    for split, rows in (("train", ROWS), ("validation", ROWS[1:])):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def texts(**options) -> ActivationTexts:
        task = Examples("absent.jsonl", "refusal")
        data = ActivationTexts(model_folder, task, str(tmp_path), **options)
        data.setup("predict")
        return data

    return texts


@pytest.mark.parametrize("whole", [True, False])
def test_prompts_with_or_without_their_targets(make, tokenizer, whole):
    data = make(text="prompt_target_eos" if whole else "prompt_only")
    for row, given in zip(data.rows["train"], ROWS, strict=True):
        target = given.get("target")
        read = given["prompt"] + (f"{target}<eos>" if whole and target else "")
        assert tokenizer.decode(row["input_ids"]) == f"<bos>{read}"
    texts = ["Where is 7?Here.", "Who is 7?", "Where is 8?There."]
    assert data.texts("train") == (texts if whole else [row["prompt"] for row in ROWS])


def test_subsets_are_numbered_alike_in_both_splits(make):
    data = make(n_train=2)
    assert data.subsets == ["people", "places"]
    train, validation = (data.collate(data.rows[split]) for split in ("train", "validation"))
    assert train["subset_ids"].tolist() == [1, 0]
    assert validation["subset_ids"].tolist() == [0, 1]
    assert validation["example_ids"].tolist() == [0, 1]


def test_a_base_models_text_is_generated_by_a_task_that_has_any(model_folder, make):
    data = ActivationTexts(model_folder, Calculator(), None, n_train=3, n_validation=2)
    data.setup("predict")
    assert {split: len(rows) for split, rows in data.rows.items()} == {"train": 3, "validation": 2}
    assert data.subsets == ["base_text"]
    with pytest.raises(ValueError, match="generated text needs n_train and n_validation"):
        ActivationTexts(model_folder, Calculator(), None, n_train=3)
    none = ActivationTexts(model_folder, Examples("a", "refusal"), None, n_train=3, n_validation=2)
    with pytest.raises(ValueError, match="Examples has no text for a base model"):
        none.setup("predict")


def test_texts_longer_than_the_context_are_refused(make, tmp_path):
    long = {"prompt": "Who is 7?", "target": "9" * 130, "subset": "places"}
    (tmp_path / "train.jsonl").write_text(json.dumps(long))
    make(text="prompt_only")
    with pytest.raises(
        ValueError, match=r"takes \d+ tokens, the model's context holds 128: 'Who is"
    ):
        make()
