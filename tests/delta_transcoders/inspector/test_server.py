"""The server: whom it answers, what it refuses, and that its streams leave nothing behind."""

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from delta_transcoders.inspector import serve
from delta_transcoders.inspector.request import request_of
from delta_transcoders.inspector.server import LARGEST_BODY, _lines, application

URL = "http://127.0.0.1:8731/"
ASKED = {"prompt": "What is 12 * 34?", "alphas": [0.5], "drop": [[0, 2]]}


@pytest.fixture(scope="module")
def client(inspector):
    with TestClient(application(inspector, URL), base_url=URL) as client:
        yield client


def events(response) -> list[dict]:
    return [json.loads(line) for line in response.text.splitlines()]


def answer(inspector, request: dict) -> list[dict]:
    """All events, as JSON has them."""
    return json.loads(json.dumps(list(inspector.answer(request_of(request)))))


def is_told(found: list[dict], expected: list[dict]) -> bool:
    """All events in their order, but for `texts` that later ones replaced before they were sent."""
    rest = iter(expected)
    kept = [event for event in expected if event["event"] != "texts" or event is expected[-3]]
    return all(event in rest for event in found) and all(event in found for event in kept)


def test_a_stream_is_the_sessions_answer(client, inspector):
    response = client.post("/answer", json=ASKED)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("application/x-ndjson")
    assert is_told(events(response), answer(inspector, ASKED))


def test_two_clients_at_once_get_their_own_answers(client, inspector):
    requests = [ASKED | {"prompt": f"What is {n} + 3?", "drop": [[2, n]]} for n in range(5)]
    expected = [answer(inspector, request) for request in requests]
    found = [None] * len(requests)

    def ask(i):
        found[i] = events(client.post("/answer", json=requests[i]))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(is_told, found, expected))
    assert not is_told(found[0], expected[1])


def test_the_latest_texts_alone_wait_for_a_client_that_reads_slowly():
    texts = [{"event": "texts", "texts": ["a" * n]} for n in range(500)]
    sent = [{"event": "asked"}, *texts, {"event": "answers"}, {"event": "tokens"}]
    session = SimpleNamespace(answer=lambda request: (event for event in sent))

    async def read() -> list[str]:
        with ThreadPoolExecutor(1) as worker:
            lines = _lines(session, None, worker)
            first = await anext(lines)
            await asyncio.get_running_loop().run_in_executor(worker, int)  # all is written
            return [first, *[line async for line in lines]]

    assert list(map(json.loads, asyncio.run(read()))) == [sent[0], *sent[-3:]]


def test_the_page_runs_its_own_script_alone(client):
    response = client.get("/")
    assert response.status_code == 200
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"(src|href)=.?http", response.text)
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1"}, 403),
        ({"Host": "127.0.0.1:8731.evil.example"}, 403),
        ({"Host": "localhost:8731"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://127.0.0.1:8731"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "http://127.0.0.1:8731"}, 200),
    ],
    ids=str,
)
def test_only_its_own_page_is_answered(client, headers, status):
    assert client.get("/", headers=headers).status_code == status
    answered = client.post("/answer", json={"prompt": "a", "max_new_tokens": 1}, headers=headers)
    assert answered.status_code == status
    assert answered.headers["content-security-policy"] == "default-src 'none'"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1"}, 200),
        ({"Host": "localhost", "Origin": "http://localhost"}, 200),
        ({"Host": "127.0.0.1:80", "Origin": "http://127.0.0.1:80"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1:8731"}, 403),
        ({"Host": "127.0.0.1", "Origin": "http://localhost"}, 403),
    ],
    ids=str,
)
def test_browsers_do_not_name_port_80(inspector, headers, status):
    with TestClient(application(inspector, "http://127.0.0.1:80/")) as client:
        assert client.get("/", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/../etc/passwd", "GET", 404),
        ("/%2e%2e/etc/passwd", "GET", 404),
        ("/answer", "GET", 405),
        ("/", "POST", 405),
        ("/study.json", "GET", 404),
    ],
)
def test_there_is_nothing_else(client, path, method, status):
    response = client.request(method, path)
    assert response.status_code == status
    assert "passwd" not in response.text


@pytest.mark.parametrize(
    ("body", "kind", "status", "message"),
    [
        (b"{}", "text/plain", 415, "the request must be JSON"),
        (b"{}", None, 415, "the request must be JSON"),
        (b"prompt=a", "application/x-www-form-urlencoded", 415, "the request must be JSON"),
        (b"{", "application/json", 400, "the request is not JSON"),
        (b"\xff", "application/json", 400, "the request is not JSON"),
        (b"[" * 100_000, "application/json", 400, "the request is not JSON"),
        (
            b'{"prompt": "a", "drop": ' + b"[" * 600 + b"]" * 600 + b"}",
            "application/json",
            422,
            "the request is nested too deeply",
        ),
        (b" " * (LARGEST_BODY + 1), "application/json", 413, "is longer than 256 kB"),
        (b"[]", "application/json", 422, "expected a JSON object"),
        (b'{"prompt": "a", "alphas": [NaN]}', "application/json", 422, "alpha is nan"),
        (b'{"prompt": "a", "alphas": [1e999]}', "application/json", 422, "alpha is inf"),
        (b'{"prompt": "\\ud800"}', "application/json", 422, "half of a character"),
        (b'{"prompt": ""}', "application/json", 422, "the prompt is empty"),
        (json.dumps({"prompt": "is " * 400}), "application/json", 422, "shorten it"),
        (b'{"prompt": "a", "drop": [[0, 6]]}', "application/json", 422, "L0F0 to L0F5"),
        (b'{"prompt": "a", "layers": [7]}', "application/json", 422, "there is no layer 7"),
    ],
)
def test_a_malformed_request_is_refused_in_words(client, body, kind, status, message):
    headers = {} if kind is None else {"Content-Type": kind}
    response = client.post("/answer", content=body, headers=headers)
    assert response.status_code == status
    assert message in response.json()["error"] and len(response.json()["error"]) < 250


def test_an_error_while_answering_is_an_event_and_not_the_end(client, inspector, monkeypatch):
    def fail(text):
        raise RuntimeError("ours")

    monkeypatch.setattr(inspector.task, "execute", fail)
    assert events(client.post("/answer", json=ASKED))[-1] == {
        "event": "error",
        "error": "RuntimeError: ours",
    }
    monkeypatch.undo()
    assert events(client.post("/answer", json=ASKED))[-1]["event"] == "tokens"


@pytest.fixture
def served(inspectable_study):
    """A process that serves the study, and its port."""
    code = "from lightning_modules.commands import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", str(inspectable_study), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    line = process.stdout.readline()
    yield process, int(re.search(r"http://127\.0\.0\.1:(\d+)/", line)[1])
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()


def test_a_process_survives_lost_clients_and_ends_when_asked(served, inspector):
    process, port = served

    def post(**request):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        body = json.dumps(ASKED | request)
        connection.request("POST", "/answer", body, {"Content-Type": "application/json"})
        return connection, connection.getresponse()

    for _ in range(3):  # gone in the middle
        connection, response = post()
        for _ in range(3):
            response.readline()
        response.close()
        connection.sock and connection.sock.close()
        connection.close()
    began = time.monotonic()
    found = [json.loads(line) for line in post()[1].read().splitlines()]
    assert is_told(found, answer(inspector, ASKED))
    assert time.monotonic() - began < 20
    post(alphas=[n / 10 for n in range(16)])  # running
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 0
    said = process.stderr.read()
    assert said.splitlines()[-1] == "ended" and "Traceback" not in said


def test_a_port_in_use_is_one_line(inspectable_study, monkeypatch, capsys):
    from delta_transcoders.command import run

    with socket.socket() as taken:
        taken.bind((serve.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["serve", str(inspectable_study), "--port", str(port)])
        with pytest.raises(SystemExit) as stopped:
            run(serve.main)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()[0]
    assert error == (
        f"error: port {port} cannot be used (address already in use): give another with --port, or --port 0 "
        "for a free one"
    )


def test_help_says_who_can_reach_it_and_what_it_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["serve", "--help"])
    with pytest.raises(SystemExit):
        serve.main()
    said = " ".join(capsys.readouterr().out.split())
    assert "Other machines cannot reach it; other users of this one can" in said
    assert "Open only studies that you trust" in said and "its code runs" in said


def test_without_its_extra_it_says_what_to_install(inspectable_study, monkeypatch, capsys):
    from delta_transcoders.command import run

    monkeypatch.setattr(serve, "NEEDED", ("starlette_that_is_not_there", "uvicorn"))
    monkeypatch.setattr(sys, "argv", ["serve", str(inspectable_study)])
    with pytest.raises(SystemExit):
        run(serve.main)
    assert "pip install 'delta-transcoders[serve]'" in capsys.readouterr().err
