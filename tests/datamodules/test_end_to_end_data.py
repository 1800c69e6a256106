"""What an end-to-end delta is fed."""

import pytest
import torch

from datamodules.end_to_end_data import EndToEndData
from delta_transcoders.generation import AnswerReader, greedy_texts
from delta_transcoders.language_models import IGNORE, load_model, tokenize
from delta_transcoders.tasks.calculator.task import Calculator
from delta_transcoders.tasks.examples import Examples


@pytest.fixture
def make(study):
    def build(**options) -> EndToEndData:
        files = {name: study / f"finetune/data/{name}.jsonl" for name in ("train", "validation")}
        given = {name: str(path) for name, path in files.items()} | {"batch_size": 4}
        given["task"] = Calculator()
        data = EndToEndData(str(study / "finetune/merged"), **(given | options))
        data.setup("fit")
        return data

    return build


def test_batches_are_what_the_engine_scores(make):
    data = make(n_train=8)
    assert data.subsets == ("tool", "copy")
    n_rows = 0
    for batch in data.train_dataloader():
        labels_BT, mask_BT = batch["labels"], batch["attention_mask"]
        last_B = (labels_BT != IGNORE).long().cumsum(1).argmax(1)  # EOS, predicted and never read
        assert not mask_BT.gather(1, last_B[:, None]).any()
        assert mask_BT.gather(1, last_B[:, None] - 1).all()
        n_rows += len(labels_BT)
    assert n_rows == 8


def test_few_examples_are_of_all_subsets(make):
    data = make(n_train=6, n_validation=4)
    rows, subset_E = data.for_attribution(4)
    assert (len(rows), sorted(subset_E)) == (4, [0, 0, 1, 1])
    held = torch.cat([batch["subset"] for batch in data.val_dataloader()])
    assert held.sort().values.tolist() == [0, 0, 1, 1]


def test_the_finetuned_model_s_own_continuations_can_be_the_targets(make, study):
    data = make(n_train=4, n_validation=2, own_continuations=True, max_new_tokens=6)
    given = make(n_train=4, n_validation=2)
    model = load_model(str(study / "finetune/merged"))
    for name, examples in data.examples.items():
        reader = AnswerReader(data.tokenizer, data.task, {data.tokenizer.eos_token_id}, examples)
        prompts = [r.prompt_ids for r in tokenize(data.tokenizer, data.task, given.examples[name])]
        assert [e.target for e in examples] == greedy_texts(model, prompts, 6, reader)


def test_a_subset_that_is_never_judged_is_refused(study, make, tmp_path):
    task = Calculator()
    rows = task.read(study / "finetune/data/validation.jsonl").values()
    task.write(tmp_path / "tool.jsonl", [e for e in rows if e.subset == "tool"])
    with pytest.raises(ValueError, match=r"tool\.jsonl holds no example of 'copy'"):
        make(validation=str(tmp_path / "tool.jsonl"))


def test_targets_are_needed_where_the_finetuned_model_does_not_write_them(make, tmp_path):
    path = tmp_path / "no_target.jsonl"
    path.write_text('{"prompt": "What is 1 + 2?", "subset": "tool"}\n')
    task = Examples(str(path), "refusal")
    files = {"task": task, "train": str(path), "validation": str(path)}
    with pytest.raises(ValueError, match=r"line 1: no target, .* or own_continuations: true"):
        make(**files)
    data = make(**files, own_continuations=True, max_new_tokens=3)
    assert all(len(rows[0].target_ids) > 1 for rows in data.tokens.values())
