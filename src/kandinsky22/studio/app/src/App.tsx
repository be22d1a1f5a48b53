/** The studio: the picture first, the words beneath it, and what was painted before. */
import { useEffect, useState } from "react";
import { hasKey, request, setKey, thumbnailUrl, whenKeyWanted, type LibraryPicture } from "./api/client";
import { dismiss, doc, edit, shown, system, toasts } from "./state/app";
import { cancel, connection, hasEnded, jobs, refresh, secondsLeft, share, type Job } from "./state/jobs";
import { recent, remove, star } from "./state/library";
import { paint, restorePicture } from "./state/paint";
import { useStore } from "./state/store";
import { language, setLanguage, useText } from "./text";

/** A picture of the server; with a key it is fetched, since an address alone cannot carry one. */
function Picture({ url, alt, className }: { url: string; alt: string; className?: string }) {
  const [source, setSource] = useState(hasKey() ? "" : url);
  useEffect(() => {
    if (!hasKey()) return setSource(url);
    let own = "";
    let live = true;
    void request(url)
      .then((response) => response.blob())
      .then((blob) => live && setSource((own = URL.createObjectURL(blob))))
      .catch(() => undefined);
    return () => {
      live = false;
      if (own) URL.revokeObjectURL(own);
    };
  }, [url]);
  return source ? <img src={source} alt={alt} className={className} /> : <span className={className} />;
}

export function App() {
  const t = useText();
  const state = useStore(connection);
  const server = useStore(system);
  return (
    <div className="app">
      <header>
        <h1>{t("app.name")}</h1>
        <Language />
      </header>
      {state === "lost" && (
        <p className="banner" role="status">
          {t("connection.lost")}
        </p>
      )}
      {state === "open" && server && !server.ready && (
        <p className="banner" role="status">
          {server.problem ?? t("connection.loading")}
        </p>
      )}
      <main>
        <Stage />
        <Create />
        <Queue />
        <Recent />
      </main>
      <KeyForm />
      <Toasts />
    </div>
  );
}

function Language() {
  const t = useText();
  const now = useStore(language);
  return (
    <div className="segments" role="group" aria-label={t("language")}>
      {(["en", "ru"] as const).map((name) => (
        <button key={name} type="button" lang={name} aria-pressed={now === name} onClick={() => setLanguage(name)}>
          {name === "en" ? "English" : "Русский"}
        </button>
      ))}
    </div>
  );
}

function Stage() {
  const t = useText();
  const what = useStore(shown);
  const all = useStore(jobs);
  const pictures = useStore(recent.store);
  const job = what.kind === "job" ? all.get(what.id) : undefined;
  const picture = what.kind === "picture" ? pictures.list.find(({ id }) => id === what.id) : job?.view.pictures[0];
  const preview = job?.progress?.preview;
  return (
    <section className="stage" aria-label={t("recent")}>
      {picture ? (
        <Picture key={picture.id} url={picture.url} alt={picture.prompt} />
      ) : preview ? (
        <img src={preview} alt={t("queue")} className="preview" />
      ) : job?.view.state === "failed" ? (
        <p role="alert">{t("failed", { error: job.view.error ?? "" })}</p>
      ) : (
        <p>{t("recent.empty")}</p>
      )}
      {picture && (
        <div className="actions">
          <a className="button" href={picture.url} download={`${picture.id}.png`}>
            {t("download")}
          </a>
          <button type="button" onClick={() => void restorePicture(picture)}>
            {t("again")}
          </button>
        </div>
      )}
    </section>
  );
}

function NumberField(props: { name: "seed" | "steps" | "guidance"; own?: number | null | undefined; step?: string; min: number }) {
  const t = useText();
  const value = useStore(doc, (now) => now[props.name]);
  return (
    <div className="field">
      <label htmlFor={props.name}>{t(props.name)}</label>
      <input
        id={props.name}
        type="number"
        min={props.min}
        step={props.step ?? "1"}
        value={value ?? ""}
        placeholder={props.own === undefined || props.own === null ? "" : t("model.own", { value: props.own })}
        aria-describedby={`${props.name}-help`}
        onChange={(event) => edit({ [props.name]: event.target.value === "" ? null : Number(event.target.value) })}
      />
      <small id={`${props.name}-help`}>{t(`${props.name}.help`)}</small>
    </div>
  );
}

function Create() {
  const t = useText();
  const now = useStore(doc);
  const decoder = useStore(system)?.defaults?.decoder;
  const submit = () => void paint();
  return (
    <form
      className="create"
      onSubmit={(event) => {
        event.preventDefault();
        submit();
      }}
    >
      <label className="field wide">
        <span>{t("prompt")}</span>
        <textarea
          rows={2}
          value={now.prompt}
          placeholder={t("prompt.example")}
          onChange={(event) => edit({ prompt: event.target.value })}
          onKeyDown={(event) => {
            if (event.key === "Enter" && !event.shiftKey) {
              event.preventDefault();
              submit();
            }
          }}
        />
      </label>
      <button type="submit" className="primary">
        {t("paint")}
      </button>
      <details className="wide">
        <summary>{t("settings")}</summary>
        <div className="fields">
          <label className="field">
            <span>{t("negative")}</span>
            <input type="text" value={now.negative} onChange={(event) => edit({ negative: event.target.value })} />
          </label>
          <div className="field">
            <label htmlFor="count">{t("count")}</label>
            <input
              id="count"
              type="number"
              min={1}
              max={16}
              value={now.count}
              aria-describedby="count-help"
              onChange={(event) => edit({ count: Math.max(1, Math.min(16, Number(event.target.value) || 1)) })}
            />
            <small id="count-help">{t("count.help")}</small>
          </div>
          <NumberField name="seed" min={0} />
          <NumberField name="steps" min={1} own={decoder?.steps} />
          <NumberField name="guidance" min={0} step="0.1" own={decoder?.guidance_scale} />
        </div>
      </details>
    </form>
  );
}

function Queue() {
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
  const condition = view.request.condition as { prompt?: string };
  const name = condition.prompt ?? view.id;
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

function Recent() {
  const t = useText();
  const { list, complete } = useStore(recent.store);
  const [search, setSearch] = useState("");
  return (
    <section className="recent">
      <h2>{t("recent")}</h2>
      <input
        type="search"
        value={search}
        placeholder={t("search")}
        aria-label={t("search")}
        onChange={(event) => {
          setSearch(event.target.value);
          void recent.load({ search: event.target.value, starred: false, folder: null });
        }}
      />
      {list.length ? (
        <ul>
          {list.map((picture) => (
            <Card key={picture.id} picture={picture} />
          ))}
        </ul>
      ) : (
        <p>{t("recent.empty")}</p>
      )}
      {!complete && (
        <button type="button" onClick={() => void recent.more()}>
          {t("recent.more")}
        </button>
      )}
    </section>
  );
}

function Card({ picture }: { picture: LibraryPicture }) {
  const t = useText();
  return (
    <li>
      <button
        type="button"
        className="plain"
        onClick={() => {
          shown.set({ kind: "picture", id: picture.id });
          scrollTo({ top: 0 });
        }}
      >
        <Picture url={thumbnailUrl(picture.id)} alt={picture.prompt || picture.id} />
      </button>
      <span className="actions">
        <button type="button" aria-label={t(picture.starred ? "unstar" : "star")} onClick={() => void star(picture)}>
          {picture.starred ? "★" : "☆"}
        </button>
        <button type="button" aria-label={t("delete")} onClick={() => void remove([picture])}>
          ×
        </button>
      </span>
    </li>
  );
}

function KeyForm() {
  const t = useText();
  const [wanted, setWanted] = useState(false);
  const [value, setValue] = useState("");
  useEffect(() => whenKeyWanted(() => setWanted(true)), []);
  if (!wanted) return null;
  return (
    <form
      className="key"
      onSubmit={(event) => {
        event.preventDefault();
        setKey(value);
        location.reload();
      }}
    >
      <p>{t("error.key")}</p>
      <label className="field">
        <span>{t("key.ask")}</span>
        <input type="password" value={value} onChange={(event) => setValue(event.target.value)} />
      </label>
      <button type="submit" className="primary">
        {t("key.use")}
      </button>
    </form>
  );
}

function Toasts() {
  const t = useText();
  const list = useStore(toasts);
  return (
    <div className="toasts" role="status" aria-live="polite">
      {list.map(({ id, text, tone, action }) => (
        <div key={id} className={tone}>
          <span>{text}</span>
          {action && (
            <button
              type="button"
              onClick={() => {
                action.run();
                dismiss(id);
              }}
            >
              {action.label}
            </button>
          )}
          <button type="button" aria-label={t("close")} onClick={() => dismiss(id)}>
            ×
          </button>
        </div>
      ))}
    </div>
  );
}
