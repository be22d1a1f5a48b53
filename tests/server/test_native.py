"""Our own interface over HTTP."""

import http.client
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image

from kandinsky22.imaging.images import Painting
from kandinsky22.imaging.provenance import SOURCE_TYPE
from kandinsky22.request import Embedding
from kandinsky22.server.app import MAX_BODY
from kandinsky22.server.store import Store
from tests.server.fakes import FakeSession, app_of, read_defaults, running, until


@pytest.fixture
def session() -> FakeSession:
    return FakeSession()


@pytest.fixture
def app(tmp_path: Path, session: FakeSession) -> FastAPI:
    return app_of(tmp_path, session)


@pytest.fixture
def store(app: FastAPI) -> Store:
    return app.state.services.store


@pytest.fixture
def client(app: FastAPI) -> Iterator[httpx.Client]:
    with running(app) as url, httpx.Client(base_url=url) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        yield client


def create(client: httpx.Client, prompt: str = "a star", headers: dict[str, str] | None = None, **more: Any) -> Any:
    body = {"options": {"prompt": prompt, "seed": 1}, **more}
    answer = client.post("/api/v1/jobs", json=body, headers=headers or {})
    assert answer.status_code == 202, answer.text
    return answer.json()


def events(client: httpx.Client, job: str, last: str = "") -> list[tuple[str, str, Any]]:
    """The id, kind and values of the events of a job."""
    text = client.get(f"/api/v1/jobs/{job}/events", headers={"Last-Event-ID": last} if last else {}).text
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.split("\n\n") if block]
    return [(block["id"], block["event"], json.loads(block["data"])) for block in blocks]


def upload(client: httpx.Client, colour: str = "red") -> Any:
    file = io.BytesIO()
    Image.new("RGB", (70, 80), colour).save(file, "PNG")
    answer = client.post("/api/v1/uploads", files={"file": ("../../a.png", file.getvalue())})
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_a_job_ends_with_pictures_that_carry_their_request(client: httpx.Client) -> None:
    job = create(client, preview={"every": 1})
    kinds = [kind for _, kind, _ in events(client, job["id"])]
    assert kinds == ["queued", "started", *["progress"] * 4, "result"]
    job = client.get(f"/api/v1/jobs/{job['id']}").json()
    file = client.get(job["pictures"][0]["url"])
    painting = Painting.from_png(file.content)
    assert painting.request.texts == ("a star",) and painting.image.getpixel((0, 0)) == (1, 7, 90)
    assert file.headers["content-type"] == "image/png" and file.headers["x-content-type-options"] == "nosniff"


def test_a_job_that_succeeded_has_its_pictures_before_its_last_event(client: httpx.Client, store: Store) -> None:
    job = store.job(create(client, "wait")["id"])
    assert job is not None
    store.finish(job, [(b"file", {"width": 1, "height": 1, "seed": 1, "prompt": "wait"})])
    values = client.get(f"/api/v1/jobs/{job.id}").json()
    assert values["state"] == "succeeded" and len(values["pictures"]) == 1


def test_pictures_say_that_a_model_made_them(client: httpx.Client) -> None:
    job = create(client)
    events(client, job["id"])
    file = client.get(f"/api/v1/pictures/{job['id']}-0").content
    with Image.open(io.BytesIO(file)) as image:
        image.load()
        assert SOURCE_TYPE in image.info["XML:com.adobe.xmp"]  # type: ignore[operator]  # a text


def test_events_are_replayed_after_the_last_one_seen(client: httpx.Client) -> None:
    job = create(client)
    everything = events(client, job["id"])
    assert events(client, job["id"], everything[2][0]) == everything[3:]
    assert events(client, job["id"], everything[-1][0]) == []
    for other in ("1", "x-3", f"{everything[0][0]}0000000000", "-"):  # of an earlier process: from the first
        assert events(client, job["id"], other) == everything


def test_an_idempotency_key_repeats_a_call(client: httpx.Client) -> None:
    headers = {"Idempotency-Key": "k"}
    body = {"options": {"prompt": "a star"}}  # without a seed, which the server draws
    first = client.post("/api/v1/jobs", json=body, headers=headers).json()
    assert client.post("/api/v1/jobs", json=body, headers=headers).json()["id"] == first["id"]
    other = client.post("/api/v1/jobs", json={"options": {"prompt": "a circle"}}, headers=headers)
    assert other.status_code == 409 and "Idempotency-Key" in other.json()["error"]["message"]


def test_jobs_are_cancelled(client: httpx.Client, session: FakeSession) -> None:
    job = create(client, "wait")
    until(lambda: session.waiting)
    client.post(f"/api/v1/jobs/{job['id']}/cancel")
    assert [kind for _, kind, _ in events(client, job["id"])][-1] == "cancelled"
    assert client.get(f"/api/v1/jobs/{job['id']}").json()["state"] == "cancelled"
    assert client.get("/api/v1/jobs").json()[0]["id"] == job["id"]


def test_the_gallery_is_searched_starred_and_deleted(client: httpx.Client) -> None:
    for prompt in ("a red star", "a blue star", "a red ring"):
        events(client, create(client, prompt)["id"])
    events(client, create(client, "a red secret", hidden=True)["id"])
    found = client.get("/api/v1/gallery", params={"search": "red"}).json()
    assert [picture["prompt"] for picture in found] == ["a red ring", "a red star"]
    assert client.patch(f"/api/v1/pictures/{found[1]['id']}", json={"starred": True}).json()["starred"]
    assert len(client.get("/api/v1/gallery", params={"starred": True}).json()) == 1
    page = client.get("/api/v1/gallery", params={"count": 1, "before": found[0]["number"]}).json()
    assert [picture["prompt"] for picture in page] == ["a blue star"]
    assert client.delete(found[0]["url"]).status_code == 204
    assert client.get(found[0]["url"]).status_code == client.delete(found[0]["url"]).status_code == 404


def test_uploaded_pictures_are_inputs(client: httpx.Client) -> None:
    picture = upload(client)
    assert (picture["width"], picture["height"], picture["name"]) == (70, 80, "a.png")
    assert client.head(f"/api/v1/uploads/{picture['id']}").status_code == 200
    assert client.head("/api/v1/uploads/other").status_code == 404
    job = create(client, task="img2img", options={"prompt": "a star", "image": picture["id"], "seed": 1})
    assert events(client, job["id"])[-1][1] == "result"
    wrong = client.post("/api/v1/jobs", json={"task": "img2img", "options": {"prompt": "a", "image": "none"}})
    assert wrong.status_code == 400 and wrong.json()["error"]["parameter"] == "image"


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n and no more"])
def test_files_that_are_no_pictures_are_refused(client: httpx.Client, content: bytes) -> None:
    answer = client.post("/api/v1/uploads", files={"file": ("a.png", content)})
    assert answer.status_code == 400 and "cannot be read" in answer.json()["error"]["message"]


def test_embeddings_are_mixed_and_slerped(client: httpx.Client, tmp_path: Path) -> None:
    def make(**body: Any) -> tuple[Any, list[float]]:
        answer = client.post("/api/v1/embeddings", json=body)
        assert answer.status_code == 201, answer.text
        path = tmp_path / "made.safetensors"
        path.write_bytes(client.get(f"/api/v1/uploads/{answer.json()['id']}").content)
        return answer.json()["id"], Embedding.load(path).vector.tolist()

    first, one = make(parts=[{"text": "abc"}])
    _, two = make(parts=[{"text": "z"}])
    assert (one, two) == ([3, 97, 1, 0], [1, 122, 1, 0])
    mixed, both = make(parts=[{"embedding": first}, {"text": "z"}], weights=[1, -1])
    assert both == [2, -25, 0, 0]
    _, ends = make(parts=[{"embedding": first}, {"text": "z"}], how="slerp", t=1)
    assert ends == pytest.approx(two)
    job = create(client, task="interpolate", options={"images_and_prompts": [{"embedding": mixed}], "seed": 1})
    assert events(client, job["id"])[-1][1] == "result"
    for body in ({"parts": [{"text": "a"}], "how": "slerp"}, {"parts": [{"text": "a"}], "weights": [1, 2]}):
        assert client.post("/api/v1/embeddings", json=body).status_code == 400


def test_tasks_and_capabilities_are_described(client: httpx.Client) -> None:
    tasks = {task["name"]: task for task in client.get("/api/v1/tasks").json()}
    assert {"text2img", "inpaint"} <= set(tasks)
    assert client.get("/api/v1/capabilities").json()["ready"]


def test_errors_are_one_sentence_in_the_shape_of_the_interface(client: httpx.Client) -> None:
    for body in ({"options": {"prompt": 3}}, {"options": {"wrong": 1}}, {"task": "none"}, {"request": {"a": 1}}, []):
        answer = client.post("/api/v1/jobs", json=body)
        assert answer.status_code == 400 and answer.json()["error"]["message"], body
        assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]


def test_deeply_nested_values_are_refused(client: httpx.Client) -> None:
    text = '{"request": {"condition": ' + "[" * 50_000 + "]" * 50_000 + "}}"
    answer = client.post("/api/v1/jobs", content=text, headers={"content-type": "application/json"})
    assert answer.status_code == 400


@pytest.mark.parametrize("chunked", [False, True])
def test_a_request_that_is_too_large_is_refused(client: httpx.Client, chunked: bool) -> None:
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port or 0, timeout=20)
    connection.putrequest("POST", "/api/v1/jobs")
    connection.putheader("content-type", "application/json")
    if chunked:
        connection.putheader("transfer-encoding", "chunked")
        connection.endheaders()
        for _ in range((MAX_BODY >> 20) + 1):
            connection.send(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
        connection.send(b"0\r\n\r\n")
    else:
        connection.putheader("content-length", str(MAX_BODY + 1))
        connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413 and b"larger than 64 MB" in answer.read()
    connection.close()


def test_other_hosts_and_origins_are_refused(client: httpx.Client) -> None:
    assert client.get("/livez", headers={"host": "evil.example"}).status_code == 403
    answer = client.post("/api/v1/jobs", json={}, headers={"origin": "https://evil.example"})
    assert answer.status_code == 403 and "origin" in answer.json()["error"]["message"]


def test_the_documentation_needs_no_other_server(client: httpx.Client) -> None:
    texts = [client.get(path) for path in ("/docs", "/docs/docs.js", "/docs/docs.css")]
    assert all(text.status_code == 200 and "://" not in text.text for text in texts)
    assert client.get("/docs/other").status_code == 404
    assert "script-src 'self'" in texts[0].headers["content-security-policy"]
    paths = client.get("/openapi.json").json()["paths"]
    documented = [operation["responses"] for path in paths.values() for operation in path.values()]
    assert all({"400", "401", "413"} <= set(answers) and "422" not in answers for answers in documented)


def test_requests_are_logged_with_the_id_of_their_answer(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kandinsky22.server")
    answer = client.post("/api/v1/jobs", json={"options": {"prompt": "a secret", "seed": 1}})
    until(lambda: caplog.records)
    values = caplog.records[-1].values  # type: ignore[attr-defined]  # an extra
    assert values["id"] == answer.headers["x-request-id"] and values["route"] == "/api/v1/jobs"
    assert "secret" not in str(values)


def test_metrics_name_no_prompt(client: httpx.Client) -> None:
    events(client, create(client, "a very private star")["id"])
    figures = client.get("/metrics").text
    assert "kandinsky22_pictures_total 1.0" in figures and "private" not in figures


def test_a_model_that_cannot_be_loaded_makes_the_server_not_ready(tmp_path: Path) -> None:
    def fail() -> Any:
        raise ValueError("there is no such model; name another")

    with running(app_of(tmp_path, defaults=fail)) as url, httpx.Client(base_url=url) as client:
        answer = until(lambda: (a := client.get("/readyz")).text.startswith("the model cannot") and a)
        assert answer.status_code == 503 and "name another" in answer.text
        refused = client.post("/api/v1/jobs", json={"options": {"prompt": "a star"}})
        assert refused.status_code == 503 and "name another" in refused.json()["error"]["message"]
        assert client.get("/livez").status_code == 200


def test_censored_pictures_are_an_error(tmp_path: Path) -> None:
    app = app_of(tmp_path, content_filter=lambda _: "this picture is withheld", defaults=read_defaults)
    with running(app) as url, httpx.Client(base_url=url) as client:
        job = create(client)
        assert events(client, job["id"])[-1][1:] == (
            "failed",
            {"event": "failed", "reason": "censored", "error": "this picture is withheld"},
        )


@pytest.mark.parametrize("prompt", ["\ud800", "\0", "a" * 100_000])
def test_unusual_prompts_are_painted_or_refused(client: httpx.Client, prompt: str) -> None:
    text = json.dumps({"options": {"prompt": prompt, "seed": 1}})
    answer = client.post("/api/v1/jobs", content=text, headers={"content-type": "application/json"})
    assert answer.status_code in (202, 400), answer.text
