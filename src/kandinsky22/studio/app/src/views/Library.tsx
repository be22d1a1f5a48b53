/** Presets, styles, wildcards and embeddings: written, exported as a file, and opened from one. */
import { useState } from "react";
import type { DocumentView } from "../api/client";
import { attempt, documents, removeDocument, saveDocument, toast } from "../state/app";
import { useStore } from "../state/store";
import { useText, type Key } from "../text";
import { Field, OpenFile, Select } from "../ui/Field";
import { Icon } from "../ui/Icon";

type Kind = DocumentView["kind"];
const KINDS: Kind[] = ["style", "wildcard", "preset", "embedding"];

export function Library() {
  const t = useText();
  const all = useStore(documents);
  const [kind, setKind] = useState<"style" | "wildcard">("style");
  const [name, setName] = useState("");
  const [text, setText] = useState("");
  const save = () =>
    void attempt(async () => {
      const value = kind === "style" ? { text } : { lines: text.split("\n").map((line) => line.trim()).filter(Boolean) };
      await saveDocument(kind, name.trim(), value);
      toast(t("preset.saved", { name: name.trim() }));
      setName("");
      setText("");
    });
  return (
    <div className="page-view">
      <h2>{t("view.library")}</h2>
      <form className="panel" onSubmit={(event) => (event.preventDefault(), save())}>
        <Select
          label={t("library.kind")}
          value={kind}
          options={[
            ["style", t("kind.style")],
            ["wildcard", t("kind.wildcard")],
          ]}
          onChange={setKind}
        />
        <Field label={t("library.name")}>{(id) => <input id={id} type="text" required maxLength={100} pattern={kind === "wildcard" ? "[\\w\\-]+" : undefined} value={name} onChange={(event) => setName(event.target.value)} />}</Field>
        <Field label={t("library.text")} help={t(kind === "style" ? "style.help" : "wildcard.help")}>
          {(id, described) => <textarea id={id} rows={5} required aria-describedby={described} value={text} onChange={(event) => setText(event.target.value)} />}
        </Field>
        <div className="row">
          <button type="submit" className="primary">
            {t("preset.save")}
          </button>
          <button type="button" onClick={() => exportAll(all)} disabled={!all.length}>
            {t("library.export")}
          </button>
          <OpenFile label={t("library.import")} accept=".json" onFile={(file) => void attempt(async () => importAll(await file.text()))} />
        </div>
      </form>
      {KINDS.map((one) => {
        const list = all.filter((document) => document.kind === one);
        if (!list.length) return null;
        return (
          <section key={one}>
            <h3>{t(`kind.${one}` as Key)}</h3>
            <ul className="documents">
              {list.map((document) => (
                <li key={document.name}>
                  <strong>{document.name}</strong>
                  <span>{summary(document)}</span>
                  {(one === "style" || one === "wildcard") && (
                    <button
                      type="button"
                      onClick={() => {
                        setKind(one);
                        setName(document.name);
                        setText(one === "style" ? (document.value as { text: string }).text : (document.value as { lines: string[] }).lines.join("\n"));
                      }}
                    >
                      {t("library.edit")}
                    </button>
                  )}
                  <button type="button" className="tool" aria-label={`${t("delete")}: ${document.name}`} onClick={() => void remove(document)}>
                    <Icon name="trash" />
                  </button>
                </li>
              ))}
            </ul>
          </section>
        );
      })}
    </div>
  );

  async function remove(document: DocumentView): Promise<void> {
    await attempt(async () => {
      await removeDocument(document.kind, document.name);
      const undo = () => void attempt(() => saveDocument(document.kind, document.name, document.value));
      toast(t("library.removed", { name: document.name }), { action: { label: t("undo"), run: undo } });
    });
  }
}

function summary({ kind, value }: DocumentView): string {
  if (kind === "style") return (value as { text: string }).text;
  if (kind === "wildcard") return (value as { lines: string[] }).lines.join(", ");
  if (kind === "preset") return Object.entries(value as object).map(([name, one]) => `${name}: ${String(one)}`).join(", ");
  return "";
}

function exportAll(all: DocumentView[]): void {
  const content = JSON.stringify(all.map(({ kind, name, value }) => ({ kind, name, value })), null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: "application/json" }));
  link.download = "kandinsky22-library.json";
  link.click();
}

async function importAll(text: string): Promise<void> {
  for (const { kind, name, value } of JSON.parse(text) as { kind: Kind; name: string; value: unknown }[]) await saveDocument(kind, name, value);
}
