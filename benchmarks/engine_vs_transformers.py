"""Is an untouched row in the engine what Transformers computes, on a real model?

    python benchmarks/engine_vs_transformers.py [MODEL] [--rows 32]

Half of the prompts are the calculator's, half are questions in the model's chat template. Every prompt runs
twice in the same batches of the engine: raw, and with all MLPs replaced by the model's own (`base_mlp`),
which changes nothing either. Compared with the model as Transformers loads it, in batches with padding on
either side: logits at all real positions, and greedy texts (`generate`). Exits with an error if a text
differs, or a logit by more than 1e-4.
"""

import argparse
import itertools
import sys

LARGEST = 1e-4


def chats(n: int) -> list:
    """Questions as messages, of several lengths."""
    from delta_transcoders.tasks.task import Example, Message

    things = (
        "France",
        "the largest planet",
        "bread",
        "a prime number",
        "rain",
        "the word and",
        "42",
        "tea",
    )
    forms = ("What is {}?", "Tell me about {} in one sentence.", "Why would anyone care about {}?")
    texts = (form.format(thing) for thing, form in itertools.product(things, forms))
    return [Example((Message("user", text),), None, "chat") for text in itertools.islice(texts, n)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--rows", type=int, default=32, help="prompts, 2 to 48 (32)")
    parser.add_argument("--new-tokens", type=int, default=32, help="longest text (32)")
    args = parser.parse_args()
    if not 2 <= args.rows <= 48:
        parser.error(f"--rows {args.rows}: 2 to 48")

    import torch

    from delta_transcoders.activations.capture import boot_bridge
    from delta_transcoders.families import family_of
    from delta_transcoders.generation import AnswerReader
    from delta_transcoders.interventions.engine import InterventionEngine
    from delta_transcoders.interventions.intervention import RAW, from_spec
    from delta_transcoders.interventions.loading import load_mlps
    from delta_transcoders.language_models import (
        end_ids,
        load_model,
        load_tokenizer,
        pad,
        position_ids,
        tokenize,
    )
    from delta_transcoders.tasks.calculator.task import Calculator

    tokenizer, task = load_tokenizer(args.model), Calculator()
    asked = task.generate(2, 2, args.rows, seed=0)[
        "evaluation"
    ]  # as many of every subset, in their order
    subsets = [
        [row for row in asked if row.subset == name]
        for name in dict.fromkeys(r.subset for r in asked)
    ]
    mixed = [row for rows in zip(*subsets, strict=True) for row in rows]
    examples = mixed[: args.rows - args.rows // 2] + chats(args.rows // 2)
    prompts = [list(row.prompt_ids) for row in tokenize(tokenizer, task, examples)]
    plain, model = load_model(args.model), load_model(args.model)
    reader = AnswerReader(tokenizer, task, end_ids(args.model, tokenizer))
    engine = InterventionEngine(
        boot_bridge(model, tokenizer),
        tokenizer,
        {"base_mlp": load_mlps(args.model, "float32", family_of(plain.config).site).sources},
    )
    conditions = {"raw": RAW, "base_mlp": from_spec("base_mlp", range(engine.n_layers))}

    failed = False
    for side in ("left", "right"):
        ids_BT = pad(prompts, tokenizer.pad_token_id, side)
        mask_BT = pad([[1] * len(ids) for ids in prompts], 0, side)
        inputs = {
            "input_ids": ids_BT,
            "attention_mask": mask_BT,
            "position_ids": position_ids(mask_BT),
        }
        twice = {name: value.repeat_interleave(2, 0) for name, value in inputs.items()}
        with torch.inference_mode():
            theirs = plain(**inputs).logits
            with engine.applied([*conditions.values()] * len(prompts)):
                ours = engine.model(**twice).logits
        for i, name in enumerate(conditions):
            difference = (ours[i::2] - theirs)[mask_BT.bool()].abs().max().item()
            failed |= difference > LARGEST
            print(f"logits, padding on the {side}, {name}: largest difference {difference:.1e}")

    ids_BT = pad(prompts, tokenizer.pad_token_id, "left")
    mask_BT = pad([[1] * len(ids) for ids in prompts], 0, "left")
    written = plain.generate(
        input_ids=ids_BT, attention_mask=mask_BT, max_new_tokens=args.new_tokens, do_sample=False
    )
    theirs = [read(ids, reader) for ids in written[:, ids_BT.shape[1] :].tolist()]
    ours = engine.generate(
        [ids for ids in prompts for _ in conditions],
        [*conditions.values()] * len(prompts),
        args.new_tokens,
        reader,
    )
    for i, name in enumerate(conditions):
        same = sum(map(str.__eq__, ours[i::2], theirs))
        failed |= same < len(theirs)
        print(
            f"greedy texts, {name}: {same} of {len(theirs)} identical ({len(set(theirs))} different)"
        )
    return int(failed)


def read(ids: list[int], reader) -> str:
    """The answer in what `generate` wrote, which goes on after the answer's end."""
    ends = (n for n in range(1, len(ids)) if reader.is_finished(ids[:n]))
    return reader.text(ids[: next(ends, len(ids))])


if __name__ == "__main__":
    sys.exit(main())
