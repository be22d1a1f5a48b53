/** All jobs of this client, kept up to date by one stream of events; it survives reload, reconnection and a new server. */
import { api, ApiError, type JobView } from "../api/client";
import { connect, type Connection } from "../api/stream";
import { refreshSystem, system } from "./app";
import type { RequestJson } from "./request";
import { persistent, Store } from "./store";

export interface Progress {
  stage: "prior" | "decoder";
  i: number;
  n: number;
  preview: string | null; // a data URL
  since: number; // ms, when this stage's first step was seen, and which that was
  first: number;
  at: number;
}
export interface Job {
  view: JobView;
  progress: Progress | null;
  notices: string[];
}
export type Jobs = ReadonlyMap<string, Job>;

export const connection = new Store<Connection>("connecting");
export const jobs = new Store<Jobs>(new Map());
/** What this browser asked for, by job, the newest last; the group says for what: "create", "grid-...". */
export const asked = persistent<{ list: { id: string; group: string }[] }>("kandinsky22.jobs", { list: [] });
const REMEMBERED = 400;

export const hasEnded = (job: JobView): boolean => job.state !== "queued" && job.state !== "running";
const onEnd = new Set<(job: JobView) => void>();
export function whenJobEnds(listener: (job: JobView) => void): () => void {
  onEnd.add(listener);
  return () => onEnd.delete(listener);
}

function put(view: JobView): void {
  const old = jobs.get().get(view.id);
  if (old && hasEnded(old.view) && !hasEnded(view)) return; // an older answer that arrives late
  const next = new Map(jobs.get());
  next.set(view.id, { view, progress: hasEnded(view) ? null : (old?.progress ?? null), notices: old?.notices ?? [] });
  jobs.set(next);
  if (hasEnded(view) && !(old && hasEnded(old.view))) onEnd.forEach((listener) => listener(view));
}

function change(id: string, values: (job: Job) => Partial<Job>): void {
  const job = jobs.get().get(id);
  if (!job || hasEnded(job.view)) return;
  const next = new Map(jobs.get());
  next.set(id, { ...job, ...values(job) });
  jobs.set(next);
}

interface ProgressEvent {
  job: string;
  stage: "prior" | "decoder";
  i: number;
  n: number;
  preview: string | null;
}

let listed = new Set<string>(); // by the stream since it was connected

function onEvent(kind: string, data: unknown): void {
  if (kind === "job") {
    listed.add((data as JobView).id);
    put(data as JobView);
  } else if (kind === "progress") {
    const event = data as ProgressEvent;
    change(event.job, ({ progress: old }) => {
      const now = performance.now();
      const same = old && old.stage === event.stage && old.i <= event.i;
      const preview = event.preview ? `data:image/png;base64,${event.preview}` : (old?.preview ?? null);
      const started = same ? { since: old.since, first: old.first } : { since: now, first: event.i };
      return { progress: { stage: event.stage, i: event.i, n: event.n, preview, at: now, ...started } };
    });
  } else if (kind === "notice") {
    const { job, text } = data as { job: string; text: string };
    change(job, ({ notices }) => (notices.includes(text) ? {} : { notices: [...notices, text] }));
  } else if (kind === "positions") {
    for (const [id, position] of Object.entries(data as Record<string, number>)) {
      change(id, ({ view }) => ({ view: { ...view, position } }));
    }
  } else if (kind === "ready") {
    void catchUp();
  }
}

/** Ask for the jobs that ended while there was no connection. */
async function catchUp(): Promise<void> {
  const unknown = [...jobs.get().values()].filter((job) => !hasEnded(job.view) && !listed.has(job.view.id)).map((job) => job.view.id);
  await Promise.all(unknown.map(refresh));
}

export async function refresh(id: string): Promise<JobView | null> {
  try {
    const view = await api.get("/api/v1/jobs/{job}", { path: { job: id } });
    put(view);
    return view;
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) {
      const next = new Map(jobs.get());
      next.delete(id);
      jobs.set(next);
    }
    return null;
  }
}

export function start(): () => void {
  return connect(onEvent, (state) => {
    if (state === "open") {
      listed = new Set();
      if (connection.get() !== "open") void untilReady();
    }
    connection.set(state);
  });
}

/** Ask for the system until the model is loaded. */
async function untilReady(): Promise<void> {
  for (;;) {
    await refreshSystem();
    const now = system.get();
    if (now === null || now.ready || connection.get() === "lost") return;
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}

export interface Wish {
  group: string;
  preview?: number; // the side of previews in pixels; 0 or nothing: none
  hidden?: boolean;
}

const RETRIES = 4;

/** Ask for a request. The same call is sent again if the answer is lost; the server then finds the job by its key. */
export async function submit(request: RequestJson, wish: Wish): Promise<JobView> {
  const headers = { "idempotency-key": crypto.getRandomValues(new Uint32Array(4)).join("-") };
  const body = {
    task: "text2img",
    options: {},
    request: request as unknown as Record<string, unknown>,
    hidden: wish.hidden ?? false,
    preview: wish.preview ? { every: 1, side: wish.preview } : null,
  };
  for (let tries = 0; ; tries++) {
    try {
      const view = await api.post("/api/v1/jobs", { body, headers });
      put(view);
      asked.set(({ list }) => ({ list: [...list.slice(-REMEMBERED), { id: view.id, group: wish.group }] }));
      return view;
    } catch (error) {
      const again = error instanceof ApiError && (error.kind === "offline" || error.status === 502 || error.status === 503);
      if (!again || tries >= RETRIES) throw error;
      await new Promise((resolve) => setTimeout(resolve, 700 * (tries + 1)));
    }
  }
}

export async function cancel(id: string): Promise<void> {
  put(await api.post("/api/v1/jobs/{job}/cancel", { path: { job: id } }));
}

/** Wait until a job has ended. */
export function ended(id: string): Promise<JobView> {
  return new Promise((resolve) => {
    const now = jobs.get().get(id);
    if (now && hasEnded(now.view)) {
      resolve(now.view);
      return;
    }
    const stop = whenJobEnds((view) => {
      if (view.id === id) {
        stop();
        resolve(view);
      }
    });
  });
}

/** Seconds that a job still needs, from the pace of the steps seen so far; null before there are two. */
export function secondsLeft(progress: Progress | null): number | null {
  if (!progress || progress.i <= progress.first) return null;
  return ((progress.at - progress.since) / 1000 / (progress.i - progress.first)) * (progress.n - progress.i);
}

/** How much of a job is done, from 0 to 1: the decoder is most of it. */
export function share(progress: Progress | null): number {
  if (!progress) return 0;
  const part = progress.i / progress.n;
  return progress.stage === "prior" ? part * 0.2 : 0.2 + part * 0.8;
}
