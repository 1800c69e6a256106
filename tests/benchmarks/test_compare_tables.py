"""Tables of two runs side by side: what counts as the same, and what is said."""

import subprocess
import sys

import pytest

TABLE = "layer,condition,mean_ce,rate\n,raw,0.5,1\nall,full,2,nan\n"


@pytest.fixture
def compare(tmp_path, pytestconfig):
    def run(a: dict[str, str], b: dict[str, str], *options: str) -> tuple[int, str]:
        for name, tables in (("a", a), ("b", b)):
            for path, text in tables.items():
                (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name / path).write_text(text)
        tool = pytestconfig.rootpath / "benchmarks" / "compare_tables.py"
        done = subprocess.run(
            [sys.executable, tool, "a", "b", *options],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    return run


def test_the_same_tables_and_times_that_differ(compare):
    one = {"exp1/metrics.csv": TABLE, "exp1/x/split.csv": "a\n1\n", "stage_times.csv": "exp1,3\n"}
    status, shown = compare(one, one | {"stage_times.csv": "exp1,4\n"})
    assert (status, shown.count("the same")) == (0, 2)


@pytest.mark.parametrize(
    ("old", "new", "options", "status"),
    [
        ("0.5", "0.5000004", [], 0),
        ("0.5", "0.50001", [], 1),
        ("0.5", "0.50001", ["--atol", "1e-4"], 0),
        ("all,full,2", "all,full,2.1", ["--atol", "0", "--rtol", "0.06"], 0),
        ("all,full,2", "all,full,2.1", ["--atol", "0", "--rtol", "0.04"], 1),
        ("nan", "0", ["--atol", "9"], 1),
        ("nan", "", ["--atol", "9"], 1),
        ("full", "fill", ["--atol", "9"], 1),
    ],
)
def test_numbers_within_the_tolerance_and_names_to_the_letter(compare, old, new, options, status):
    edited = TABLE.replace(old, new)
    found, shown = compare({"metrics.csv": TABLE}, {"metrics.csv": edited}, *options)
    assert found == status
    assert ("too far apart" in shown) == bool(status)


def test_the_largest_difference_of_each_column_is_shown(compare):
    edited = TABLE.replace("0.5", "0.6").replace("2", "2.3").replace(",1\n", ",0.75\n")
    status, shown = compare({"m.csv": TABLE}, {"m.csv": edited}, "--atol", "1")
    assert status == 0
    assert "mean_ce: 0.3 (line 3: '2' and '2.3')" in shown
    assert "rate: 0.25 (line 2: '1' and '0.75')" in shown


def test_what_one_side_lacks(compare):
    rows, columns = TABLE.rsplit("all", 1)[0], TABLE.replace("rate", "share")
    one = {"a.csv": TABLE, "rows.csv": TABLE, "columns.csv": TABLE}
    status, shown = compare(one, {"rows.csv": rows, "columns.csv": columns, "b.csv": TABLE})
    assert status == 1
    for said in ("a.csv: only in a", "b.csv: only in b", "2 rows and 1", "has the column share"):
        assert said in shown


def test_chosen_tables(compare):
    status, shown = compare(
        {"a/m.csv": TABLE, "b.csv": TABLE}, {"a/m.csv": TABLE}, "--tables", "a/*.csv"
    )
    assert status == 0 and "b.csv" not in shown
    assert compare({"b.csv": TABLE}, {"b.csv": TABLE}, "--tables", "none.csv")[0] == 1
