"""A study's page in a browser: seen by everybody, on any window, without a network, and hurt by nothing."""

import pytest

from delta_transcoders.features.files import read_features, write_features
from delta_transcoders.features.synthetic import synthetic_features
from delta_transcoders.files import write_json
from delta_transcoders.pages.feature_pages import write_pages
from tests.report_studies import HOSTILE, page_of, write_effects, write_study

pytestmark = pytest.mark.slow

RATES = {
    "asked": {"base_model": 0.02, "raw": 0.97, "no_delta": 0.13, "full": 0.94},
    "other": {"base_model": 0.01, "raw": 0.03, "no_delta": 0.0, "full": 0.05},
    "third": {"base_model": 0.0, "raw": 0.41},
}


def write_page(study):
    path = study / "report" / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page_of(study), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    study = write_study(
        tmp_path_factory.mktemp("study"),
        RATES,
        dose={-0.5: 0.0, 0: 0.13, 0.5: 0.66, 1: 0.94},
        layers=tuple(map(str, range(26))),
    )
    write_effects(study, {"": {"A": 0.95, "B": 0.94}, "L0F1": {"A": 0.4, "B": 0.3}}, "asked")
    return study


@pytest.fixture(scope="module")
def address(study):
    return write_page(study)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(new_page, low_contrasts, address, scheme):
    page = new_page(color_scheme=scheme)
    page.goto(address)
    page.evaluate("document.querySelectorAll('details').forEach(found => found.open = true)")
    assert low_contrasts(page) == []
    assert page.title() == page.inner_text("h1")
    assert page.locator("svg[role=img]").count() == page.locator("svg").count() >= 4
    for name in page.get_by_role("img").all():
        assert name.evaluate(
            "n => n.getAttribute('aria-labelledby') && n.querySelector('title').textContent"
        )


def test_both_themes_differ_in_the_figures(new_page, address):
    inks = []
    for scheme in ("light", "dark"):
        page = new_page(color_scheme=scheme)
        page.goto(address)
        inks.append(page.locator("svg text").first.evaluate("n => getComputedStyle(n).fill"))
    assert inks[0] != inks[1]


@pytest.mark.parametrize("width", [320, 1280])
def test_it_does_not_scroll_sideways(new_page, is_wider_than_window, address, width):
    page = new_page(viewport={"width": width, "height": 700})
    page.goto(address)
    page.evaluate("document.querySelectorAll('details').forEach(found => found.open = true)")
    assert not is_wider_than_window(page)
    # The figures scroll by themselves, and keep the size of their text.
    assert page.locator("svg text").first.evaluate("n => n.getBoundingClientRect().height") > 9


def test_it_needs_no_javascript(new_page, address):
    page = new_page(java_script_enabled=False)
    page.goto(address)
    assert page.locator("h1").text_content().startswith("Yes: ")
    assert page.locator("script").count() == 0
    page.click("summary >> nth=0")
    assert page.locator("details[open] pre").is_visible()


def test_links_lead_somewhere(new_page, study, address):
    page = new_page()
    page.goto(address)
    for link in page.locator("nav a").all():
        assert page.locator(link.get_attribute("href")).count() == 1
    assert page.locator("#features a").count() == 0  # there are no pages of features


def test_a_feature_is_one_click_away(new_page, tmp_path):
    study = write_study(tmp_path, {"asked": RATES["asked"]})
    write_effects(study, {"": {"B": 0.9}, "L0F1": {"B": 0.3}}, "asked", {"L0F1": 0.5})
    write_features(study / "features", synthetic_features(1, 3), {"delta": "d"})
    write_pages(read_features(study / "features"), study / "report", "study")
    page = new_page()
    page.goto(write_page(study))
    page.click("#features a >> text=L0F1")
    page.wait_for_function("document.title.startsWith('L0F1')")


def test_a_hostile_study_is_inert(new_page, low_contrasts, is_wider_than_window, tmp_path):
    name = "</script>\u202e$\\frac$<img onerror=x>"
    rates = {name: RATES["asked"], "other": RATES["other"]}
    study = write_study(tmp_path, rates, text=HOSTILE, prompt=HOSTILE, dose={0: 0.1, 1: 1.0})
    task = {"subsets": {name: HOSTILE}, "prompt": HOSTILE, "measures": {"polite": HOSTILE}}
    write_json(study / "finetune" / "data" / "task.json", task)
    page = new_page(viewport={"width": 320, "height": 700})
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    page.goto(write_page(study))
    assert page.locator("script, img, iframe").count() == 0
    assert (
        page.evaluate("document.documentElement.outerHTML.match(/[\\u202a-\\u202e\\u0000]/)")
        is None
    )
    assert "onerror=alert(2)" in page.inner_text("#prompts")
    assert low_contrasts(page) == [] and not is_wider_than_window(page)
