"""Behaviour measured while deltas are trained: what is logged, and that training does not notice."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

import train
from callbacks.behaviour_while_training import BehaviourWhileTraining
from delta_transcoders.dictionaries.bases import load_base
from delta_transcoders.generation import AnswerReader, greedy_texts
from delta_transcoders.language_models import load_model, load_tokenizer, tokenize
from delta_transcoders.tasks.calculator.examples import read_jsonl
from delta_transcoders.tasks.calculator.task import Calculator

N, NEW_TOKENS = 4, 6
MEASURES = ("tool_call", "valid_tool_format", "math_correct")  # of the subset `tool`


@pytest.fixture(scope="module")
def runs(dictionaries, arguments, delta_options, tmp_path_factory):
    """Eight steps with the callback at every second of four validations, and eight without it."""
    folder = tmp_path_factory.mktemp("behaviour_while_training")
    options = delta_options | {"trainer.max_steps": 8, "trainer.val_check_interval": 2}
    clis = {}
    for name, config in (("without", "delta"), ("with", "delta_behaviour")):
        given = options | {"model.output": folder / name, "trainer.logger.save_dir": folder}
        given["trainer.logger.name"] = f"log_{name}"
        if name == "with":
            every = {"n_prompts": N, "every_n_validations": 2, "max_new_tokens": NEW_TOKENS}
            given |= {f"trainer.callbacks.{key}": value for key, value in every.items()}
        clis[name] = train.main(arguments(f"tiny/{config}.yaml", dictionaries, given))
    return folder, clis["with"]


def test_the_trained_weights_are_the_same_to_the_bit(runs):
    folder, _ = runs
    for layer in (0, 1):
        for file in ("delta.safetensors", "config.json"):
            one, two = (folder / n / f"layer_{layer}" / file for n in ("without", "with"))
            assert one.read_bytes() == two.read_bytes()
    one, two = (
        torch.load(folder / f"log_{n}" / "checkpoints" / "last.ckpt") for n in ("without", "with")
    )
    for key in ("state_dict", "optimizer_states"):
        for a, b in zip(*(_tensors(c[key]) for c in (one, two)), strict=True):
            assert torch.equal(a, b)


def _tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if torch.is_tensor(leaf)]


@torch.no_grad()
def by_hand(dictionaries, module=None, subset="tool"):
    """Cross-entropy and the rates of the plain model with each MLP's output overwritten by hand."""
    source = str(dictionaries / "finetune" / "merged")
    model, tokenizer = load_model(source), load_tokenizer(source)
    rows = read_jsonl(dictionaries / "finetune" / "data" / "validation.jsonl").values()
    examples = [e for e in rows if e.subset == subset][:N]
    if module is not None:
        (stack,) = module.stacks.values()
        for index, layer in enumerate(model.model.layers):
            base, _ = load_base(str(dictionaries / "base_transcoders"), index, percentile=0.5)
            delta = stack.export(index)
            norm, seen = layer.pre_feedforward_layernorm, {}
            norm.register_forward_pre_hook(
                lambda norm, args, seen=seen: seen.update(x=norm._norm(args[0].float()))
            )

            def write(_, args, y, base=base, delta=delta, seen=seen):
                y = y.clone()
                start = 1 if seen["x"].shape[1] > 1 else 0  # BOS, where the prompt is read
                y[:, start:] = (base(seen["x"]) + delta(seen["x"]))[:, start:]
                return y

            layer.post_feedforward_layernorm.register_forward_hook(write)
    task = Calculator()
    nll = n_tokens = 0
    verdicts = []
    for example, row in zip(examples, tokenize(tokenizer, task, examples), strict=True):
        prompt, target = list(row.prompt_ids), list(row.target_ids)
        logits = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
        nll += torch.nn.functional.cross_entropy(logits, torch.tensor(target), reduction="sum")
        n_tokens += len(target)
        (text,) = greedy_texts(
            model, [prompt], NEW_TOKENS, AnswerReader(tokenizer, task, {tokenizer.eos_token_id})
        )
        verdicts.append(task.judge(text, example))
    judged = {name: [v[name] for v in verdicts if v[name] is not None] for name in verdicts[0]}
    rates = {f"{name}_rate": sum(each) / len(each) for name, each in judged.items() if each}
    return {"mean_ce": float(nll) / n_tokens, **rates}


def test_tags_and_values(runs, dictionaries):
    folder, cli = runs
    events = EventAccumulator(str(folder / "log_with"))
    events.Reload()
    module = cli.model  # its weights are those of the last step, the last validation's
    for where, expected, steps in (
        ("", by_hand(dictionaries, module), [4, 8]),
        ("raw/", by_hand(dictionaries), [4, 8]),
    ):
        assert set(expected) == {"mean_ce", *(f"{name}_rate" for name in MEASURES)}
        for name, value in expected.items():
            points = events.Scalars(f"behaviour/{where}{name}")
            assert [point.step for point in points] == steps
            assert points[-1].value == pytest.approx(value, rel=1e-4)
    first, last = (p.value for p in events.Scalars("behaviour/mean_ce"))
    assert first != last
    raw = events.Scalars("behaviour/raw/mean_ce")[-1].value
    assert events.Scalars("behaviour/dce")[-1].value == pytest.approx(last - raw, abs=1e-6)
    layout = Layout.FromString(
        events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    )
    (category,) = (c for c in layout.category if c.title == "behaviour")
    assert [chart.title for chart in category.chart][:2] == ["mean_ce", "tool_call_rate"]
    assert list(category.chart[1].multiline.tag) == [
        "behaviour/tool_call_rate$",
        "behaviour/raw/tool_call_rate$",
    ]


def refused(dictionaries, arguments, tmp_path, options, match):
    given = options | {"model.output": tmp_path / "delta"}
    with pytest.raises(ValueError, match=match):
        train.main(arguments("tiny/delta_behaviour.yaml", dictionaries, given))
    assert not (tmp_path / "delta").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.d_new": "[4, 6]"}, r"needs one d_new and one percentile.*\[4, 6\]"),
        ({"trainer.callbacks.n_prompts": 0}, "n_prompts is 0, expected >0"),
        (
            {"trainer.callbacks.subset": "tol"},
            "validation.jsonl holds no example of the subset 'tol'; it has tool, copy",
        ),
        ({"trainer.callbacks.max_new_tokens": 1000}, "the model's context holds"),
        ({"trainer.callbacks.dtype": "bfloat16"}, "is of another model: hash"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_run_it_cannot_measure(
    dictionaries, arguments, delta_options, tmp_path, options, message
):
    refused(dictionaries, arguments, tmp_path, delta_options | options, message)


def test_the_number_of_validations_is_resumed(dictionaries):
    source = dictionaries / "finetune"
    examples = str(source / "data" / "validation.jsonl")
    one, two = (
        BehaviourWhileTraining(str(source / "merged"), "bases", Calculator(), examples)
        for _ in "12"
    )
    one.n_validations = 3
    two.load_state_dict(one.state_dict())
    assert two.n_validations == 3
