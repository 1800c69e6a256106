"""Which stages of the shipped studies may run at once."""

import pytest

from delta_transcoders.study import turns
from delta_transcoders.study.plan import Graph
from delta_transcoders.study.study_file import read_study
from delta_transcoders.study.turns import least_seconds, needs_of, next_step, share_of_cpus


@pytest.fixture
def plan(pytestconfig, monkeypatch):
    """A shipped study's graph and all its stages, in their order."""

    def read(name: str):
        monkeypatch.chdir(pytestconfig.rootpath)
        graph = Graph(read_study(f"configs/tiny/{name}.yaml"))
        return graph, list(graph.steps.values())

    return read


def start(waiting, running, needs, memory=None, room=8.0):
    known = {step.stage.label: 0.0 for step in (*waiting, *running)} | (memory or {})
    return next_step(waiting, running, needs, known, room)


def labels(steps):
    return [step.stage.label for step in steps]


def test_the_tiny_study_two_at_a_time(plan):
    graph, waiting = plan("study")
    needs, running, ended = needs_of(graph, waiting), [], []
    while waiting or running:
        while len(running) < 2 and (step := start(waiting, running, needs)):
            waiting.remove(step)
            running.append(step)
        ended.append(labels(running))
        del running[0]
    assert ended == [
        ["base_model"],
        ["finetune", "base_activations"],
        ["base_activations", "behaviour"],
        ["behaviour", "base_transcoders"],
        ["base_transcoders", "activations"],
        ["activations"],
        ["delta"],
        ["features", "exp1"],
        ["exp1", "exp2a"],
        ["exp2a", "exp2b"],
        ["exp2b", "effects"],
        ["effects"],
        # They read the record, too: each sees what it would see one after the other.
        ["feature_pages"],
        ["comparisons"],
        ["report"],
    ]


def test_a_stage_waits_for_what_it_needs_through_others_and_through_links(plan):
    graph, steps = plan("study_planted")
    needs = needs_of(graph, steps)
    assert {"base_model", "base_transcoders", "planted/none/activations"} <= needs[
        "planted/none/delta"
    ]
    assert "finetune" not in needs["planted/none/delta"]
    # Where only some run, they wait for no others.
    few = [step for step in steps if step.stage.label in ("base_model", "planted/none/delta")]
    assert needs_of(graph, few) == {"base_model": set(), "planted/none/delta": {"base_model"}}


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        # They add the same residuals to the cache.
        ("study_controls", "delta", "dense"),
        ("study_controls", "corrections", "mlp_difference"),
        # One folder of logs and checkpoints.
        ("study_sweep", "base_transcoders", "sweep_base_transcoders"),
        ("study_faults", "faults_right", "faults_bare_text"),
        ("study_features", "feature_curve_kl", "feature_curve_kl_nmse"),  # one console.txt
    ],
)
def test_stages_that_write_into_one_folder_take_turns(plan, name, first, second):
    graph, _ = plan(name)
    first, second = graph.steps[first], graph.steps[second]
    apart = {first.stage.label: (), second.stage.label: ()}
    assert start([first], [], apart) is first
    assert start([first], [second], apart) is None
    assert start([second], [first], apart) is None


def test_the_option_stage_gives_a_stage_logs_of_its_own(pytestconfig, monkeypatch):
    monkeypatch.chdir(pytestconfig.rootpath)
    options = {"faults_bare_text": {"stage": "bare_text"}}
    graph = Graph(read_study("configs/tiny/study_faults.yaml", options=options))
    right, bare_text = graph.steps["faults_right"], graph.steps["faults_bare_text"]
    assert start([bare_text], [right], {"faults_bare_text": ()}) is bare_text


def test_stages_that_read_one_cache_run_at_once(plan):
    graph, steps = plan("study_controls")
    features, delta = graph.steps["features"], graph.steps["dense"]
    assert "features" not in needs_of(graph, steps)["dense"]
    assert start([features], [delta], {"features": ()}) is features


def test_a_stage_waits_for_room_in_memory_and_another_may_start_before_it(plan):
    graph, _ = plan("study")
    exp1, exp2a, exp2b = (graph.steps[name] for name in ("exp1", "exp2a", "exp2b"))
    needs = dict.fromkeys(("exp1", "exp2a", "exp2b"), ())
    memory = {"exp1": 3.0, "exp2a": 5.5, "exp2b": 5.0}
    assert start([exp2a, exp2b], [exp1], needs, memory, room=8) is exp2b  # 8 of 8
    assert start([exp2a], [exp1], needs, memory, room=8) is None
    assert start([exp2a], [exp1], needs, memory, room=8.5) is exp2a
    assert start([exp2a], [], needs, memory, room=4) is exp2a  # alone it may try


def test_a_linked_cache_is_one_cache(pytestconfig, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = pytestconfig.rootpath / "configs/tiny/study.yaml"
    inner = f"inner: {{config: {file}, links: [base_model, base_activations]}}"
    (tmp_path / "study.yaml").write_text(f"include: {file}\nstudies: {{{inner}}}\n")
    graph = Graph(read_study("study.yaml"))
    outer, inner = graph.steps["base_transcoders"], graph.steps["inner/base_transcoders"]
    assert outer.holds & inner.holds == {str(tmp_path / "runs/tiny/base_activations")}
    assert start([inner], [outer], {"inner/base_transcoders": ()}) is None


def test_the_least_time_of_the_tiny_study(plan):
    graph, steps = plan("study")
    seconds = {step.stage.label: step.stage.takes["seconds"] for step in steps}
    needs = needs_of(graph, steps)
    # base_model, base_activations, base_transcoders, delta, exp2a, and the three modules.
    assert least_seconds(needs, seconds, 9) == 100 + 11 + 90 + 28 + 130 + 5 + 5 + 1 == 370
    assert least_seconds(needs, seconds, 1) == sum(seconds.values())


def test_threads(monkeypatch):
    monkeypatch.setattr(turns, "n_cpus", lambda: 4)
    found = [share_of_cpus(n) for n in (1, 2, 3, 8)]
    assert found == [{}, *({"OMP_NUM_THREADS": n} for n in ("2", "1", "1"))]
