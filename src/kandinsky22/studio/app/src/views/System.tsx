/** The model, the machine, the queue, and what `kandinsky22 doctor` says. */
import { useEffect, useState } from "react";
import { api } from "../api/client";
import { attempt, refreshSystem, system, toast } from "../state/app";
import { useStore } from "../state/store";
import { useText } from "../text";
import { Field } from "../ui/Field";

const REFRESH = 3000; // ms

export function System() {
  const t = useText();
  const now = useStore(system);
  const [report, setReport] = useState("");
  const [busy, setBusy] = useState(false);
  const [model, setModel] = useState("");
  useEffect(() => {
    void refreshSystem();
    const timer = setInterval(() => void refreshSystem(), REFRESH);
    return () => clearInterval(timer);
  }, []);
  if (!now) return <div className="page-view">{t("connection.loading")}</div>;
  const gigabytes = (bytes: number | null) => (bytes === null ? "–" : `${(bytes / 2 ** 30).toFixed(1)} GB`);
  const rows: [string, string][] = [
    [t("system.model"), now.model],
    [t("system.state"), now.ready ? t("system.ready") : (now.problem ?? t("connection.loading"))],
    [t("system.version"), now.version],
    [t("system.queue"), t("system.jobs", { running: now.running, waiting: now.waiting, most: now.max_waiting })],
    [t("system.memory"), t("system.free", { free: gigabytes(now.memory_free), of: gigabytes(now.memory_total) })],
    [t("system.disk"), t("system.stored", { stored: gigabytes(now.stored), free: gigabytes(now.disk_free) })],
    [t("system.processes"), now.processes.map(({ id, memory }) => `${id}: ${gigabytes(memory)}`).join(", ")],
    [t("system.you"), now.you],
    [t("system.keys"), now.keys.map(({ name, scopes }) => `${name} (${scopes.join(", ")})`).join("; ") || t("system.no.keys")],
  ];
  return (
    <div className="page-view">
      <h2>{t("view.system")}</h2>
      <dl className="facts">
        {rows.map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
      {now.can_switch_model && (
        <form
          className="panel"
          onSubmit={(event) => {
            event.preventDefault();
            void attempt(async () => toast((await api.post("/api/v1/system/model", { body: { model } })).text));
          }}
        >
          <Field label={t("system.switch")} help={t("system.switch.help")}>
            {(id, described) => (
              <span className="row">
                <input id={id} type="text" required aria-describedby={described} value={model} placeholder="box" onChange={(event) => setModel(event.target.value)} />
                <button type="submit">{t("system.switch.use")}</button>
              </span>
            )}
          </Field>
        </form>
      )}
      {now.may_administer && (
        <button
          type="button"
          disabled={busy}
          onClick={() => {
            setBusy(true);
            void attempt(async () => setReport((await api.post("/api/v1/system/doctor")).text)).finally(() => setBusy(false));
          }}
        >
          {t(busy ? "system.measuring" : "system.doctor")}
        </button>
      )}
      {report && <pre tabIndex={0}>{report}</pre>}
    </div>
  );
}
