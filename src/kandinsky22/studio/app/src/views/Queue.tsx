import { shown } from "../state/app";
import { cancel, hasEnded, jobs, refresh, secondsLeft, share, type Job } from "../state/jobs";
import { describe, type RequestJson } from "../state/request";
import { useStore } from "../state/store";
import { useText } from "../text";

export function Queue() {
  const t = useText();
  const active = [...useStore(jobs).values()].filter((job) => !hasEnded(job.view));
  if (!active.length) return null;
  return (
    <section className="queue">
      <h2>{t("queue")}</h2>
      <ul>
        {active.map((job) => (
          <Waiting key={job.view.id} job={job} />
        ))}
      </ul>
    </section>
  );
}

function Waiting({ job: { view, progress } }: { job: Job }) {
  const t = useText();
  const left = secondsLeft(progress);
  const name = describe((view.request as unknown as RequestJson).condition) || view.id;
  return (
    <li>
      <button type="button" className="plain" onClick={() => shown.set({ kind: "job", id: view.id })}>
        {name}
      </button>
      <progress max={1} value={share(progress)} aria-label={name} />
      <small>
        {view.position !== null && view.state === "queued" ? t("queue.place", { n: view.position }) : null}
        {progress ? t("queue.step", { i: progress.i, n: progress.n }) : null}
        {left !== null ? `, ${t("queue.left", { s: Math.ceil(left) })}` : null}
      </small>
      <button type="button" onClick={() => void cancel(view.id).catch(() => refresh(view.id))}>
        {t("cancel")}
      </button>
    </li>
  );
}
