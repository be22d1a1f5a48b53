/** What was painted, and what can be done with it. */
import { useState } from "react";
import { uploadUrl, type PictureRef, type PictureView } from "../api/client";
import { restorePicture } from "../state/paint";
import { usePainted } from "../state/pictures";
import { useText } from "../text";
import { Picture } from "../ui/Picture";
import { BeforeAfter } from "./BeforeAfter";
import { Code } from "./Code";

export function Result({ pictures, before }: { pictures: PictureView[]; before: PictureRef | null }) {
  const t = useText();
  const [at, setAt] = useState(0);
  const [side, setSide] = useState<"" | "compare" | "code">("");
  const picture = pictures[Math.min(at, pictures.length - 1)]!;
  const toggle = (name: "compare" | "code") => setSide(side === name ? "" : name);
  return (
    <div className="result">
      {side === "compare" && before ? (
        <BeforeAfter before={uploadUrl(before)} after={picture.url} />
      ) : (
        <Picture key={picture.id} url={picture.url} alt={picture.prompt} className="shown" />
      )}
      {pictures.length > 1 && (
        <div className="strip" role="group" aria-label={t("recent")}>
          {pictures.map((one, k) => (
            <button key={one.id} type="button" className="plain" aria-pressed={k === at} onClick={() => setAt(k)} aria-label={t("seed.of", { seed: one.seed })}>
              <Picture url={one.url} alt="" />
            </button>
          ))}
        </div>
      )}
      <div className="actions">
        <a className="button" href={picture.url} download={`${picture.id}.png`}>
          {t("download")}
        </a>
        <button type="button" onClick={() => void restorePicture(picture)}>
          {t("again")}
        </button>
        <button type="button" onClick={() => void usePainted(picture, "start")}>
          {t("use.start")}
        </button>
        <button type="button" onClick={() => void usePainted(picture, "hint")}>
          {t("use.hint")}
        </button>
        <button type="button" onClick={() => void usePainted(picture, "part")}>
          {t("use.part")}
        </button>
        {before && (
          <button type="button" aria-pressed={side === "compare"} onClick={() => toggle("compare")}>
            {t("compare.before")}
          </button>
        )}
        <button type="button" aria-pressed={side === "code"} onClick={() => toggle("code")}>
          {t("code")}
        </button>
      </div>
      {side === "code" && <Code picture={picture} />}
    </div>
  );
}
