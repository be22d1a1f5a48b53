"""Figures of a server for Prometheus. Never a prompt or a key in a label."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from kandinsky22.request.events import Event, Failed, Notice, Progress, Result, Started, is_last
from kandinsky22.server.job_queue import JobQueue
from kandinsky22.server.live_job import LiveJob

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """Counts requests and jobs."""

    def __init__(self, queue: JobQueue) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter("kandinsky22_requests", "HTTP requests", ["route", "status"], registry=registry)
        self.jobs = Counter("kandinsky22_jobs", "Jobs that ended", ["dialect", "outcome"], registry=registry)
        self.pictures = Counter("kandinsky22_pictures", "Pictures painted", registry=registry)
        self.steps = Counter("kandinsky22_steps", "Steps of painting", ["stage"], registry=registry)
        self.notices = Counter("kandinsky22_notices", "Notices, such as that a process died", registry=registry)
        self.wait = Histogram("kandinsky22_wait_seconds", "From a job to its start", buckets=SECONDS, registry=registry)
        self.paint = Histogram(
            "kandinsky22_paint_seconds", "From a job's start to its result", buckets=SECONDS, registry=registry
        )
        waiting = Gauge("kandinsky22_jobs_waiting", "Jobs that wait", registry=registry)
        waiting.set_function(queue.waiting)
        running = Gauge("kandinsky22_jobs_running", "Jobs that run", registry=registry)
        running.set_function(lambda: len(queue.running()))
        queue.observers.append(self.observe)

    def observe(self, live: LiveJob, event: Event) -> None:
        """Count an event of a job."""
        match event:
            case Started():
                self.wait.observe(max(0.0, time.time() - live.job.created))
            case Progress(stage):
                self.steps.labels(stage).inc()
            case Notice():
                self.notices.inc()
            case Result(_, _, seconds):
                self.paint.observe(seconds)
                self.pictures.inc(len(live.pictures))
        if is_last(event):
            outcome = event.reason if isinstance(event, Failed) else type(event).__name__.lower()
            self.jobs.labels(live.job.source, outcome).inc()

    def text(self) -> bytes:
        """All figures in Prometheus's text format."""
        return generate_latest(self.registry)
