"""How many rows a second do mixed batches run, beside one prompt and one condition at a time?

    python benchmarks/engine_throughput.py [--study runs/tiny] [--require 15]

A row is one prompt under one condition: its teacher-forced cross-entropy and its greedy text. All ways
run the same rows on the same weights in one process:
  original:  as the original study did it, one condition after the other, one prompt at a time, with
             TransformerLens hooks: a forward pass for the cross-entropy and Hugging Face's `generate`;
  plain:     likewise, stripped of all that costs: PyTorch hooks on the unwrapped model, and a loop that
             ends where the engine's ends;
  engine:    `InterventionEngine`, all of them at once.
One by one is timed on a random sample of the rows; `--require` is about the original's way. With a study:
its finetuned model, bases, deltas and evaluation prompts; without: a random tiny Gemma 2 with random
dictionaries.
"""

import argparse
import itertools
import random
import sys
import tempfile
import time
from contextlib import contextmanager

PARTS = 4


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", help="folder of a study (default: random weights)")
    parser.add_argument("--rows", type=int, default=1024, help="prompts × conditions (1024)")
    parser.add_argument("--one-by-one", type=int, default=64, help="rows run one by one (64)")
    parser.add_argument("--new-tokens", type=int, default=64, help="longest text (64)")
    parser.add_argument("--base-features", type=int, default=1024, help="per layer (1024)")
    parser.add_argument("--d-new", type=int, default=32, help="features of each delta (32)")
    parser.add_argument("--rows-per-pass", type=int, default=256, help="of the engine (256)")
    parser.add_argument("--device", default="cpu", help="torch device (cpu)")
    parser.add_argument(
        "--require", type=float, default=0.0, help="exit with an error if the ratio is lower"
    )
    return parser.parse_args()


def save_random_model(folder: str) -> None:
    """A Gemma 2 of the tiny study's shape; larger weights than usual, so that its texts vary."""
    import torch

    from delta_transcoders.tasks.calculator.base_text import base_documents
    from delta_transcoders.tiny_gemma import build_tiny_gemma, train_tokenizer

    texts = [f"{a}\n{b}" for a, b in itertools.islice(base_documents(0), 2000)]
    tokenizer = train_tokenizer(texts, vocab_size=768)
    model = build_tiny_gemma(tokenizer)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_rows(n_rows: int, n_layers: int, tokenizer, study: str | None) -> list[tuple]:
    """(tokens of an example, intervention): layers alone and together, each condition on each prompt."""
    from delta_transcoders.interventions.intervention import from_spec
    from delta_transcoders.language_models import tokenize
    from delta_transcoders.tasks.calculator.task import Calculator

    task = Calculator()
    groups = [(layer,) for layer in range(n_layers)] + [tuple(range(n_layers))]
    names = ("no_delta", "full", "alpha_0.5", "alpha_-0.5")
    conditions = [from_spec("raw", ())] + [from_spec(n, group) for group in groups for n in names]
    n_prompts = -(-n_rows // len(conditions))
    if study:
        examples = list(task.read(f"{study}/finetune/data/evaluation.jsonl").values())
    else:
        examples = task.generate(2, 2, -(-n_prompts // 4), seed=0)["evaluation"]
    random.Random(0).shuffle(examples)
    tokens = tokenize(tokenizer, task, examples[:n_prompts])
    return [(row, c) for row in tokens for c in conditions][:n_rows]


@contextmanager
def plain_hooks(model, bank, intervention):
    """The intervention on one unpadded prompt, by hooks on the unwrapped model."""
    import torch

    inputs, n_read = {}, dict.fromkeys(intervention.layers, 0)

    def read(layer):
        def hook(module, args):
            x_BTD = args[0].float()
            inputs[layer] = x_BTD * torch.rsqrt(x_BTD.square().mean(-1, keepdim=True) + module.eps)

        return hook

    def write(layer):
        def hook(module, args, y_BTD):
            out_BTD = sum(
                term.coefficient * bank[term.source][layer].transcoder(inputs[layer])
                for term in intervention.writes[layer].terms
            ).to(y_BTD.dtype)
            if not n_read[layer]:  # the sequence starts here, with BOS
                out_BTD[:, 0] = y_BTD[:, 0]
            n_read[layer] += y_BTD.shape[1]
            return out_BTD

        return hook

    handles = []
    for layer in intervention.layers:
        block = model.model.layers[layer]
        handles.append(block.pre_feedforward_layernorm.register_forward_pre_hook(read(layer)))
        handles.append(block.post_feedforward_layernorm.register_forward_hook(write(layer)))
    yield
    for handle in handles:
        handle.remove()


def answer_reader(tokenizer):
    from delta_transcoders.generation import AnswerReader
    from delta_transcoders.tasks.calculator.task import Calculator

    return AnswerReader(tokenizer, Calculator(), {tokenizer.eos_token_id})


def one_by_one(model, tokenizer, bank, rows, new_tokens):
    """Text and summed cross-entropy of each row."""
    import torch

    from delta_transcoders.generation import greedy_texts
    from delta_transcoders.language_models import target_batch, token_nll

    results, reader = [], answer_reader(tokenizer)
    for row, intervention in rows:
        with torch.inference_mode():
            with plain_hooks(model, bank, intervention):
                batch = target_batch([row], tokenizer.pad_token_id)
                nll_N = token_nll(
                    model, **{f"{k}_BT": v.to(model.device) for k, v in batch.items()}
                )
            with plain_hooks(model, bank, intervention):
                (text,) = greedy_texts(model, [row.prompt_ids], new_tokens, reader)
        results.append((text, nll_N.double().sum().item()))
    return results


def as_the_original(engine, rows, new_tokens):
    """Text and summed cross-entropy of each row, through TransformerLens, one by one."""
    import torch

    from delta_transcoders.language_models import target_batch, token_nll
    from delta_transcoders.tasks.calculator.grammar import CLOSE

    model, tokenizer, results = engine.model, engine.tokenizer, []
    for row, intervention in rows:
        with torch.inference_mode():
            batch = target_batch([row], tokenizer.pad_token_id)
            tokens = {f"{k}_BT": v.to(model.device) for k, v in batch.items()}
            with engine.applied([intervention]):
                nll_N = token_nll(model, **tokens)
            prompt_BT = torch.tensor([row.prompt_ids], device=model.device)
            with engine.applied([intervention]):
                ids_BT = model.generate(
                    prompt_BT,
                    attention_mask=torch.ones_like(prompt_BT),
                    max_new_tokens=new_tokens,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id,
                )
        written = tokenizer.decode(ids_BT[0, prompt_BT.shape[1] :], skip_special_tokens=True)
        before, close, _ = written.partition(CLOSE)  # where the engine ends
        results.append((before + close, nll_N.double().sum().item()))
    return results


def together(engine, rows, new_tokens):
    """Text and summed cross-entropy of each row."""
    tokens, interventions = zip(*rows, strict=True)
    scores = engine.teacher_forced(tokens, interventions)
    prompts, reader = [row.prompt_ids for row in tokens], answer_reader(engine.tokenizer)
    texts = engine.generate(prompts, interventions, new_tokens, reader)
    return [(text, score.nll) for text, score in zip(texts, scores, strict=True)]


def random_bank(arguments: argparse.Namespace, d_model: int, n_layers: int) -> dict:
    """Sources of random dictionaries, by name and layer."""
    import torch

    from delta_transcoders.dictionaries.transcoder import Transcoder
    from delta_transcoders.interventions.sources import DictionarySource

    def random_source(n_features: int) -> DictionarySource:
        return DictionarySource(
            Transcoder(
                W_enc=torch.randn(d_model, n_features) / d_model**0.5,
                b_enc=torch.zeros(n_features),
                W_dec=torch.randn(n_features, d_model) / n_features**0.5,
                b_dec=torch.zeros(d_model),
                threshold=torch.full((n_features,), 2.0),
            )
        ).to(arguments.device)

    return {
        name: {layer: random_source(n_features) for layer in range(n_layers)}
        for name, n_features in (("base", arguments.base_features), ("delta", arguments.d_new))
    }


def measure(arguments: argparse.Namespace, source: str) -> float:
    """Print both ways' rows per second; returns their ratio."""
    import torch

    from delta_transcoders.activations.capture import boot_bridge
    from delta_transcoders.interventions.engine import InterventionEngine
    from delta_transcoders.interventions.loading import load_delta_set
    from delta_transcoders.language_models import load_model, load_tokenizer

    tokenizer = load_tokenizer(source)
    plain, bridged = (load_model(source).to(arguments.device) for _ in range(2))
    d_model, n_layers = plain.config.hidden_size, plain.config.num_hidden_layers
    if study := arguments.study:
        bank = load_delta_set(f"{study}/delta", f"{study}/base_transcoders", plain).sources
        for by_layer in bank.values():
            for dictionary in by_layer.values():
                dictionary.to(arguments.device)
    else:
        bank = random_bank(arguments, d_model, n_layers)
    engine = InterventionEngine(
        boot_bridge(bridged, tokenizer), tokenizer, bank, rows_per_pass=arguments.rows_per_pass
    )
    rows = make_rows(arguments.rows, n_layers, tokenizer, study)
    sample = random.Random(1).sample(range(len(rows)), min(arguments.one_by_one, len(rows)))
    chosen = {"original": sample, "plain": sample, "engine": range(len(rows))}
    ways = {
        "original": lambda part: as_the_original(engine, part, arguments.new_tokens),
        "plain": lambda part: one_by_one(plain, tokenizer, bank, part, arguments.new_tokens),
        "engine": lambda part: together(engine, part, arguments.new_tokens),
    }
    results = {name: {} for name in ways}
    seconds = dict.fromkeys(ways, 0.0)
    for run in ways.values():
        run(rows[:4])
    for part in range(PARTS):  # in turn, so that a slow minute of the machine hits both
        for name, run in ways.items():
            first, last = (len(chosen[name]) * p // PARTS for p in (part, part + 1))
            indices = chosen[name][first:last]
            start = time.perf_counter()
            answers = run([rows[index] for index in indices])
            seconds[name] += time.perf_counter() - start
            results[name] |= zip(indices, answers, strict=True)

    print(
        f"{n_layers} layers, d_model {d_model}, {bank['base'][0].n_features} + "
        f"{bank['delta'][0].n_features} features, up to {arguments.new_tokens} new tokens, "
        f"{arguments.device}, {torch.get_num_threads()} threads"
    )
    print(f"{'way':<12}{'rows':>6}{'seconds':>10}{'rows/s':>10}")
    speeds = {name: len(results[name]) / seconds[name] for name in ways}
    for name in ways:
        print(f"{name:<12}{len(results[name]):>6}{seconds[name]:>10.2f}{speeds[name]:>10.2f}")
    for name in ("original", "plain"):
        pairs = [(results["engine"][row], alone) for row, alone in results[name].items()]
        n_texts = sum(a[0] != b[0] for a, b in pairs)
        nll_error = max(abs(a[1] - b[1]) for a, b in pairs)
        print(
            f"engine / {name}: {speeds['engine'] / speeds[name]:.1f} x; texts that differ: {n_texts} of "
            f"{len(pairs)}; largest difference of cross-entropy: {nll_error:.1e} nats a row"
        )
    return speeds["engine"] / speeds["original"]


def main() -> int:
    arguments = parse_arguments()
    import torch

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.study is None:
            save_random_model(folder)
        source = f"{arguments.study}/finetune/merged" if arguments.study else folder
        ratio = measure(arguments, source)
    if ratio < arguments.require:
        print(f"the ratio is below the required {arguments.require:g}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
