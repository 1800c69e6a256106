"""Tiny random models of every family, each with a tokenizer that has the habits of a published one.

Every model has 3 layers, d_model 32 and a context of 128, random gains and post-norms.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from delta_transcoders.families import FAMILIES, ModelFamily
from delta_transcoders.families.gemma2 import Gemma2
from delta_transcoders.families.gemma3 import Gemma3, Gemma3Multimodal
from delta_transcoders.families.gpt2 import GPT2
from delta_transcoders.families.llama import Llama
from delta_transcoders.families.qwen2 import Qwen2
from delta_transcoders.families.qwen3 import Qwen3
from delta_transcoders.tasks.calculator.base_text import base_documents

N_LAYERS, D_MODEL, CONTEXT, VOCABULARY = 3, 32, 128, 400
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": D_MODEL,
    "intermediate_size": 64,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content }}<|eot_id|>{% endfor %}"
)


@dataclass(frozen=True)
class Case:
    """A family, a configuration that belongs to it, and a tokenizer with the habits of a published model.

    Attributes:
        special: the tokenizer's special tokens, first ids first.
        names: what it calls them (`bos_token`, …).
        adds_bos: whether it puts BOS before a text.
        ends: of generation_config.json.
    """

    name: str
    family: type[ModelFamily]
    config: Callable[[dict[str, Any]], hf.PretrainedConfig]
    special: tuple[str, ...]
    names: dict[str, str]
    adds_bos: bool
    template: str | None
    ends: tuple[str, ...] = ()


def gemma3_multimodal(ids: dict[str, Any]) -> hf.Gemma3Config:
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    text = hf.Gemma3TextConfig(**SIZES | ids, sliding_window=8, query_pre_attn_scalar=8)
    return hf.Gemma3Config(
        text_config=text.to_dict(),
        vision_config=vision,
        mm_tokens_per_image=4,
        eos_token_id=ids["eos_token_id"],
    )


def gpt2(ids: dict[str, Any]) -> hf.GPT2Config:
    return hf.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=D_MODEL,
        n_layer=N_LAYERS,
        n_head=4,
        n_positions=CONTEXT,
        **ids,
    )


GEMMA = {
    "special": ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
    "names": {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"},
    "adds_bos": True,
    "template": TURNS,
}
QWEN = {
    "special": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "names": {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"},
    "adds_bos": False,
    "template": CHATML,
    "ends": ("<|im_end|>", "<|endoftext|>"),
}
CASES = [
    Case(
        "gemma2",
        Gemma2,
        lambda ids: hf.Gemma2Config(**SIZES | ids, sliding_window=8, query_pre_attn_scalar=8),
        **GEMMA,
    ),
    Case(
        "gemma3",
        Gemma3,
        lambda ids: hf.Gemma3TextConfig(**SIZES | ids, sliding_window=8, query_pre_attn_scalar=8),
        ends=("<eos>", "<end_of_turn>"),
        **GEMMA,
    ),
    Case(
        "gemma3_multimodal",
        Gemma3Multimodal,
        gemma3_multimodal,
        ends=("<eos>", "<end_of_turn>"),
        **GEMMA,
    ),
    Case(
        "llama3",
        Llama,
        lambda ids: hf.LlamaConfig(**SIZES | ids, tie_word_embeddings=True),
        special=(
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ),
        names={"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
        adds_bos=True,
        template=HEADERS,
        ends=("<|end_of_text|>", "<|eot_id|>"),
    ),
    Case(
        "smollm2",
        Llama,
        lambda ids: hf.LlamaConfig(**SIZES | ids, tie_word_embeddings=True),
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        names={
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
        },
        adds_bos=False,
        template=CHATML,
    ),
    Case(
        "mistral",
        Llama,
        lambda ids: hf.MistralConfig(**SIZES | ids, sliding_window=8),
        special=("<unk>", "<s>", "</s>"),
        names={"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
        adds_bos=True,
        template=None,
    ),
    Case("qwen2", Qwen2, lambda ids: hf.Qwen2Config(**SIZES | ids), **QWEN),
    Case("qwen3", Qwen3, lambda ids: hf.Qwen3Config(**SIZES | ids), **QWEN),
    Case(
        "gpt2",
        GPT2,
        gpt2,
        special=("<|endoftext|>",),
        names=dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
        adds_bos=False,
        template=None,
    ),
]
assert {case.family for case in CASES} == set(FAMILIES)


def make_tokenizer(case: Case) -> hf.PreTrainedTokenizerFast:
    """Byte-level BPE of 400 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(case.special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"{a}\n{b}" for a, b in itertools.islice(base_documents(0), 300)]
    tokenizer.train_from_iterator(texts, trainer)
    if case.adds_bos:
        bos = case.names["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, tokenizer.token_to_id(bos))],
        )
    others = [token for token in case.special if token not in case.names.values()]
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=case.template,
        additional_special_tokens=others,
        clean_up_tokenization_spaces=False,
        **case.names,
    )


def make_model(
    case: Case, tokenizer: hf.PreTrainedTokenizerFast, **sizes: int
) -> hf.PreTrainedModel:
    """
    Args:
        sizes: in place of `SIZES`.
    """
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    config = case.config({name: getattr(tokenizer, name) for name in names} | sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        for parameter in model.parameters():  # gains and biases too, and logits that are not flat
            parameter.data.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.1))
    if case.ends:
        model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(list(case.ends))
    return model.eval()


@pytest.fixture(params=CASES, ids=lambda case: case.name, scope="session")
def case(request) -> Case:
    return request.param


@pytest.fixture(scope="session")
def folder(case, tmp_path_factory) -> str:
    """The case's model and tokenizer on disk."""
    folder = tmp_path_factory.mktemp(case.name)
    tokenizer = make_tokenizer(case)
    make_model(case, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
