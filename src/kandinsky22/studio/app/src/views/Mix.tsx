/** The mixer: any number of texts, pictures and saved embeddings, each with a weight, and the way between two of them. */
import { useState } from "react";
import { upload, uploadUrl } from "../api/client";
import { attempt, doc, documents, edit, go, toast } from "../state/app";
import { partOf, saveMix } from "../state/embeddings";
import { paint } from "../state/paint";
import { mixParts, newPart, round, weightsOf, type MixPart } from "../state/request";
import { useStore } from "../state/store";
import { useText } from "../text";
import { Check, Field, OpenFile } from "../ui/Field";
import { Icon } from "../ui/Icon";
import { Picture } from "../ui/Picture";
import { Strip } from "./Strip";

const add = (part: MixPart): void => edit({ mix: [...doc.get().mix, part] });
const set = (id: string, values: Partial<MixPart>): void => edit({ mix: doc.get().mix.map((part) => (part.id === id ? { ...part, ...values } : part)) });

export function Mix() {
  const t = useText();
  const now = useStore(doc);
  const saved = useStore(documents).filter(({ kind }) => kind === "embedding");
  const [name, setName] = useState("");
  const used = weightsOf(now);
  const parts = mixParts(now);
  const save = () =>
    void attempt(async () => {
      await saveMix(parts, used, now.seed, name.trim());
      toast(t("embedding.saved", { name: name.trim() }));
      setName("");
    });
  return (
    <div className="page-view">
      <h2>{t("view.mix")}</h2>
      <p>{t("mix.help")}</p>
      <form
        className="mixer"
        onSubmit={(event) => {
          event.preventDefault();
          edit({ mixing: true, picture: null, mask: null, pad: [0, 0, 0, 0] });
          void paint();
          go("create");
        }}
      >
        <ul className="parts">
          {now.mix.map((part, k) => (
            <Part key={part.id} part={part} k={k} used={parts.includes(part) ? (used[parts.indexOf(part)] ?? 0) : null} />
          ))}
        </ul>
        <div className="row">
          <button type="button" onClick={() => add(newPart({}))}>
            {t("mix.text")}
          </button>
          <OpenFile label={t("mix.picture")} onFile={(file) => void attempt(async () => add(newPart({ kind: "picture", picture: await upload(file, file.name) })))} />
          {saved.map((one) => (
            <button key={one.name} type="button" className="style" onClick={() => void attempt(async () => add(await partOf(one.name)))}>
              + {one.name}
            </button>
          ))}
        </div>
        <div className="row">
          <Check label={t("mix.normalise")} help={t("mix.normalise.help")} value={now.normalise} onChange={(normalise) => edit({ normalise })} />
          <button type="submit" className="primary" disabled={!parts.length}>
            {t("mix.paint")}
          </button>
        </div>
        {parts.length > 0 && (
          <Field label={t("embedding.name")} help={t("embedding.help")}>
            {(id, described) => (
              <span className="row">
                <input id={id} type="text" maxLength={100} aria-describedby={described} value={name} onChange={(event) => setName(event.target.value)} />
                <button type="button" disabled={!name.trim()} onClick={save}>
                  {t("preset.save")}
                </button>
              </span>
            )}
          </Field>
        )}
      </form>
      {parts.length > 1 && <Strip parts={parts} />}
    </div>
  );
}

function Part({ part, k, used }: { part: MixPart; k: number; used: number | null }) {
  const t = useText();
  const label = t("mix.part", { n: k + 1 });
  const weight = (value: number) => set(part.id, { weight: Math.max(-2, Math.min(2, Number.isNaN(value) ? 0 : value)) });
  return (
    <li className="part">
      {part.kind === "text" ? (
        <input type="text" aria-label={label} placeholder={t("prompt.example")} value={part.text} onChange={(event) => set(part.id, { text: event.target.value })} />
      ) : part.kind === "picture" && part.picture ? (
        <Picture url={uploadUrl(part.picture)} alt={part.picture.name ?? label} />
      ) : (
        <span className="embedding">{part.text || t("kind.embedding")}</span>
      )}
      <span className="slider">
        <input type="range" min={-2} max={2} step={0.05} value={part.weight} aria-label={t("mix.weight", { n: k + 1 })} onChange={(event) => weight(Number(event.target.value))} />
        <input type="number" min={-2} max={2} step={0.05} value={part.weight} aria-label={t("mix.weight.number", { n: k + 1 })} onChange={(event) => weight(Number(event.target.value))} />
      </span>
      <span className="used" aria-label={t("mix.used")}>
        {used === null ? "" : `× ${round(used)}`}
      </span>
      <button type="button" className="tool" aria-label={t("mix.remove", { n: k + 1 })} onClick={() => edit({ mix: doc.get().mix.filter(({ id }) => id !== part.id) })}>
        <Icon name="close" />
      </button>
    </li>
  );
}
