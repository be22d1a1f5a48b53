"""The store: jobs, pictures, files and keys survive crashes and stay within their space."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kandinsky22.backends.fake import Fake
from kandinsky22.request import Request
from kandinsky22.request.tasks import text2img
from kandinsky22.server.limits import Limits, StorageFullError, make_space
from kandinsky22.server.store import ConflictError, Job, Store, hash_secret


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


def asked(prompt: str = "a star", seed: int = 1) -> Request:
    return Fake().resolve(text2img(prompt, seed=seed))


def add(store: Store, prompt: str = "a star", owner: str = "ann", **options: Any) -> Job:
    return store.add_job(owner, asked(prompt), source="native", cost=1.0, **options)


def values(prompt: str = "a star") -> dict[str, Any]:
    return {"width": 8, "height": 8, "seed": 1, "prompt": prompt}


def finish(store: Store, prompt: str = "a star", size: int = 100) -> str:
    (picture,) = store.finish(add(store, prompt), [(b"x" * size, values(prompt))])
    return picture.id


def test_a_finished_job_has_its_pictures(store: Store) -> None:
    job = add(store)
    store.start(job.id, job.request)
    pictures = store.finish(job, [(b"first", values()), (b"second", values())])
    assert [picture.path.read_bytes() for picture in pictures] == [b"first", b"second"]
    ended = store.job(job.id)
    assert ended is not None and ended.state == "succeeded" and ended.request == job.request
    assert store.job(job.id, "bob") is None and store.picture(pictures[0].id, "bob") is None


def test_a_job_that_ended_stays_as_it_is(store: Store) -> None:
    job = add(store)
    store.end(job.id, "failed", "error", "why")
    assert store.finish(job, [(b"late", values())]) == []
    store.start(job.id, job.request)
    store.requeue(job.id)
    ended = store.job(job.id)
    assert ended is not None and (ended.state, ended.reason, ended.error) == ("failed", "error", "why")


def test_recover_returns_unfinished_jobs_and_removes_files_without_a_job(store: Store, tmp_path: Path) -> None:
    jobs = [add(store, str(k)) for k in range(4)]
    store.start(jobs[1].id, jobs[1].request)
    (stays,) = store.finish(jobs[2], [(b"x", values())])
    store.end(jobs[3].id, "cancelled")
    orphan = stays.path.with_name("orphan.png")
    orphan.write_bytes(b"half a pict")
    again = Store(tmp_path / "data")
    assert [(job.id, job.state) for job in again.recover()] == [(jobs[0].id, "queued"), (jobs[1].id, "queued")]
    assert stays.path.is_file() and not orphan.exists()


def test_an_idempotency_key_adds_one_job(store: Store) -> None:
    first = add(store, idempotency_key="k", asked=text2img("a star"))
    assert add(store, idempotency_key="k", asked=text2img("a star")).id == first.id
    assert add(store, owner="bob", idempotency_key="k").id != first.id
    with pytest.raises(ConflictError, match="another request"):
        add(store, idempotency_key="k", asked=text2img("a circle"))


def test_an_idempotency_key_adds_one_job_for_calls_at_once(store: Store) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(add(store, idempotency_key="k").id)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12 and len(set(found)) == 1


def test_the_gallery_searches_pages_and_stars(store: Store) -> None:
    pictures = [finish(store, prompt) for prompt in ("a red star", "a blue star", "a red circle", "100% red")]
    add(store, hidden=True)
    found = store.gallery("ann", search="star red")
    assert [picture.id for picture in found] == [pictures[0]]
    assert [picture.id for picture in store.gallery("ann", search="%")] == [pictures[3]]
    page = store.gallery("ann", count=3)
    rest = store.gallery("ann", count=3, before=page[-1].number)
    assert [picture.id for picture in (*page, *rest)] == pictures[::-1]
    assert store.star(pictures[1], "ann", True) and not store.star(pictures[1], "bob", True)
    assert [picture.id for picture in store.gallery("ann", starred=True)] == [pictures[1]]
    assert store.gallery("bob") == []


def test_a_deleted_picture_is_gone(store: Store) -> None:
    picture = store.picture(finish(store))
    assert picture is not None and not store.delete_picture(picture.id, "bob")
    assert store.delete_picture(picture.id, "ann") and not picture.path.exists() and store.picture(picture.id) is None


def test_old_pictures_go_when_space_is_needed(store: Store) -> None:
    oldest, starred, newest = (finish(store) for _ in range(3))
    store.star(starred, "ann", True)
    make_space(store, Limits(max_bytes=300, free_bytes=0), 100)
    assert [picture.id for picture in store.gallery("ann")] == [newest, starred]
    with pytest.raises(StorageFullError, match="stars"):
        make_space(store, Limits(max_bytes=150, free_bytes=0), 100)
    assert oldest not in [picture.id for picture in store.gallery("ann")]


def test_pictures_go_with_age(store: Store) -> None:
    finish(store)
    assert store.prune(max_seconds=3600.0) == 0
    assert store.prune(max_seconds=-1.0) == 1


def test_uploads_of_waiting_jobs_stay(store: Store) -> None:
    store.add_file("needed", "picture", "a.png", "ann", b"x" * 10)
    store.add_file("other", "picture", "b.png", "ann", b"x" * 10)
    add(store, "about needed")
    assert store.prune(max_bytes=0) == 1
    assert store.file("needed", "picture") is not None and store.file("other", "picture") is None
    assert store.file("needed", "embedding") is None


def test_a_full_disk_is_noticed_before_a_job_is_accepted(store: Store) -> None:
    limits = Limits(free_bytes=1000)
    make_space(store, limits, 500, free=lambda _: 1500)
    with pytest.raises(StorageFullError, match="disk is full"):
        make_space(store, limits, 501, free=lambda _: 1500)


def test_keys_are_stored_as_hashes(store: Store) -> None:
    secret = store.add_key("ann", ["paint"], 4)
    key = store.keys()[hash_secret(secret)]
    assert (key.name, key.scopes, key.max_jobs) == ("ann", frozenset({"paint"}), 4)
    assert all(secret.encode() not in file.read_bytes() for file in store.folder.rglob("*") if file.is_file())
    with pytest.raises(ValueError, match="already"):
        store.add_key("ann", ["paint"], 4)
    store.remove_key("ann")
    assert store.keys() == {}
    with pytest.raises(ValueError, match="no key"):
        store.remove_key("ann")


def test_a_folder_has_one_server(store: Store) -> None:
    store.claim()
    other = Store(store.folder)
    with pytest.raises(ValueError, match="another server"):
        other.claim()
    store.close()
    other.claim()
    other.close()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="choose another place with --data"):
        Store(tmp_path / "file")


def test_times_are_recorded(store: Store) -> None:
    job = add(store)
    store.start(job.id, replace(job.request))
    store.finish(job, [])
    ended = store.job(job.id)
    assert ended is not None and ended.started is not None and ended.ended is not None
    assert job.created <= ended.started <= ended.ended <= time.time()


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "kandinsky22.db").write_bytes(b"no database" * 1000)
    with pytest.raises(ValueError, match=r"cannot use .*file is not a database"):
        Store(tmp_path)
