/** Paint: the picture, and beside it the words and what else decides it. */
import { doc, shown } from "../state/app";
import { jobs } from "../state/jobs";
import { recent } from "../state/library";
import { paint } from "../state/paint";
import { useStore } from "../state/store";
import { useText } from "../text";
import { Canvas } from "../canvas/Canvas";
import { Words } from "./Words";
import { Settings } from "./Settings";
import { Sources } from "./Sources";
import { Result } from "./Result";
import { Queue } from "./Queue";
import { Recent } from "./Recent";

export function Create() {
  return (
    <>
      <div className="studio">
        <Stage />
        <form
          className="panel"
          onSubmit={(event) => {
            event.preventDefault();
            void paint();
          }}
        >
          <Words />
          <Sources />
          <Settings />
        </form>
      </div>
      <Queue />
      <Recent />
    </>
  );
}

function Stage() {
  const t = useText();
  const what = useStore(shown);
  const all = useStore(jobs);
  const { list } = useStore(recent.store);
  const picture = useStore(doc, (now) => now.picture);
  const job = what.kind === "job" ? all.get(what.id) : undefined;
  const painted = what.kind === "picture" ? list.filter(({ id }) => id === what.id) : (job?.view.pictures ?? []);
  const preview = job?.progress?.preview;
  const isResult = painted.length > 0 || preview || job?.view.state === "failed" || (job && !picture);
  return (
    <section className="stage" aria-label={t("stage")}>
      {picture && isResult && (
        <div className="segments over" role="group" aria-label={t("stage")}>
          <button type="button" onClick={() => shown.set({ kind: "canvas" })}>
            {t("stage.canvas")}
          </button>
        </div>
      )}
      {painted.length ? (
        <Result pictures={painted} before={job && picture ? picture : null} />
      ) : preview ? (
        <img src={preview} alt={t("queue")} className="preview" />
      ) : job?.view.state === "failed" ? (
        <p role="alert">{t("failed", { error: job.view.error ?? "" })}</p>
      ) : picture ? (
        <Canvas picture={picture} />
      ) : job && job.view.state !== "cancelled" ? (
        <p className="waiting">{t("stage.waiting")}</p>
      ) : (
        <div className="invite">
          <p>{t("recent.empty")}</p>
          <p>{t("stage.drop")}</p>
        </div>
      )}
    </section>
  );
}
