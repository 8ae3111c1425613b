"""What strangers, broken clients and attackers get: an error in OpenAI's format, and nothing else."""

import json
import socket

import httpx
import pytest

from d1ray.serving.config import ServeConfig
from d1ray.serving.local import local_app

KEYS = ("first-key", "second-key")
BODY = {"model": "tiny", "prompt": "2+2=", "max_tokens": 4}


@pytest.fixture(scope="module")
def app(text_folder, tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("\n".join(KEYS))
    limits = {"body_bytes": 4096}
    return local_app(ServeConfig(model=text_folder, api_key_file=file, limits=limits))


@pytest.fixture(scope="module")
def url(app, listening):
    with listening(app) as url:
        yield url


@pytest.fixture
def client(url):
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEYS[0]}"}, timeout=30) as client:
        yield client


def error_of(answer: httpx.Response) -> dict:
    """The error, which holds nothing but OpenAI's four fields, and no trace of the program."""
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert not any(word in answer.text for word in ("Traceback", "File ", ".py", "site-packages"))
    return error


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer wrong", f"Basic {KEYS[0]}", KEYS[0], "Bearer é"])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions", "/metrics", "/v1/nothing"])
def test_without_a_key_nothing_of_the_api_is_to_be_had(url, path, header):
    headers = {} if header is None else {"Authorization": header.encode()}
    answer = httpx.request(
        "POST" if "completions" in path else "GET", url + path, headers=headers, timeout=60
    )
    assert answer.status_code == 401
    assert error_of(answer)["type"] == "authentication_error"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_any_of_the_keys_will_do(url):
    for key in KEYS:
        answer = httpx.get(f"{url}/v1/models", headers={"Authorization": f"bearer {key}"}, timeout=60)
        assert answer.status_code == 200


def test_health_and_the_page_are_open(url):
    assert httpx.get(f"{url}/health", timeout=60).json()["status"] == "ok"
    assert httpx.get(f"{url}/openapi.json", timeout=60).status_code == 200
    assert httpx.get(f"{url}/page/../../config.py", timeout=60).status_code in (401, 404)
    assert httpx.get(f"{url}/page/..%2f..%2fconfig.py", timeout=60).status_code == 404


def test_keys_are_compared_in_constant_time(url, monkeypatch):
    import hmac

    compared = []
    original = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or original(a, b))
    httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {KEYS[0]}"}, timeout=60)
    assert len(compared) == len(KEYS)  # the second one, too, though the first fits
    assert {len(side) for pair in compared for side in pair} == {32}


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b"\xff\xfe", 400),
        (b'{"model": "tiny", "prompt": "\\ud800"}', 400),
        (b'{"model": "\\udfff", "prompt": "x"}', 400),
        (b'{"model": "tiny", "prompt": "x", "\\ud800": 1}', 400),
        (b'{"model": "tiny", "prompt": "x", "temperature": NaN}', 400),
        (b'{"model": "tiny", "prompt": "x", "seed": 1e400}', 400),
        (b'{"model": "tiny", "prompt": "x", "temperature": 1e-50}', 400),
        (b'{"model": "tiny", "prompt": "x", "diffusion": {"position_temperature": 1e-39}}', 400),
        (b'{"model": "tiny", "prompt": "x", "seed": ' + b"9" * 3000 + b"}", 400),
        (b"[" * 4000, 400),
        (b'{"a":' * 800, 400),
        (json.dumps(BODY | {"prompt": "x" * 5000}).encode(), 413),
    ],
    ids=lambda value: str(value[:24]) if isinstance(value, bytes) else "",
)
def test_malformed_bodies_are_refused(client, content, status):
    answer = client.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    error_of(answer)


def test_other_content_is_refused(client):
    assert client.post("/v1/completions", data={"model": "tiny"}).status_code == 400
    assert client.post("/v1/completions", files={"file": b"x"}).status_code == 400


def test_unknown_paths_and_methods_are_told_in_the_same_format(client):
    assert error_of(client.get("/v1/nothing"))["message"] == "there is no /v1/nothing"
    answer = client.get("/v1/completions")
    assert answer.status_code == 405 and "POST" in answer.headers["allow"]
    error_of(answer)


def test_a_body_is_measured_while_it_comes(client):
    def endless():
        for _ in range(1000):
            yield b" " * 1024

    answer = client.post("/v1/completions", content=endless())  # chunked: no length is stated
    assert answer.status_code == 413
    error_of(answer)


def test_a_body_that_does_not_come_is_not_waited_for(text_folder, listening):
    app = local_app(ServeConfig(model=text_folder, limits={"body_s": 0.5}))
    with listening(app) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_other_sites_pages_are_not_let_in_unless_they_are_named(client, text_folder, listening):
    origin = {"Origin": "https://elsewhere.example"}
    answer = client.get("/v1/models", headers=origin)
    assert "access-control-allow-origin" not in answer.headers
    app = local_app(ServeConfig(model=text_folder, cors_origins=(origin["Origin"],)))
    with listening(app) as url:
        asked = {"Access-Control-Request-Method": "POST"}
        answer = httpx.options(f"{url}/v1/completions", headers=origin | asked, timeout=60)
        assert answer.headers["access-control-allow-origin"] == origin["Origin"]
        other = httpx.get(f"{url}/v1/models", headers={"Origin": "https://third.example"}, timeout=60)
        assert "access-control-allow-origin" not in other.headers


def test_a_fault_of_the_server_is_logged_and_not_told(client, app, caplog):
    engine = app.state.engine
    embedding = engine.weights.model.head_weight
    saved = embedding.detach().clone()
    embedding.data.fill_(float("nan"))
    try:
        answer = client.post("/v1/completions", json=BODY)
    finally:
        embedding.data.copy_(saved)
    assert answer.status_code == 500
    assert error_of(answer)["code"] == "internal_error"
    assert "NaN" not in answer.text and "NaN" in caplog.text
    assert client.post("/v1/completions", json=BODY).status_code == 200


def test_requests_are_counted(client):
    client.post("/v1/completions", json=BODY)
    client.get("/v1/nothing")
    text = client.get("/metrics").text
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(samples['d1ray_serve_requests_total{path="/v1/completions",status="200"}']) >= 1
    assert float(samples['d1ray_serve_requests_total{path="other",status="404"}']) >= 1
    assert float(samples["d1ray_serve_completion_tokens_total"]) >= 4
    assert float(samples["d1ray_serve_forwards_total"]) >= 1
