/** Beside the words: what wildcards expand to, and named settings and fragments. */
import { useState } from "react";
import { attempt, doc, documents, edit, saveDocument, toast } from "../state/app";
import { EMPTY, type Doc } from "../state/request";
import { useStore } from "../state/store";
import { expand, MOST } from "../state/words";
import { useText } from "../text";
import { Field } from "../ui/Field";

const NOT_SETTINGS: (keyof Doc)[] = ["prompt", "mixing", "mix", "picture", "mask", "pad", "hint"];

/** The settings of the document that differ from nothing. */
export function settingsOf(now: Doc): Partial<Doc> {
  const chosen = Object.entries(now).filter(([name, value]) => !NOT_SETTINGS.includes(name as keyof Doc) && value !== EMPTY[name as keyof Doc]);
  return Object.fromEntries(chosen) as Partial<Doc>;
}

/** Put a style's words around the prompt: its {prompt} is where the prompt goes. */
export const withStyle = (prompt: string, style: string): string =>
  style.includes("{prompt}") ? style.replace("{prompt}", prompt.trim()) : [prompt.trim(), style].filter(Boolean).join(", ");

export function Expansion() {
  const t = useText();
  const prompt = useStore(doc, (now) => now.prompt);
  useStore(documents);
  const all = expand(prompt);
  if (all.length < 2) return null;
  return (
    <details className="expansion" open={all.length <= 8}>
      <summary>{all.length > MOST ? t("wildcards.many", { n: MOST }) : t("wildcards.list", { n: all.length })}</summary>
      <ol>
        {all.slice(0, MOST).map((text, k) => (
          <li key={k}>{text}</li>
        ))}
      </ol>
    </details>
  );
}

export function Presets() {
  const t = useText();
  const all = useStore(documents);
  const [name, setName] = useState("");
  const presets = all.filter(({ kind }) => kind === "preset");
  const styles = all.filter(({ kind }) => kind === "style");
  const save = () =>
    void attempt(async () => {
      await saveDocument("preset", name.trim(), settingsOf(doc.get()));
      toast(t("preset.saved", { name: name.trim() }));
      setName("");
    });
  return (
    <details className="settings">
      <summary>{t("presets")}</summary>
      <div className="chips">
        {presets.map((preset) => (
          <button key={preset.name} type="button" onClick={() => edit({ ...EMPTY, ...keep(doc.get()), ...(preset.value as Partial<Doc>) })}>
            {preset.name}
          </button>
        ))}
        {styles.map((style) => (
          <button key={style.name} type="button" className="style" onClick={() => edit({ prompt: withStyle(doc.get().prompt, (style.value as { text: string }).text) })}>
            {style.name}
          </button>
        ))}
      </div>
      <Field label={t("preset.name")}>
        {(id) => (
          <span className="row">
            <input id={id} type="text" maxLength={100} value={name} onChange={(event) => setName(event.target.value)} />
            <button type="button" disabled={!name.trim()} onClick={save}>
              {t("preset.save")}
            </button>
          </span>
        )}
      </Field>
    </details>
  );
}

const keep = (now: Doc): Partial<Doc> => Object.fromEntries(NOT_SETTINGS.map((name) => [name, now[name]])) as Partial<Doc>;
