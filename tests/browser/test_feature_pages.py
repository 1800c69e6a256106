"""Feature pages in a browser, from files alone, with texts that break a page which does not escape them."""

import itertools
from dataclasses import replace

import pytest

from delta_transcoders.features.synthetic import HOSTILE, SUBSETS, synthetic_features
from delta_transcoders.pages import feature_pages, inline_feature
from delta_transcoders.pages.feature_pages import write_pages
from delta_transcoders.pages.words import measure_of, visible

pytestmark = pytest.mark.slow

N_LAYERS, N_FEATURES = 3, 12
ASKED, COPIED, _, UNSEEN = SUBSETS
MEASURES = tuple(dict.fromkeys(e.measure for e in next(synthetic_features(1, 1)).effects))
RATE = MEASURES[1]


@pytest.fixture(scope="module")
def features():
    """With one context in four: pages of them open faster."""
    whole = synthetic_features(N_LAYERS, N_FEATURES, hostile=True)
    return [replace(feature, contexts=feature.contexts[::4]) for feature in whole]


@pytest.fixture(scope="module")
def url(features, tmp_path_factory):
    """Of a page that holds everything itself."""
    report = tmp_path_factory.mktemp("study") / "report"
    return write_pages(features, report, "runs/<b>x", ["About <i>this</i>."], N_LAYERS).as_uri()


def opened(page, url, name=None):
    page.goto(url + (f"#{name}" if name else ""))
    page.wait_for_selector(f'h1:text-is("{name}")' if name else "h1")
    return page


def listed(page):
    return page.locator("#list b").all_text_contents()


def effect(feature, measure, subset):
    (found,) = (e for e in feature.effects if (e.measure, e.subset) == (measure, subset))
    return found.value


def test_shows_what_is_known_of_a_feature(new_page, url, features):
    page, feature = opened(new_page(), url, "L2F5"), features[2 * N_FEATURES + 5]
    assert page.title() == "L2F5 · runs/<b>x"
    assert page.locator("h1").text_content() == feature.name
    assert page.locator("footer").text_content() == "About <i>this</i>."
    text = page.locator("main").inner_text()
    value = effect(feature, RATE, UNSEEN)
    assert f"{value * 100:+.1f} [".replace("-", "−") in text
    assert "layer 2 · feature 5 (0 to 11)" in text
    assert "60–80 % of its maximum" in text and "the delta was not trained on" in text
    for activity in feature.activity.values():
        assert f"{100 * activity.density:.{int(activity.density < 0.0995)}f} %" in text
    assert "This is the last layer" in text and "runs/other/delta" in text
    assert page.locator("pre").text_content().endswith("--drop 2:5")
    assert "hint" in opened(page, url, "L1F5").locator("main").inner_text()


def test_contexts_have_their_tokens_and_activations(new_page, url, features):
    page, feature = opened(new_page(), url, "L0F1"), features[1]
    for tab, subset in enumerate(feature.activity):
        page.locator(".tabs button").nth(tab).click()
        expected = [c for c in feature.contexts if c.subset == subset]
        rows = page.locator(".ctx")
        assert rows.count() == len(expected) == 8
        first = rows.first.locator(".t")
        assert first.count() == len(expected[0].tokens)
        titles = [token.get_attribute("title") for token in first.all()]
        shown = [title.rsplit("  ", 1) for title in titles]
        assert [text for text, _ in shown] == [visible(token) for token in expected[0].tokens]
        assert shown[0][1] == "not read here"
        values = [float(value) for _, value in shown[1:]]
        assert values == pytest.approx(expected[0].activations[1:], abs=0.005)
        peak = rows.first.locator(".peak")
        assert peak.get_attribute("title") == titles[expected[0].peak]
        assert page.locator(".ctx .special").first.text_content() == "<bos>"
    assert page.locator(".tabs button", has_text="held out").count() == 2


def test_hostile_texts_are_inert(new_page, url):
    page = opened(new_page(), url, "L0F0")
    n_scripts = page.evaluate("document.scripts.length")
    for _ in range(N_FEATURES):
        page.keyboard.press("j")
        assert " · runs/<b>x" in page.title()
        assert page.evaluate("document.scripts.length") == n_scripts
        assert page.locator("img, main b").count() == 0
    text = page.locator("body").inner_text()
    assert HOSTILE[0] in text
    assert not {"\u202e", "\u2028", "\x00"} & set(text)


def test_a_feature_that_is_silent_or_unmeasured_says_so(new_page, url):
    page = opened(new_page(), url, "L1F2")
    assert "fires on none of the texts" in page.locator(".lead").text_content()
    page = opened(page, url, "L1F1")
    assert "was not measured" in page.locator(".lead").text_content()
    (card,) = page.locator(".card", has_text="What removing it does").all()
    assert card.locator("p").all_text_contents() == ["not measured"]
    page.select_option("#sort", label=f"without it: cross-entropy, {ASKED}")
    assert listed(page)[-3:] == ["L0F1", "L1F1", "L2F1"]
    assert page.locator("#list .value").last.text_content() == "–"


def test_sorts_by_the_effect_on_each_subset(new_page, url, features):
    page = opened(new_page(), url)
    # Not by the subset where the effects are largest.
    first = f"without it: {measure_of('dce').title}, {ASKED}"
    assert page.locator("#sort option:checked").text_content() == first
    known = [f for f in features if f.number != 1]
    for measure, subset in itertools.product(MEASURES, (ASKED, COPIED, UNSEEN)):
        page.select_option("#sort", label=f"without it: {measure_of(measure).title}, {subset}")
        sizes = {f.name: -abs(effect(f, measure, subset)) for f in known}
        assert listed(page)[: len(known)] == sorted(sizes, key=sizes.get)


def test_sorts_by_attribution_activity_and_place(new_page, url, features):
    page = opened(new_page(), url)
    page.select_option("#sort", label=f"attribution to log p(target), {ASKED}")
    expected = sorted(features, key=lambda f: -abs(f.attributions["ig_target"][ASKED]))
    assert listed(page) == [f.name for f in expected]
    page.select_option("#sort", label="layer, number")
    assert listed(page) == [f.name for f in features]
    page.select_option("#sort", label="rarest first")
    density = {f.name: sum(a.density for a in f.activity.values()) for f in features}
    dead = [f.name for f in features if f.number == 2]
    assert listed(page)[-len(dead) :] == dead  # though nothing is rarer
    live = [density[name] for name in listed(page)[: -len(dead)]]
    assert live == pytest.approx(sorted(density[f.name] for f in features if f.number != 2))
    page.select_option("#sort", label="ratio of densities")
    page.select_option("#of", UNSEEN)
    page.select_option("#to", COPIED)
    live = [f for f in features if f.number != 2]
    ratio = {
        f.name: (f.activity[UNSEEN].density + 1 / 2000) / (f.activity[COPIED].density + 1 / 2000)
        for f in live
    }
    assert listed(page)[: len(live)] == sorted(ratio, key=lambda name: -ratio[name])
    page.select_option("#sort", label="rarest first")
    assert page.locator("#ratio").is_hidden()


def test_searches_names_and_tokens_and_filters_layers(new_page, url, features):
    page = opened(new_page(), url)
    page.fill("#search", "l1f1")
    assert sorted(listed(page)) == ["L1F1", "L1F10", "L1F11"]
    page.fill("#search", "<IMG")
    found = [f.name for f in features if any("<img" in t.token for t in f.tokens[:5])]
    assert sorted(listed(page)) == sorted(found) and found
    page.fill("#search", "␣is")
    found = [f.name for f in features if any(t.token == " is" for t in f.tokens[:5])]
    assert sorted(listed(page)) == sorted(found)
    page.fill("#search", "")
    page.select_option("#layer", label="layer 2")
    assert sorted(listed(page)) == sorted(f.name for f in features if f.layer == 2)
    assert page.locator("#count").text_content() == (
        "12 of 36 features; sorted by these estimates, so the first are too large"
    )
    page.select_option("#sort", label="layer, number")
    assert page.locator("#count").text_content() == "12 of 36 features"
    page.fill("#search", "no such token")
    assert listed(page) == []


def test_the_keyboard_does_all(new_page, url):
    page = opened(new_page(), url)
    names = listed(page)
    assert page.title().startswith(names[0])
    for key, at in (("j", 1), ("j", 2), ("k", 1), ("k", 0), ("k", -1), ("j", 0)):
        page.keyboard.press(key)
        page.wait_for_selector(f'h1:text-is("{names[at]}")')
    page.keyboard.press("/")
    page.keyboard.type("L2")  # as text, not as keys
    assert page.locator("#search").input_value() == "L2"
    assert page.locator("h1").text_content() == names[0]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "layer"
    page.keyboard.press("/")
    page.locator("#search").focus()
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement === document.body")
    assert listed(page) == names
    page.locator("#list button").nth(3).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(f'h1:text-is("{names[3]}")')
    assert page.locator("#list [aria-current=true] b").text_content() == names[3]


def test_addresses_lead_to_features_and_back(new_page, url):
    page = opened(new_page(), url, "L2F7")
    link = page.locator(".links a").first
    name = link.text_content()
    link.click()
    page.wait_for_selector(f'h1:text-is("{name}")')
    page.go_back()
    page.wait_for_selector('h1:text-is("L2F7")')
    page.goto(f"{url}#L9F999")
    page.wait_for_selector("text=There is no feature L9F999")
    assert page.title() == "No such feature · runs/<b>x"
    page.goto(f"{url}#%3Cimg%3E%zz")  # not even an address
    page.wait_for_selector("text=There is no feature")
    page.keyboard.press("j")
    page.wait_for_selector(f'h1:text-is("{listed(page)[0]}")')


def test_the_theme_is_switched_and_remembered(new_page, url):
    page = opened(new_page(color_scheme="light"), url)
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.keyboard.press("t")
    dark = page.evaluate(background)
    assert dark != light
    assert opened(page, url).evaluate(background) == dark
    page.locator("#theme").click()
    assert page.evaluate(background) == light


def test_works_where_nothing_can_be_remembered(new_page, url):
    page = new_page(color_scheme="dark")
    page.add_init_script(
        "Object.defineProperty(window, 'localStorage', {get() { throw new Error('no storage'); }})"
    )
    opened(page, url).keyboard.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_texts_have_contrast_and_fit_narrow_windows(
    new_page, url, color_scheme, low_contrasts, is_wider_than_window
):
    page = new_page(color_scheme=color_scheme, viewport={"width": 320, "height": 700})
    for name in ("L0F4", "L1F2", "L1F1", "L7F7"):
        page.goto(f"{url}#{name}")
        page.wait_for_selector("h1")
        assert low_contrasts(page) == []
        assert not is_wider_than_window(page)
    other = opened(page, url, "L0F4")
    other.keyboard.press("t")
    assert low_contrasts(other) == []


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_a_notebook_s_view_is_readable_and_inert(new_page, features, color_scheme, low_contrasts):
    page = new_page(color_scheme=color_scheme)
    page.set_content("".join(map(inline_feature, features[:3])))
    assert low_contrasts(page) == []
    assert page.locator("script, img").count() == 0
    assert page.locator(".peak").count() == 6 and page.title() == ""


def test_says_what_to_do_without_javascript(new_page, url):
    page = new_page(java_script_enabled=False)
    page.goto(url)
    assert "features/features.csv" in page.locator(".notice").inner_text()


def test_without_contexts_no_text_of_the_data_is_in_the_file(new_page, features, tmp_path):
    page = write_pages(features[:5], tmp_path, "runs/x", with_contexts=False)
    assert '"contexts":[]' in page.read_text() and '"texts":[]' in page.read_text()
    shown = opened(new_page(), page.as_uri(), "L0F3")
    assert "--no-contexts" in shown.locator("main").inner_text()
    command = "delta-transcoders inspect runs/x PROMPT --drop 0:3"
    assert shown.locator("pre").text_content() == command


def test_subsets_without_data_say_so(new_page, features, tmp_path):
    alone = replace(features[0], activity={ASKED: features[0].activity[ASKED]}, contexts=())
    url = write_pages([alone, features[1]], tmp_path, "runs/x").as_uri()
    page = opened(new_page(), url, "L0F0")
    assert page.locator("td", has_text="no data").count() == 3
    assert "no data on this subset" in page.locator("main").inner_text()


def test_blocks_are_loaded_from_files_as_they_are_looked_at(
    new_page, features, tmp_path, monkeypatch
):
    monkeypatch.setattr(feature_pages, "MOST_INSIDE", 5)
    monkeypatch.setattr(feature_pages, "PER_BLOCK", 4)
    path = write_pages(features, tmp_path, "runs/x")
    assert len(list((tmp_path / "features").iterdir())) == 9
    page = opened(new_page(expected=("ERR_FILE_NOT_FOUND",)), path.as_uri(), "L2F11")
    for name in ("L0F0", "L0F5", "L1F0", "L1F11", "L2F3", "L0F0"):  # more than are kept
        opened(page, path.as_uri(), name)
        assert page.locator(".ctx").count() == 8
    (tmp_path / "features" / "8.js").unlink()
    page.goto(f"{path.as_uri()}#L2F11")
    page.reload()
    page.wait_for_selector("text=features/8.js is not beside this page")


def test_thousands_of_features_are_quick_and_small(new_page, tmp_path):
    features = list(synthetic_features(1, 32))

    def many():
        for i in range(26 * 128):
            feature = replace(features[i % 32], layer=i // 128, number=i % 128)
            # As many whole blocks as are looked at below; the others would take a minute to write.
            yield feature if i < 192 else replace(feature, contexts=())

    url = write_pages(many(), tmp_path, "runs/x", n_layers=26).as_uri()
    page = opened(new_page(), url)
    paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    assert page.evaluate(paint) < 2000
    assert page.locator("#list button").count() == 300
    assert page.locator("#count").text_content() == (
        "3,328 of 3,328 features; the first 300 are listed; sorted by these estimates, so the first are too "
        "large"
    )
    for name in [f"L{i // 4}F{32 * (i % 4) + 3}" for i in range(6)]:
        opened(page, url, name)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    metrics = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
    assert metrics["JSHeapUsedSize"] < 300e6
    assert page_memory(page) < 300e6


def page_memory(page) -> float:
    """Bytes of the largest of the browser's page processes, shared ones by their part."""
    session = page.context.browser.new_browser_cdp_session()
    processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
    found = []
    for process in processes:
        if process["type"] == "renderer":
            with open(f"/proc/{process['id']}/smaps_rollup", encoding="ascii") as lines:
                (kilobytes,) = [line.split()[1] for line in lines if line.startswith("Pss:")]
            found.append(1024 * float(kilobytes))
    return max(found)
