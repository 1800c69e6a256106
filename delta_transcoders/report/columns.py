"""The columns of result tables: the library's own by name, a task's measures by how their names end.

A task's judge names its measures (a verdict `correct`); nothing here knows them. Of each, `metrics.csv` holds
the rate `correct_rate`, its interval `correct_rate_ci_low` and `correct_rate_ci_high`, and `correct_n`, the
number of examples that have a verdict; `generations.jsonl` holds the verdict as `correct`. Where a text
begins the behaviour, `X_logprob` is the mean log-probability of all of it after the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable

FIRST = (
    "experiment",
    "layer",
    "subset",
    "condition",
    "alpha",
    "d_new",
    "percentile",
    "n_examples",
    "n_tokens",
    "mean_ce",
    "mean_abs_base_acts",
    "mean_abs_delta_acts",
)
"""Every `metrics.csv` has these."""
LAST = (
    "mean_kl",
    "dce",
    "dce_ci_low",
    "dce_ci_high",
    "mean_cos",
    "mean_l2",
    "fvu",
    "l0_base",
    "l0_delta",
    "target",
)
"""Older tables may lack some of these."""
KL_ENDS = ("mean_kl_ci_low", "mean_kl_ci_high")
"""Where KL is what is tested: of spillover."""
PER_TOKEN = {"mean_ce": "nll", "mean_kl": "kl"}
"""Means over target tokens, each with the key of an example's sum in `generations.jsonl`."""
TITLES = {
    "mean_ce": "cross-entropy",
    "mean_kl": "KL to raw",
    "dce": "ΔCE",
    "fvu": "FVU",
    "mean_cos": "cosine",
    "mean_l2": "relative L2",
    "mean_abs_base_acts": "Σ|a|·‖row‖ base",
    "mean_abs_delta_acts": "Σ|a|·‖row‖ delta",
}


def whole_model(labels: Iterable[str]) -> str:
    """The `layer` that stands for the model: all of them, or the most that were replaced at once.

    Empty where none has more layers than the others, as in a table of single layers.

    >>> whole_model(["", "0", "0+2", "all"]), whole_model(["0", "2", "0+2"]), whole_model(["", "0", "2"])
    ('all', '0+2', '')
    """
    sizes = {
        label: float("inf") if label == "all" else label.count("+") for label in labels if label
    }
    largest = [label for label, size in sizes.items() if size == max(sizes.values())]
    return largest[0] if len(largest) == 1 else ""


def rates(names: Iterable[str]) -> list[str]:
    """
    >>> rates(["mean_ce", "correct_rate", "correct_rate_ci_low", "correct_n", "answer_logprob"])
    ['correct_rate']
    """
    return [name for name in names if name.endswith("_rate")]


def logprobs(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.endswith("_logprob")]


def verdict(rate: str) -> str:
    """The judge's name of a measure, of which `rate` is the column."""
    return rate.removesuffix("_rate")


def count(rate: str) -> str:
    """The column that holds the denominator of a rate."""
    return f"{verdict(rate)}_n"


def compared(names: Iterable[str]) -> dict[str, str]:
    """Columns whose values single examples have, each with its key in `generations.jsonl`.

    >>> compared(["mean_ce", "correct_rate", "mean_kl", "answer_logprob", "fvu"])
    {'mean_ce': 'nll', 'mean_kl': 'kl', 'answer_logprob': 'answer_logprob', 'correct_rate': 'correct'}
    """
    names = list(names)
    own = {name: key for name, key in PER_TOKEN.items() if name in names}
    return own | {n: n for n in logprobs(names)} | {rate: verdict(rate) for rate in rates(names)}


def metrics_columns(names: Iterable[str]) -> list[str]:
    """The header of a `metrics.csv` whose rows hold these names.

    Raises:
        ValueError: a name that is neither the library's nor a measure's.
    """
    names = list(dict.fromkeys(names))
    of_rates = rates(names)
    ends = [
        column
        for rate in of_rates
        for column in (f"{rate}_ci_low", f"{rate}_ci_high", count(rate))
        if column in names
    ]
    ends += logprobs(names)
    ends += [column for column in KL_ENDS if column in names]
    columns = [*FIRST, *of_rates, *ends, *LAST]
    if unknown := sorted(set(names) - set(columns)):
        raise ValueError(f"unknown columns {unknown}")
    return columns


def ranked_measures(names: Iterable[str]) -> list[str]:
    """The measures of a `ranking.csv`; features are ranked by the first.

    >>> ranked_measures(["rank", "d_answer_logprob", "d_answer_logprob_distinct", "dce", "dce_distinct"])
    ['d_answer_logprob', 'dce']
    """
    return [name.removesuffix("_distinct") for name in names if name.endswith("_distinct")]


def title(name: str) -> str:
    """A column's name for readers.

    >>> [title(n) for n in ("mean_ce", "exact_match_rate", "answer_logprob", "d_answer_logprob")]
    ['cross-entropy', 'exact match rate', 'log p(answer)', 'Δ log p(answer)']
    """
    if name.startswith("d_"):
        return f"Δ {title(name.removeprefix('d_'))}"
    if name.endswith("_logprob"):
        return f"log p({name.removesuffix('_logprob').replace('_', ' ')})"
    return TITLES.get(name, name.replace("_", " "))
