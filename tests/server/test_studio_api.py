"""What the studio needs of our own interface besides jobs: events of all jobs, documents, folders, films."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.server.fakes import FakeSession, app_of, running, until


@pytest.fixture
def session() -> FakeSession:
    return FakeSession()


@pytest.fixture
def client(tmp_path: Path, session: FakeSession) -> Iterator[httpx.Client]:
    with running(app_of(tmp_path, session)) as url, httpx.Client(base_url=url) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        yield client


def paint(client: httpx.Client, prompt: str, **options: Any) -> str:
    """The id of the first picture of a prompt."""
    job = client.post("/api/v1/jobs", json={"options": {"prompt": prompt, "seed": 1, **options}}).json()["id"]
    until(lambda: client.get(f"/api/v1/jobs/{job}").json()["state"] == "succeeded")
    return f"{job}-0"


def test_one_stream_lists_what_has_not_ended_and_follows_it(client: httpx.Client, session: FakeSession) -> None:
    job = client.post("/api/v1/jobs", json={"options": {"prompt": "wait"}}).json()["id"]
    until(lambda: session.waiting)
    states, kinds = [], []
    with client.stream("GET", "/api/v1/events") as answer:
        for line in answer.iter_lines():
            kind, _, value = line.partition(": ")
            if kind == "event":
                kinds.append(value)
                if value == "ready":
                    session.release()
            if kind == "data" and kinds[-1] == "job":
                assert json.loads(value)["id"] == job
                states.append(json.loads(value)["state"])
                if states[-1] == "succeeded":
                    break
    assert states[0] == "running" and "progress" in kinds and kinds.index("ready") == 1


def test_documents_are_stored_replaced_and_removed(client: httpx.Client) -> None:
    for value in ({"steps": 5}, {"steps": 6}):
        assert client.put("/api/v1/documents/preset/quick", json={"value": value}).status_code == 200
    (document,) = client.get("/api/v1/documents").json()
    assert (document["kind"], document["name"], document["value"]) == ("preset", "quick", {"steps": 6})
    assert client.put("/api/v1/documents/other/quick", json={"value": 1}).status_code == 400
    assert client.put("/api/v1/documents/style/long", json={"value": "x" * 300_000}).status_code == 413
    assert client.delete("/api/v1/documents/preset/quick").status_code == 204
    assert client.delete("/api/v1/documents/preset/quick").status_code == 404


def test_pictures_are_found_by_words_and_settings(client: httpx.Client) -> None:
    star = paint(client, "a red star", num_inference_steps=5)
    ring = paint(client, "a red ring", width=128)

    def found(search: str) -> list[str]:
        return [picture["id"] for picture in client.get("/api/v1/library", params={"search": search}).json()]

    assert found("red") == [ring, star] and found("red star") == [star]
    assert found("steps:5") == [star] and found("size:128x64") == [ring] and found("seed:1 ring") == [ring]
    assert found("has:mask") == [] and found("sampler:ddpm") == [ring, star]


def test_deleted_pictures_return_from_the_trash_until_it_is_emptied(client: httpx.Client) -> None:
    picture = paint(client, "a star")

    def move(folder: str | None) -> None:
        assert client.patch(f"/api/v1/library/{picture}", json={"folder": folder}).json()["folder"] == folder

    def count(**query: Any) -> int:
        return len(client.get("/api/v1/library", params=query).json())

    move("trash")
    assert count() == 0 and count(folder="trash") == 1
    move("stars")
    assert count() == 1 and client.get("/api/v1/folders").json() == [{"name": "stars", "count": 1}]
    move("trash")
    assert client.delete("/api/v1/folders/trash").json() == {"count": 1}
    assert client.get(f"/api/v1/pictures/{picture}").status_code == 404


def test_thumbnails_and_films_are_made_of_pictures(client: httpx.Client) -> None:
    pictures = [paint(client, "a star", width=256, seed=seed) for seed in (1, 99)]
    thumbnail = client.get(f"/api/v1/pictures/{pictures[0]}/thumbnail").content
    with Image.open(io.BytesIO(thumbnail)) as image:
        assert image.format == "WEBP" and image.size == (192, 48)
    film = client.post("/api/v1/films", json={"pictures": pictures, "format": "gif"})
    with Image.open(io.BytesIO(film.content)) as image:
        assert image.n_frames == 2  # type: ignore[attr-defined]  # of a GIF
    assert client.post("/api/v1/films", json={"pictures": [pictures[0], "other"]}).status_code == 404


def test_metadata_restores_a_request_or_the_options_of_another_program(client: httpx.Client) -> None:
    file = client.get(f"/api/v1/pictures/{paint(client, 'a star')}").content
    ours = client.post("/api/v1/metadata", files={"file": ("a.png", file)}).json()
    assert ours["request"]["condition"] == {"prompt": "a star"} and ours["request"]["seed"] == 1
    image, plain = Image.new("RGB", (8, 8)), io.BytesIO()
    info = PngInfo()
    info.add_text(
        "parameters", "a cat\nNegative prompt: dog\nSteps: 9, Sampler: Euler, Seed: 4, Size: 64x96, Clip skip: 2"
    )
    image.save(plain, "PNG", pnginfo=info)
    theirs = client.post("/api/v1/metadata", files={"file": ("a.png", plain.getvalue())}).json()
    expected = {"prompt": "a cat", "negative_prompt": "dog", "num_inference_steps": 9, "sampler": "euler", "seed": 4}
    assert theirs["options"] == expected | {"width": 64, "height": 96} and theirs["ignored"] == ["Clip skip"]


def test_the_system_names_the_model_and_its_defaults(client: httpx.Client) -> None:
    system = client.get("/api/v1/system").json()
    assert system["model"] == "fake" and system["ready"] and system["defaults"]["decoder"]["steps"] == 2
    assert system["keys"] == [] and not system["can_switch_model"] and system["processes"]
    assert client.post("/api/v1/system/model", json={"model": "box"}).status_code == 403
