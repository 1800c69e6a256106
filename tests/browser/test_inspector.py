"""The inspector's page: streaming, diff, slider, drop, keyboard; nothing foreign, and hostile texts inert."""

import re
import threading
import time

import pytest

uvicorn = pytest.importorskip("uvicorn")

from delta_transcoders.inspector import serve  # noqa: E402
from delta_transcoders.inspector.request import Request  # noqa: E402
from delta_transcoders.inspector.server import application  # noqa: E402
from delta_transcoders.inspector.session import Session  # noqa: E402

pytestmark = pytest.mark.slow

SECONDS = 30_000  # milliseconds
HOSTILE = (
    "</script><script>document.title='x'</script><img src=x onerror=\"document.title='x'\">"
    "\u202e\u2028\x00"
)


@pytest.fixture(scope="module")
def served(inspectable_study) -> Session:
    """What the server has opened; tests ask another one, which no other thread uses."""
    return Session(str(inspectable_study))


@pytest.fixture(scope="module")
def address(served):
    """Of a server in a thread of this process."""
    listening = serve.bound(0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
    app = application(served, url)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield url
    server.should_exit = True
    thread.join()


@pytest.fixture
def opened(new_page, address):
    """`opened(**options)`: the page with its first answers."""

    def make(**options):
        page = new_page(**options)
        page.set_default_timeout(SECONDS)
        page.goto(address)
        settled(page)
        return page

    return make


def settled(page) -> None:
    page.locator("[data-name=live] .p:not(:empty)").wait_for()
    page.locator("#features .by-layer").wait_for()
    page.locator(".writing").first.wait_for(state="detached")


def text(page, name: str) -> str:
    return page.locator(f"[data-name={name}] .text").text_content()


def shown(session, **request) -> dict[str, str]:
    """Texts by name as the page shows them."""
    for event in session.answer(Request(**request)):
        if event["event"] == "answers":
            return {a["name"]: spelt(a["text"]) + "…" * a["is_cut"] for a in event["answers"]}
    raise AssertionError


def spelt(text: str) -> str:
    """Control characters as `dom.js` shows them."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda m: f"U+{ord(m[0]):04X}", text)


def test_answers_are_the_sessions_and_marked_where_they_differ(opened, inspector):
    page = opened()
    prompt = page.locator("#prompt")
    assert prompt.input_value() == "What is 12 * 34?"
    prompt.fill("What is 7 + 5?")
    prompt.press("Enter")
    page.locator("#strip button", has_text="7").first.wait_for()
    settled(page)
    expected = shown(inspector, prompt="What is 7 + 5?")
    for name, label in inspector.info()["labels"].items():
        assert page.locator(f"[data-name={name}] h3").text_content() == label
        assert text(page, name) == expected[name]
        differs = page.locator(f"[data-name={name}] mark").count() > 0
        assert differs == (expected[name] != expected["raw"]) or expected[name] in expected["raw"]
    assert "answered in" in page.locator("#status").text_content()


def test_the_slider_asks_once_it_rests(opened, inspector):
    page = opened()
    asked = []
    page.on("request", lambda request: asked.append(request.post_data_json))
    page.locator("#alpha").focus()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    assert page.locator("#alpha-shown").text_content() == "0.5"
    page.locator("[data-name=live] h3", has_text="0.5 · delta").wait_for()
    settled(page)
    assert (
        text(page, "live")
        == shown(inspector, prompt="What is 12 * 34?", alphas=(0.5,))["alpha_0.50"]
    )
    assert asked[-1]["alphas"] == [0.5] and asked[-1]["conditions"] == []
    assert len(asked) < 10
    page.keyboard.press("Home")
    page.locator("[data-name=live] h3", has_text="− 0.5 · delta").wait_for()
    assert page.locator("#alpha-shown").text_content() == "−0.5"


def test_a_tokens_feature_is_left_out_and_put_back(opened, inspector):
    page = opened()
    page.locator("#strip button[aria-selected=true]").press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.locator("#strip button").nth(3).get_attribute("aria-selected") == "true"
    button = page.locator("#features [data-feature]").first
    name = button.get_attribute("data-feature")
    button.press("Enter")
    assert page.evaluate("document.activeElement.dataset.feature") == name
    page.locator("[data-name=live] h3", has_text=f"without {name}").wait_for()
    settled(page)
    layer, number = map(int, re.findall(r"\d+", name))
    request = {"prompt": "What is 12 * 34?", "drop": ((layer, number),)}
    assert text(page, "live") == shown(inspector, **request)["alpha_1.00"]
    assert page.locator("#dropped li").count() == 1
    page.locator(f"[data-feature={name}]", has_text="put back").wait_for()
    page.locator("#dropped button").press("Enter")
    page.locator("[data-name=live] h3", has_text="without").wait_for(state="detached")
    assert page.locator("#dropped li").count() == 0


def test_layers_are_chosen(opened, inspector):
    page = opened()
    page.locator("#layers input").first.uncheck()
    page.locator("#features h3", has_text="Layer 0").wait_for(state="detached")
    settled(page)
    expected = shown(inspector, prompt="What is 12 * 34?", layers=(2,))
    assert {name: text(page, name) for name in expected} == expected
    page.locator("#none").click()
    assert "no layer is chosen" in page.locator("#problem").text_content()
    page.locator("#all").click()
    page.locator("#features h3", has_text="Layer 0").wait_for()
    assert page.locator("#problem").is_hidden()


def test_answers_grow_while_they_are_written(opened, served, monkeypatch):
    page = opened()
    steps = served.engine.stream

    def slowly(*args):
        for step in steps(*args):
            time.sleep(0.1)
            yield step

    monkeypatch.setattr(served.engine, "stream", slowly)
    page.locator("#go").click()
    seen = set()
    page.locator("[data-name=raw] .writing:not(:empty)").wait_for()
    for _ in range(6):
        seen.add(text(page, "raw"))
        time.sleep(0.1)
    assert len(seen) > 2


def test_what_the_server_refuses_is_shown(opened):
    page = opened(expected=("422",))
    page.locator("#prompt").fill("is " * 300)
    page.locator("#go").click()
    page.locator("#problem", has_text="the model's context holds 128").wait_for()
    page.locator("#prompt").fill("What is 12 * 34?")
    page.locator("#go").click()
    page.locator("#problem").wait_for(state="hidden")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_and_readable_in_both_schemes(opened, low_contrasts, is_wider_than_window, scheme):
    page = opened(color_scheme=scheme, viewport={"width": 320, "height": 640})
    assert not is_wider_than_window(page)
    assert low_contrasts(page) == []
    page.locator("#features [data-feature]").first.click()
    page.locator("#dropped button").wait_for()
    page.locator("#none").click()
    assert low_contrasts(page) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background
    assert low_contrasts(page) == []


def test_hostile_texts_stay_texts(opened, served, monkeypatch):
    monkeypatch.setattr(served.reader, "text", lambda ids: HOSTILE)
    monkeypatch.setattr(served.task, "execute", lambda text: HOSTILE)
    page = opened()
    title = page.title()
    page.locator("#prompt").fill(HOSTILE.replace("\x00", ""))
    with page.expect_response("**/answer"):
        page.locator("#go").click()
    settled(page)
    page.locator("#strip button").nth(50).wait_for()
    assert "onerror" in page.locator("#strip").text_content()
    assert page.title() == title
    assert page.locator("img").count() == 0 and page.locator("script").count() == 2
    for part in (page.locator("[data-name=raw] .text"), page.locator("[data-name=raw] .tool")):
        assert "<img src=x onerror" in part.text_content()
        assert "U+202EU+2028U+0000" in part.text_content()
        assert "\u202e" not in part.text_content()
