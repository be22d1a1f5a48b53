"""The queue: limits, events, cancelling, and what happens when the model or the disk fails."""

import asyncio
import gc
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kandinsky22.imaging.images import Painting
from kandinsky22.request import Defaults, Picture
from kandinsky22.request.events import Cancelled, Failed, Preview, Progress, Queued, Result, Started
from kandinsky22.request.tasks import img2img, text2img
from kandinsky22.server.job_queue import JobQueue
from kandinsky22.server.limits import (
    CensoredError,
    Limits,
    QueueFullError,
    RefusedError,
    StoppingError,
    StorageFullError,
)
from kandinsky22.server.live_job import LiveJob
from kandinsky22.server.store import Key, Store
from tests.server.fakes import FakeSession, read_defaults

ANN, BOB = (Key(name, frozenset({"paint"}), 4) for name in ("ann", "bob"))
Test = Callable[[JobQueue, FakeSession], Coroutine[Any, Any, None]]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., JobQueue]:
    def run(test: Test, defaults: Callable[[], Defaults] = read_defaults, **options: Any) -> JobQueue:
        """Run a test with a queue, and return the queue after its end. options: of `Limits` and `JobQueue`."""

        async def main() -> JobQueue:
            limits = {name: options.pop(name) for name in list(options) if name in Limits.__slots__}
            store, session = Store(tmp_path), FakeSession()
            queue = JobQueue(store, session, defaults, Limits(**{"free_bytes": 0, **limits}), **options)
            await queue.start()
            await test(queue, session)
            session.release()
            await queue.stop()
            store.close()
            return queue

        return asyncio.run(asyncio.wait_for(main(), 30))

    return run


async def submit(queue: JobQueue, prompt: str = "a star", key: Key = ANN, **options: Any) -> LiveJob:
    return await queue.submit(key, text2img(prompt, seed=1), source="native", **options)


async def events(queue: JobQueue, live: LiveJob, after: int = 0) -> list[Any]:
    return [event async for _, event in queue.events(live, after)]


def test_a_job_has_every_event_of_the_model(run: Any) -> None:
    async def test(queue: JobQueue, _: FakeSession) -> None:
        live = await submit(queue, preview=Preview())
        kinds = [type(event) for event in await events(queue, live)]
        assert kinds == [Queued, Started, *[Progress] * 4, Result]
        assert len(await queue.wait(live)) == 1

    run(test)


def test_events_continue_after_a_number(run: Any) -> None:
    async def test(queue: JobQueue, _: FakeSession) -> None:
        live = await submit(queue)
        everything = await events(queue, live)
        assert await events(queue, live, after=3) == everything[3:]
        assert await events(queue, live, after=10**6) == []

    run(test)


def test_events_that_come_while_others_are_read_are_not_lost(run: Any) -> None:
    async def test(queue: JobQueue, _: FakeSession) -> None:
        live = await submit(queue, "wait")
        while len(live.events) < 2:
            await asyncio.sleep(0.01)
        kinds = []
        async for _number, event in queue.events(live):
            kinds.append(type(event))
            if isinstance(event, Started):
                await queue.cancel(live)
                while not live.has_ended:
                    await asyncio.sleep(0.01)
        assert kinds == [Queued, Started, Cancelled]

    run(test)


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_by_the_process(run: Any) -> None:
    async def test(queue: JobQueue, session: FakeSession) -> None:
        first, second = await submit(queue, "wait"), await submit(queue, "wait too")
        assert (queue.position(first), queue.position(second)) == (None, 0)
        await queue.cancel(second)
        await queue.cancel(first)
        assert [type((await events(queue, live))[-1]) for live in (first, second)] == [Cancelled, Cancelled]
        assert session.order == ["wait"] and queue.waiting() == len(queue.running()) == 0
        stored = [queue.store.job(live.job.id) for live in (first, second)]
        assert [job and job.state for job in stored] == ["cancelled", "cancelled"]

    run(test, running=1)


def test_a_full_queue_refuses_and_says_when_to_try_again(run: Any) -> None:
    async def test(queue: JobQueue, _: FakeSession) -> None:
        together = await asyncio.gather(*(submit(queue, "wait") for _ in range(4)), return_exceptions=True)
        refused = [error for error in together if isinstance(error, QueueFullError)]
        assert len(refused) == 2 and all(error.retry_after for error in refused)

    run(test, waiting=2, running=1)


def test_a_key_has_a_number_of_jobs(run: Any) -> None:
    async def test(queue: JobQueue, session: FakeSession) -> None:
        lives = [await submit(queue, "wait") for _ in range(4)]
        with pytest.raises(QueueFullError, match="this key may have 4 jobs"):
            await submit(queue)
        await submit(queue, key=BOB)
        session.release()
        await queue.wait(lives[0])
        await submit(queue)

    run(test)


def test_the_next_job_is_of_the_key_that_has_had_least(run: Any) -> None:
    async def test(queue: JobQueue, session: FakeSession) -> None:
        lives = [await submit(queue, f"wait {name}{k}", key) for name, key in (("a", ANN), ("b", BOB)) for k in (1, 2)]
        for live in lives:
            while not live.has_ended:
                session.release()
                await asyncio.sleep(0.01)
        assert session.order == ["wait a1", "wait b1", "wait a2", "wait b2"]

    run(test, running=1)


def test_requests_beyond_the_limits_are_refused(run: Any) -> None:
    async def test(queue: JobQueue, _: FakeSession) -> None:
        for request, message in ((text2img("a", height=4096), "at most"), (text2img("a", num_images=9), "fewer")):
            with pytest.raises(ValueError, match=message):
                await queue.submit(ANN, request, source="native")

    run(test, max_pictures=8, max_pixels=64 * 64)


def test_a_full_disk_refuses_before_the_job_is_accepted(run: Any) -> None:
    async def test(queue: JobQueue, _: FakeSession) -> None:
        with pytest.raises(StorageFullError):
            await submit(queue)
        assert queue.store.jobs("ann") == []

    run(test, free=lambda _: 0, free_bytes=1)


def test_a_model_that_cannot_be_loaded_is_an_error_at_once(run: Any) -> None:
    attempts = []

    def fail() -> Defaults:
        attempts.append(1)
        raise ValueError("there is no such model; name another")

    async def test(queue: JobQueue, _: FakeSession) -> None:
        with pytest.raises(RefusedError, match="no such model"):
            await submit(queue)
        await asyncio.sleep(0.1)
        assert queue.problem is not None and len(attempts) == 1

    run(test, defaults=fail)


def test_processes_that_cannot_be_started_fail_what_runs_and_the_rest_waits(run: Any) -> None:
    async def test(queue: JobQueue, session: FakeSession) -> None:
        first, second = await submit(queue, "wait"), await submit(queue)
        session.inbox.put(ChildProcessError("a process died 3 times"))
        assert (await events(queue, first))[-1] == Failed("error", "a process died 3 times")
        assert isinstance((await events(queue, second))[-1], Result)

    run(test, running=1)


def test_a_job_that_fails_keeps_its_reason_across_restarts(run: Any) -> None:
    async def test(queue: JobQueue, _: FakeSession) -> None:
        live = await submit(queue, "fail")
        with pytest.raises(RuntimeError, match="asked to fail"):
            await queue.wait(live)

    store = run(test).store
    ((job),) = store.jobs("ann")
    assert (job.state, job.reason, job.error) == ("failed", "error", "it was asked to fail")


def test_stopping_puts_running_jobs_back_and_ends_their_events(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kandinsky22.server.job_queue.DRAIN_SECONDS", 0.1)
    ended = []

    async def test(queue: JobQueue, _: FakeSession) -> None:
        lives = [await submit(queue, "wait"), await submit(queue, "wait too")]
        waits = [asyncio.ensure_future(queue.wait(live)) for live in lives]
        await queue.stop()
        ended.extend(await asyncio.gather(*waits, return_exceptions=True))
        with pytest.raises(StoppingError):
            await submit(queue)

    store = run(test, running=1).store
    assert [type(error) for error in ended] == [StoppingError, StoppingError]
    assert [job.request.texts[0] for job in store.recover()] == ["wait", "wait too"]


def test_the_jobs_of_an_earlier_process_go_on(run: Any, tmp_path: Path) -> None:
    store = Store(tmp_path)
    request = text2img("a star", seed=3).resolved(read_defaults())
    ids = [store.add_job("ann", request, source="native", cost=1.0).id for _ in range(3)]
    store.start(ids[0], request)

    async def test(queue: JobQueue, _: FakeSession) -> None:
        for job in ids:
            live = await queue.live(job, "ann")
            assert live is not None and len(await queue.wait(live)) == 1

    run(test)


def test_a_content_filter_withholds_pictures_and_previews(run: Any) -> None:
    def verdict(picture: Painting) -> str | None:
        return "this picture is withheld" if "circle" in picture.request.texts[0] else None

    async def test(queue: JobQueue, _: FakeSession) -> None:
        assert await queue.wait(await submit(queue))
        live = await submit(queue, "a circle", preview=Preview())
        with pytest.raises(CensoredError, match="withheld"):
            await queue.wait(live)
        assert not any(isinstance(event, Progress) and event.preview for event in await events(queue, live))
        assert (await events(queue, live))[-1] == Failed("censored", "this picture is withheld")

    store = run(test, content_filter=verdict).store
    assert [picture.prompt for picture in store.gallery("ann")] == ["a star"]


def test_a_content_filter_that_fails_withholds(run: Any) -> None:
    def fail(_: Painting) -> str | None:
        raise KeyError("oops")

    async def test(queue: JobQueue, _: FakeSession) -> None:
        with pytest.raises(RuntimeError, match="content filter failed"):
            await queue.wait(await submit(queue))

    assert run(test, content_filter=fail).store.gallery("ann") == []


def test_pictures_that_cannot_be_stored_fail_the_job(run: Any, tmp_path: Path) -> None:
    async def test(queue: JobQueue, _: FakeSession) -> None:
        (tmp_path / "pictures").rmdir()
        (tmp_path / "pictures").write_text("in the way")
        with pytest.raises(RuntimeError, match="could not be stored"):
            await queue.wait(await submit(queue))
        (tmp_path / "pictures").unlink()
        assert await queue.wait(await submit(queue))

    run(test)


def test_ended_jobs_have_no_pixels_and_memory_stays_flat(run: Any) -> None:
    pixels, objects = [], []

    async def test(queue: JobQueue, _: FakeSession) -> None:
        picture = Picture.of(Image.new("RGB", (64, 64), "red"))
        file = Painting(picture.rgb, text2img("a star", seed=1), {}).to_png()
        queue.store.add_file(picture.sha256, "picture", "", "ann", file)
        request = img2img("a star", image=picture, seed=1)
        for k in range(300):
            await queue.wait(await queue.submit(ANN, request, source="native", preview=Preview(side=64)))
            if k in (99, 299):
                gc.collect()
                pixels.append(sum(issubclass(type(thing), Image.Image) for thing in gc.get_objects()))
                objects.append(len(gc.get_objects()))

    run(test)
    assert pixels[1] <= pixels[0] and objects[1] - objects[0] < 2000  # of 200 jobs
