"""The tiny base model's text: no document in two splits."""

from datamodules.activation_texts import ActivationTexts
from datamodules.base_text import BaseTextData, split_documents
from delta_transcoders.tasks.calculator.task import Calculator


def test_no_document_in_two_splits():
    splits = split_documents(Calculator().documents(0), 4000, 300)
    assert [len(rows) for rows in splits.values()] == [4000, 300]
    assert set(splits["train"]).isdisjoint(splits["validation"])
    assert len(set(splits["train"])) < 4000  # some lines are short, and read more than once


def test_the_tokens_are_those_of_the_split_documents():
    data = BaseTextData(Calculator(), n_documents=600, n_validation=40, vocab_size=400)
    data.setup("fit")
    documents = split_documents(Calculator().documents(0), 600, 40)
    assert {name: len(rows) for name, rows in data.rows.items()} == {"train": 600, "validation": 40}
    for name, rows in data.rows.items():
        for row, (line, rest) in zip(rows, documents[name], strict=True):
            assert data.tokenizer.decode(row["input_ids"]) == f"<bos>{line}\n{rest}<eos>"


def test_dictionaries_are_validated_on_text_that_they_are_not_trained_on(model_folder):
    data = ActivationTexts(model_folder, Calculator(), None, n_train=2000, n_validation=100)
    data.setup("predict")
    assert set(data.texts("train")).isdisjoint(data.texts("validation"))
    assert (len(data.texts("train")), len(data.texts("validation"))) == (2000, 100)
