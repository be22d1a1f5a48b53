import { useEffect, useState } from "react";
import { thumbnailUrl } from "../api/client";
import { system } from "../state/app";
import { recall } from "../state/grid";
import { jobs, share } from "../state/jobs";
import { usePainted } from "../state/pictures";
import type { MixPart } from "../state/request";
import { useStore } from "../state/store";
import { filmOf, paintStrip, strip } from "../state/strip";
import { useText } from "../text";
import { Check, NumberField, Select } from "../ui/Field";
import { Picture } from "../ui/Picture";

/** The pictures between two parts; the slider goes through them, and a film plays them. */
export function Strip({ parts }: { parts: MixPart[] }) {
  const t = useText();
  const now = useStore(strip);
  const all = useStore(jobs);
  const ffmpeg = useStore(system)?.ffmpeg;
  const [at, setAt] = useState(0);
  const [format, setFormat] = useState<"gif" | "apng" | "mp4">("gif");
  const [film, setFilm] = useState("");
  useEffect(() => recall(strip.get().cells), []);
  useEffect(() => () => URL.revokeObjectURL(film), [film]);
  const names = parts.map((part, k) => [String(k), part.text || part.picture?.name || String(k + 1)] as const);
  const [from, to] = [parts[Math.min(now.from, parts.length - 1)]!, parts[Math.min(now.to, parts.length - 1)]!];
  const pictures = now.cells.map((id) => all.get(id)?.view.pictures[0]);
  const shown = pictures[at];
  const complete = pictures.length > 1 && pictures.every(Boolean);
  return (
    <section className="between" aria-label={t("strip")}>
      <h3>{t("strip")}</h3>
      <p>{t("strip.help")}</p>
      <div className="fields">
        <Select label={t("strip.from")} value={String(now.from)} options={names} onChange={(value) => strip.patch({ from: Number(value) })} />
        <Select label={t("strip.to")} value={String(now.to)} options={names} onChange={(value) => strip.patch({ to: Number(value) })} />
        <NumberField label={t("strip.frames")} min={3} max={24} value={now.frames} onChange={(frames) => strip.patch({ frames: Math.max(3, Math.min(24, frames ?? 7)) })} />
        <Check label={t("strip.turned")} help={t("strip.turned.help")} value={now.turned} onChange={(turned) => strip.patch({ turned })} />
      </div>
      <button type="button" className="primary" onClick={() => void paintStrip(from, to)}>
        {t("strip.paint")}
      </button>
      {now.cells.length > 0 && (
        <>
          <div className="frames">
            {now.cells.map((id, k) => {
              const job = all.get(id);
              const picture = job?.view.pictures[0];
              return (
                <button key={id} type="button" className="plain" aria-pressed={k === at} aria-label={t("strip.frame", { n: k + 1 })} onClick={() => setAt(k)}>
                  {picture ? (
                    <Picture url={thumbnailUrl(picture.id)} alt="" />
                  ) : job?.progress?.preview ? (
                    <img src={job.progress.preview} alt="" />
                  ) : (
                    <progress max={1} value={share(job?.progress ?? null)} aria-label={t("strip.frame", { n: k + 1 })} />
                  )}
                </button>
              );
            })}
          </div>
          <input type="range" min={0} max={now.cells.length - 1} value={at} aria-label={t("strip.slider")} onChange={(event) => setAt(Number(event.target.value))} />
          <div className="frame">{shown && <Picture key={shown.id} url={shown.url} alt={t("strip.frame", { n: at + 1 })} />}</div>
          <div className="row">
            {shown && (
              <button type="button" onClick={() => void usePainted(shown, "start")}>
                {t("use.start")}
              </button>
            )}
            <Select
              label={t("film.format")}
              value={format}
              options={(["gif", "apng", ...(ffmpeg ? (["mp4"] as const) : [])] as const).map((name) => [name, name.toUpperCase()] as const)}
              onChange={setFormat}
            />
            <button type="button" disabled={!complete} onClick={() => void filmOf(format, 6).then((blob) => blob && setFilm(URL.createObjectURL(blob)))}>
              {t("film.make")}
            </button>
            {film && (
              <a className="button" href={film} download={`kandinsky22.${format}`}>
                {t("film.download")}
              </a>
            )}
          </div>
          {film && (format === "mp4" ? <video src={film} controls loop muted aria-label={t("film")} /> : <img className="film" src={film} alt={t("film")} />)}
        </>
      )}
    </section>
  );
}
