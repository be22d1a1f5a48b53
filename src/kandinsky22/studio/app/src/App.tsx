/** The studio: its views, what the connection is, messages, and the page as a place to drop files on. */
import { useEffect, useState } from "react";
import { setKey, whenKeyWanted } from "./api/client";
import { dismiss, go, system, toasts, view, VIEWS, type View } from "./state/app";
import { connection } from "./state/jobs";
import { open } from "./state/pictures";
import { useStore } from "./state/store";
import { language, setLanguage, useText, type Key } from "./text";
import { Icon } from "./ui/Icon";
import { Compare } from "./views/Compare";
import { Create } from "./views/Create";
import { History } from "./views/History";
import { Library } from "./views/Library";
import { Mix } from "./views/Mix";
import { System } from "./views/System";

const SHOWN: Record<View, () => React.ReactNode> = { create: Create, mix: Mix, compare: Compare, history: History, library: Library, system: System };

export function App() {
  const t = useText();
  const state = useStore(connection);
  const server = useStore(system);
  const at = useStore(view);
  const Shown = SHOWN[at];
  const isOver = useDrop();
  return (
    <div className={isOver ? "app over-drop" : "app"}>
      <header>
        <h1>{t("app.name")}</h1>
        <nav aria-label={t("views")}>
          {VIEWS.map((name) => (
            <a
              key={name}
              href={`#/${name}`}
              aria-current={at === name ? "page" : undefined}
              onClick={(event) => {
                event.preventDefault();
                go(name);
              }}
            >
              <Icon name={name} />
              <span>{t(`view.${name}` as Key)}</span>
            </a>
          ))}
        </nav>
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
        <Shown />
      </main>
      <KeyForm />
      <Toasts />
    </div>
  );
}

/** Files dropped on the page, or pasted, are opened. */
function useDrop(): boolean {
  const [isOver, setOver] = useState(false);
  useEffect(() => {
    const over = (event: DragEvent) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      setOver(true);
    };
    const leave = (event: DragEvent) => event.relatedTarget ?? setOver(false);
    const drop = (event: DragEvent) => {
      setOver(false);
      const file = event.dataTransfer?.files[0];
      if (!file) return;
      event.preventDefault();
      void open(file);
    };
    const paste = (event: ClipboardEvent) => {
      const file = event.clipboardData?.files[0];
      if (file) void open(file);
    };
    const listeners = { dragover: over, dragleave: leave, drop, paste } as Record<string, EventListener | unknown>;
    for (const [name, listener] of Object.entries(listeners)) addEventListener(name, listener as EventListener);
    return () => {
      for (const [name, listener] of Object.entries(listeners)) removeEventListener(name, listener as EventListener);
    };
  }, []);
  return isOver;
}

function Language() {
  const t = useText();
  const now = useStore(language);
  return (
    <div className="segments" role="group" aria-label={t("language")}>
      {(["en", "ru"] as const).map((name) => (
        <button key={name} type="button" lang={name} aria-pressed={now === name} onClick={() => setLanguage(name)} aria-label={name === "en" ? "English" : "Русский"}>
          {name.toUpperCase()}
        </button>
      ))}
    </div>
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
          <button type="button" className="tool" aria-label={t("close")} onClick={() => dismiss(id)}>
            <Icon name="close" />
          </button>
        </div>
      ))}
    </div>
  );
}
