"""FusionBrain's interface, called as its clients do: run, then ask for the status until it is done."""

import base64
import io
import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from kandinsky22.request.parts import Text
from kandinsky22.server.job_queue import Limits
from kandinsky22.server.store import Store
from tests.server.fake_server import WAIT, RunningServer

API = "/key/api/v1"
HEADERS = {"X-Key": "Key anything", "X-Secret": "Secret anything"}


def params(**changes: Any) -> dict[str, Any]:
    values = {"type": "GENERATE", "numImages": 1, "width": 128, "height": 64, "generateParams": {"query": "a red star"}}
    return values | changes


def run(
    server: RunningServer, values: Any, path: str = "pipeline/run", headers: dict[str, str] = HEADERS, **fields: str
) -> httpx.Response:
    """Post a form as the documented clients do: every field is a part, `params` with its own content type."""
    text = values if isinstance(values, str) else json.dumps(values)
    files: dict[str, Any] = {name: (None, value) for name, value in fields.items()}
    return server.post(API + "/" + path, headers=headers, files=files | {"params": (None, text, "application/json")})


def finish(server: RunningServer, uuid: str, path: str = "pipeline/status", headers: dict[str, str] = HEADERS) -> Any:
    """The status when it is final."""
    end = time.monotonic() + WAIT
    while (status := server.get(f"{API}/{path}/{uuid}", headers=headers).json())["status"] not in ("DONE", "FAIL"):
        assert time.monotonic() < end, status
    return status


def opened(file: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(file)))


def test_pipeline_paints_a_picture(server: RunningServer) -> None:
    (pipeline,) = server.get(f"{API}/pipelines", headers=HEADERS).json()
    assert (pipeline["type"], pipeline["status"]) == ("TEXT2IMAGE", "ACTIVE")
    available = server.get(f"{API}/pipeline/{pipeline['id']}/availability", headers=HEADERS).json()
    assert available["status"] == available["pipeline_status"] == "ACTIVE"
    started = run(server, params(), pipeline_id=pipeline["id"])
    assert started.status_code == 201 and started.json()["status"] == "INITIAL"
    status = finish(server, started.json()["uuid"])
    assert (status["status"], status["result"]["censored"]) == ("DONE", False)
    assert opened(status["result"]["files"][0]).size == (128, 64)
    assert isinstance(status["generationTime"], int) and status["errorDescription"] is None


def test_ids_are_random_uuids(server: RunningServer) -> None:
    """Typed clients accept no others."""
    ids = [run(server, params()).json()["uuid"], server.get(f"{API}/pipelines").json()[0]["id"]]
    assert [uuid.UUID(one).version for one in ids] == [4, 4]


def test_older_paths_answer_in_their_shapes(server: RunningServer) -> None:
    (model,) = server.get(f"{API}/models", headers=HEADERS).json()
    assert server.get(f"{API}/text2image/availability?model_id={model['id']}").json() == {"model_status": "ACTIVE"}
    started = run(server, params(numImages=2), "text2image/run", model_id=str(model["id"])).json()
    status = finish(server, started["uuid"], "text2image/status")
    assert (status["censored"], len(status["images"])) == (False, 2)


def test_negative_prompts_and_styles_are_honoured(server: RunningServer) -> None:
    names = [style["name"] for style in server.get("/static/styles/key").json()]
    assert names[0] == "DEFAULT" and server.get("/key/api/v1/styles").json()[0]["titleEn"]
    started = run(server, params(style="ANIME", negativePromptDecoder="blue", negativePromptUnclip="green"))
    finish(server, started.json()["uuid"])
    assert server.last.condition == Text("a red star, anime style") and server.last.negative == Text("green, blue")


def test_params_may_be_a_file_and_the_id_a_query(server: RunningServer) -> None:
    files = {"params": ("blob", json.dumps(params()), "application/json")}
    answer = server.post(f"{API}/pipeline/run?pipeline_id=x", headers=HEADERS, files=files)
    assert answer.status_code == 201


@pytest.mark.parametrize(
    "values",
    [
        "{",
        "[]",
        "",
        params(type="OTHER"),
        {"type": "GENERATE"},
        params(width=32),
        params(numImages=99),
        params(width="a"),
    ],
)
def test_malformed_params_are_a_bad_request(server: RunningServer, values: Any) -> None:
    answer = run(server, values)
    assert answer.status_code == 400
    assert answer.json()["error"] == "Bad Request" and answer.json()["message"]


def test_failed_job_says_why(server: RunningServer) -> None:
    started = run(server, params(generateParams={"query": "fail"}))
    status = finish(server, started.json()["uuid"])
    assert (status["status"], status["result"]) == ("FAIL", None) and status["errorDescription"]


def test_withheld_picture_is_censored(start_server: Callable[..., RunningServer]) -> None:
    server = start_server(content_filter=lambda _: "this picture is withheld")
    status = finish(server, run(server, params()).json()["uuid"])
    assert (status["status"], status["errorDescription"]) == ("DONE", "this picture is withheld")
    assert status["result"] == {"files": [], "censored": True}


def test_status_changes_from_initial_to_processing(start_server: Callable[..., RunningServer]) -> None:
    server = start_server(Limits(waiting=1, running=1, free_bytes=0))
    server.session.by_step = True
    first, second = (run(server, params()).json()["uuid"] for _ in range(2))
    states = [server.get(f"{API}/pipeline/status/{one}").json()["status"] for one in (first, second)]
    assert states == ["PROCESSING", "INITIAL"]
    assert server.get(f"{API}/pipeline/x/availability").json()["status"] == "DISABLED_BY_QUEUE"
    full = run(server, params())
    assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1
    server.session.by_step = False
    assert finish(server, second)["status"] == "DONE"


def test_keys_are_sent_in_its_headers(start_server: Callable[..., RunningServer], tmp_path: Path) -> None:
    store = Store(tmp_path)
    secret = store.add_key("me", ["paint"], 4)
    store.close()
    server = start_server()
    assert run(server, params()).status_code == 401
    headers = {"X-Key": "Key me", "X-Secret": f"Secret {secret}"}
    assert finish(server, run(server, params(), headers=headers).json()["uuid"], headers=headers)["status"] == "DONE"


def test_unknown_job_is_not_found(server: RunningServer) -> None:
    assert server.get(f"{API}/pipeline/status/{uuid.uuid4()}", headers=HEADERS).status_code == 404
