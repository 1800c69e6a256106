"""The README and docs/: links and pictures are there, numbers are those of the tables, code in them runs."""

import csv
import math
import re
from decimal import Decimal
from pathlib import Path

import pytest

from delta_transcoders.metrics.intervals import newcombe_paired

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/smollm2").glob("*.md")),
]
WRITTEN = [
    page for page in PAGES if page.name not in ("FINDINGS.md", "LOG.md")
]  # by hand, and kept current
RESULTS = ROOT / "docs/results/604163"
NUMBER = r"(?<![\w.])−?\d*\.\d+(?![\w.]*\d)"
# Of the README's findings, in their order: figures of docs/findings.csv, each of these seeds.
SEEDS = ("604163", "277749", "182775", "794384", "168480")
IN_README = [
    "exp2a 3 tool no_delta tool_call_rate",
    "exp2a all tool no_delta tool_call_rate",
    "exp2a all tool full tool_call_rate",
    "controls all tool random_delta tool_call_rate",
    "exp2a all tool base_mlp math_correct_rate",
    "transplant_kl_nmse all tool transplant math_correct_rate",
    "feature_curve_kl_nmse/n90.csv cos",
    "spillover_transplant all general transplant mean_kl",
    "spillover_transplant - general raw mean_kl",
]


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    linked = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="(.*?)"', text)
    for link in linked:
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_lines_are_short_enough_to_read(page):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for line in text.splitlines():
        a_test_s_name = "::test_" in line
        assert len(line) <= 120 or line.startswith(("|", "  <")) or a_test_s_name, line


def is_rounded(text: str, value: float) -> bool:
    """Whether a number that is printed is this value.

    >>> is_rounded(".48", 0.476667), is_rounded("−.143", -0.143389), is_rounded(".48", 0.4866)
    (True, True, False)
    """
    digits = len(text.split(".")[1])
    printed = Decimal(text.replace("−", "-"))
    return math.isfinite(value) and abs(float(printed) - value) <= 0.5001 * 10**-digits


def findings_in_readme() -> tuple[str, str]:
    """What was found in the real model and in the tiny study, without links and registered bounds."""
    text = (ROOT / "README.md").read_text("utf-8")
    section = re.search(r"## What was found\n(.*?)\n## ", text, re.DOTALL)[1]
    section = re.sub(r"\]\(.*?\)", "]", section.replace("At most .02 nats", ""))
    real, tiny = section.split("**The tiny study**")
    return real, tiny


RATE = "correct_rate"
INTERVAL = ("", "_ci_low", "_ci_high")
REAL_SEEDS = ("697197", "335222", "552929", "649886", "949956")
# Of the README's findings in the real model, in their order: table, columns, row.
IN_README_OF_THE_REAL_MODEL = [
    *[
        ("exp2a/metrics", RATE, {"subset": "tool", "condition": name})
        for name in ("raw", "no_delta", "full")
    ],
    ("transplant/metrics", RATE, {"subset": "tool", "condition": "transplant"}),
    *[
        ("weight_baselines/baselines", RATE, {"subset": "tool", "condition": f"refit_{name}"})
        for name in ("svd_n64", "bias")
    ],
    ("transplant/metrics", RATE, {"subset": "tool", "condition": "finetuned_mlp"}),
    *[
        ("removal/removal", name, {"subset": "tool", "measure": RATE})
        for name in ("raw", "removed", "random_mean", "permuted_mean")
    ],
    *[
        (table, "tool_call_rate", {"subset": "hard_negative", "condition": name})
        for table, name in (
            ("exp2a/metrics", "raw"),
            ("transplant/metrics", "transplant"),
            ("weight_baselines/baselines", "refit_svd_n64"),
        )
    ],
    *[("spillover/metrics", "mean_kl", {"condition": name}) for name in ("raw", "transplant")],
    ("feature_curve_kl_nmse/n90", "cos", {}),  # of seeds that have an N90
    ("weight_baselines/n90", "cos", {"delta": "refit_svd"}),  # likewise
    (
        "deletion_features/selectivity",
        " ".join("selectivity" + end for end in INTERVAL),
        {"n_deleted": "8"},
    ),
]


def test_the_readme_s_findings_of_the_real_model_are_the_tables_numbers():
    values = [
        found[column]
        for table, columns, row in IN_README_OF_THE_REAL_MODEL
        for found in (cells(f"../smollm2/results/{seed}/{table}.csv", **row) for seed in REAL_SEEDS)
        for column in columns.split()
        if column in found
    ]
    in_table = 16 * len(REAL_SEEDS)  # the bullets' own numbers follow
    planted = [
        cells(f"../smollm2/planted/{name}.csv", subset="tool", condition="raw")[RATE]
        for name in ("attention", "mlps")
    ]
    values[in_table:in_table] = planted
    for way in ("effect", "seed"):
        of_what = [
            cells("../smollm2/rules/summary.csv", tokens="new", drawn_by=way, what=what)
            for what in ("feature", "neuron", "feature − neuron")
        ]
        values += [of["balanced_accuracy"] for of in of_what]
        values += [of_what[-1][f"balanced_accuracy{end}"] for end in INTERVAL[1:]]
    assert_printed(findings_in_readme()[0], values)


def test_the_readme_s_findings_are_the_tables_numbers():
    found = re.findall(NUMBER, findings_in_readme()[1])
    with open(ROOT / "docs/findings.csv", encoding="utf-8", newline="") as file:
        values = {(row["figure"], row["seed"]): float(row["value"]) for row in csv.DictReader(file)}
    expected = [values[figure, seed] for figure in IN_README for seed in SEEDS]
    assert len(found) == len(expected), found
    for text, value in zip(found, expected, strict=True):
        assert is_rounded(text, value), (text, value)


def rows_of(path: str) -> list[dict[str, str]]:
    with open(ROOT / "docs/results" / path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def cells(path: str, **where: str) -> dict[str, float]:
    """The numbers of the one row of docs/results/PATH in which columns have these values."""
    (row,) = [r for r in rows_of(path) if all(r[k] == v for k, v in where.items())]
    return {name: float(cell) for name, cell in row.items() if re.fullmatch(r"-?[\d.e-]+", cell)}


def fires_on(study: str, name: str, subset: str) -> dict[str, float]:
    layer, feature = re.fullmatch(r"L(\d+)F(\d+)", name).groups()
    return cells(f"{study}/features.csv", layer=layer, feature=feature, subset=subset)


def share(study: str, name: str, tokens: str) -> float:
    """Of the feature's activity, of those of its ten strongest tokens that are in a list."""
    rows = [r for r in rows_of(f"{study}/tokens.csv") if f"L{r['layer']}F{r['feature']}" == name]
    assert rows
    return sum(float(r["share"]) for r in rows if r["token"] in tokens.split(" "))


def dropped(name: str, subset: str = "tool_ood") -> dict[str, float]:
    layer, feature = re.fullmatch(r"L(\d+)F(\d+)", name).groups()
    return cells("tiny_0/effects.csv", layer=layer, feature=feature, subset=subset)


def features_section() -> str:
    text = (ROOT / "README.md").read_text("utf-8")
    return re.search(r"## Three features\n(.*?)\n## ", text, re.DOTALL)[1]


def assert_printed(text: str, values: list[float]) -> None:
    """The decimal numbers of a text are these values, in their order."""
    found = re.findall(NUMBER, text)
    assert len(found) == len(values), found
    for printed, value in zip(found, values, strict=True):
        assert is_rounded(printed, value), (printed, value)


DIGITS = "0 1 2 3 4 5 6 7 8 9"
IN_FEATURES = {  # what fires and on which tokens, where it is weaker, whether log p(call) has an interval
    "L2F4": ("tool", "\n", "copy", True),
    "L2F14": ("tool", ">", "", True),
    "L2F9": ("tool", DIGITS, "copy", False),
}


@pytest.mark.parametrize("name", IN_FEATURES)
def test_a_row_of_the_readme_s_three_features_is_the_tables_numbers(name):
    (line,) = re.findall(rf"^\| \*\*{name}\*\*.*", features_section(), re.MULTILINE)
    subset, tokens, other, is_seen = IN_FEATURES[name]
    values = [fires_on("tiny_0", name, f"{subset} (held out)")["maximum"]]
    values.append(share("tiny_0", name, tokens))
    values += [fires_on("tiny_0", name, f"{other} (held out)")["maximum"]] if other else []
    changes = dropped(name)
    log_p = ["d_call_logprob", "d_call_logprob_ci_low", "d_call_logprob_ci_high"]
    assert is_seen == (changes[log_p[1]] * changes[log_p[2]] > 0)
    values += [changes[k] for k in ("dce", "dce_ci_low", "dce_ci_high")]
    values += [changes[k] for k in (log_p if is_seen else log_p[:1])]
    assert_printed(line.replace("+", ""), values)


def test_what_the_readme_s_three_features_change_elsewhere():
    text = " ".join(features_section().split())
    on_trained = [dropped(name, "tool")["dce"] for name in IN_FEATURES]
    assert_printed(
        re.search(r"the cross-entropy rises by .*?\. No", text)[0],
        [min(on_trained), max(on_trained)],
    )
    on_lines = dropped("L2F4", "copy")
    assert_printed(
        re.search(r"Without L2F4 .*?, where", text)[0],
        [on_lines[f"d_call_logprob{end}"] for end in ("", "_ci_low", "_ci_high")],
    )
    counts = [int(dropped("L2F4", subset)["n_examples"]) for subset in ("tool", "tool_ood", "copy")]
    assert "29 of the trained kind, 24 of other kinds, 31 lines to copy" in text
    assert counts == [29, 24, 31]
    # No answer differs on the trained kind, at most one on the others: Newcombe's intervals of that.
    rates = [
        round(abs(dropped(name, subset)["d_tool_call_rate"]) * n)
        for name in IN_FEATURES
        for subset, n in zip(("tool", "tool_ood", "copy"), counts, strict=True)
    ]
    assert sorted(rates) == [0] * 8 + [1]
    assert round(100 * newcombe_paired(29, 0, 0, 0)[1]) == 12
    assert round(100 * newcombe_paired(14, 1, 0, 9)[1]) == 15


def test_the_readme_s_features_of_the_real_model_are_the_tables_numbers():
    text = " ".join(features_section().split())
    of = {
        (f"L{row['layer']}F{row['feature']}", row["subset"]): {
            k: float(row[k]) for k in ("n_examples", "density", "example_density", "maximum")
        }
        for row in rows_of("smollm2_0/features.csv")
    }
    cached, held, asked = "copy", "copy (held out)", "tool (held out)"
    assert [of["L29F13", s]["n_examples"] for s in (cached, held)] == [300, 60]
    assert of["L29F13", cached]["density"] == of["L29F13", held]["density"] == 0
    assert_printed(re.search(r"\*\*L13F4\*\*.*?\*\*", text)[0], [of["L13F4", asked]["density"]])
    assert round(of["L13F4", cached]["example_density"] * 300) == 25
    assert of["L13F4", held]["density"] == 0
    assert of["L29F18", cached]["example_density"] == of["L29F18", held]["example_density"] == 1
    assert_printed(
        re.search(r"\*\*L29F18\*\*.*?It promotes", text)[0],
        [
            of["L29F18", held]["density"],
            of["L29F18", held]["maximum"],
            of["L29F18", asked]["example_density"],
            of["L29F18", asked]["density"],
            of["L29F18", asked]["maximum"],
            of["L29F18", "tool_ood"]["example_density"],
        ],
    )
    effects = rows_of("smollm2_0/effects.csv")
    assert {row["layer"] for row in effects} == {"29"} and len(effects) == 12
    assert not {row["feature"] for row in effects} & {"13", "18"}
    assert {(row["subset"], row["n_examples"]) for row in effects} == {
        ("tool", "14"),
        ("copy", "12"),
    }
    assert {row[k] for row in effects for k in row if k.endswith("_rate")} == {"0", "nan"}
    largest = [
        max(abs(float(row["dce"])) for row in effects if row["subset"] == subset)
        for subset in ("tool", "copy")
    ]
    assert_printed(re.search(r"Dropping one of those six.*?rate,", text)[0], largest)
    assert round(100 * newcombe_paired(12, 0, 0, 0)[1]) == 24
    names = {name for name, _ in of} - {"L29F18"}
    assert "33 features fire on more than .02" in text and len(names) == 33
    assert all(of[n, asked]["density"] > 0.02 and of[n, held]["density"] == 0 for n in names)
    markup = "< </ > tool _ call calcul ator ( ) ))"
    assert "31 of them have more than half" in text
    assert sum(share("smollm2_0", name, markup) > 0.5 for name in names) == 31
    listed = re.search(r"13 of the 33 do fire.*?One seed", text)[0]
    firing = {name: of[name, cached]["density"] for name in names if of[name, cached]["density"]}
    assert set(re.findall(r"L\d+F\d+", listed)) == firing.keys() and len(firing) == 13
    assert_printed(listed, [max(firing.values())])


def test_the_real_model_s_table_is_the_tables_numbers():
    page = (ROOT / "docs/STUDIES.md").read_text("utf-8")
    conditions = ["base_model", "raw", *(f"alpha_{a}" for a in ("0.00", "0.25", "0.50", "0.75"))]
    conditions += ["alpha_1.00", "alpha_1.50"]
    rows = [cells("smollm2_0/metrics.csv", condition=condition) for condition in conditions]
    lines = {
        name: re.search(rf"^\| {name} \|(.*)", page, re.MULTILINE)[1]
        for name in ("right call", "95 % interval", "cross-entropy")
    }
    right = "math_correct_rate"
    assert_printed(lines["right call"], [row[right] for row in rows])
    ends = [row[f"{right}_ci_{end}"] for row in rows for end in ("low", "high")]
    assert_printed(lines["95 % interval"].replace("–", " "), ends)
    assert_printed(lines["cross-entropy"], [row["mean_ce"] for row in rows])
    random = cells("smollm2_0/metrics.csv", condition="random_delta")
    values = [random[k] for k in (right, f"{right}_ci_low", f"{right}_ci_high", "mean_ce")]
    assert_printed(re.search(r"activity do not \((.*?)\)", page)[1].replace("–", " "), values)
    assert {row["n_examples"] for row in rows} == {60} and "(60 prompts, each" in page


def test_the_real_model_s_planted_finetunes_are_the_tables_numbers():
    page = (ROOT / "docs/smollm2/findings.md.j2").read_text("utf-8")
    section = re.search(r"## The real model: finetunes whose.*?\n\n- ", page, re.DOTALL)[0]
    for name, shown in (("none", "nothing"), ("attention", "attention"), ("mlps", "MLPs")):
        base = "no_delta" if name == "mlps" else "base_mlp"
        rows = {
            condition: cells(f"../smollm2/planted/{name}.csv", subset="tool", condition=condition)
            for condition in ("raw", base, *(["full"] if name == "mlps" else []))
        }
        values = [row[f"{RATE}{end}"] for row in rows.values() for end in INTERVAL]
        values += [rows[condition]["mean_ce"] for condition in ("raw", base)]
        line = re.search(rf"^\| {shown} \|.*", section, re.MULTILINE)[0]
        assert_printed(line, values)


def test_the_concepts_examples_are_the_tables_numbers():
    page = (ROOT / "docs/CONCEPTS.md").read_text("utf-8")
    examples = [re.sub(r"\s*\n> ", " ", e) for e in re.findall(r"(?:^> .*\n)+", page, re.MULTILINE)]
    n_checked = 0
    for example in examples:
        cells = []
        for path in re.findall(r"`([\w/]+\.csv)`", example):
            with open(RESULTS / path, encoding="utf-8", newline="") as file:
                cells += [cell for row in csv.reader(file) for cell in row]
        values = [float(cell) for cell in cells if re.fullmatch(r"-?[\d.]+(e-?\d+)?", cell)]
        numbers = re.findall(NUMBER, example)
        # α is given in the text; an N90 is a count.
        numbers = [n for n in numbers if not (n in (".25", ".5", ".75") and "α = 0" in example)]
        assert bool(values) == bool(numbers) or "n90" in example or "1,024" in example, example
        for number in numbers:
            assert any(is_rounded(number, value) for value in values), (number, example)
        n_checked += len(numbers)
    assert n_checked > 50


def test_every_wide_tolerance_has_a_reason():
    """docs/TOLERANCES.md names each file that compares within 1e-3 or more, with this tolerance."""
    page = (ROOT / "docs/TOLERANCES.md").read_text("utf-8")
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text("utf-8")
        for tolerance in re.findall(r"\b(?:rel|abs|atol|rtol)=(\d[\de.-]*)", text):
            if float(tolerance) >= 1e-3:
                name = path.relative_to(ROOT).as_posix()
                assert f"`{name}`" in page or f"`{path.name}`" in page, (name, tolerance)


@pytest.mark.slow
def test_the_library_s_page_runs(dictionaries, monkeypatch, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/tiny").symlink_to(dictionaries)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/LIBRARY.md").read_text("utf-8"), re.DOTALL
    )
    code = "\n".join(blocks).replace(
        "range(4)", "range(2)"
    )  # the study of the tests has two layers
    exec(compile(code, "docs/LIBRARY.md", "exec"), {})
    assert capsys.readouterr().out
