/** What is on the canvas besides words: a picture, what is done with it, and a depth picture. */
import { useState } from "react";
import { upload, uploadUrl } from "../api/client";
import { attempt, doc, edit, shown } from "../state/app";
import { estimateDepth, open, use } from "../state/pictures";
import { isPadded, mixParts, taskOf } from "../state/request";
import { useStore } from "../state/store";
import { useText } from "../text";
import { Check, OpenFile, Select, Slider } from "../ui/Field";
import { Picture } from "../ui/Picture";

export function Sources() {
  const t = useText();
  const now = useStore(doc);
  const [busy, setBusy] = useState(false);
  const task = taskOf(now);
  const masked = task === "inpaint" || task === "outpaint";
  return (
    <section className="sources">
      <div className="row">
        <OpenFile label={now.picture ? t("picture.replace") : t("picture.open")} onFile={(file) => void open(file)} />
        {!now.hint && <OpenFile label={t("hint.open")} onFile={(file) => void attempt(async () => use(await upload(file, file.name), "hint"))} />}
        {now.picture && !now.hint && (
          <button type="button" disabled={busy} onClick={() => (setBusy(true), void estimateDepth().finally(() => setBusy(false)))}>
            {t(busy ? "depth.busy" : "depth.estimate")}
          </button>
        )}
        {now.picture && (
          <button
            type="button"
            onClick={() => {
              edit({ picture: null, mask: null, pad: [0, 0, 0, 0] });
              shown.set({ kind: "canvas" });
            }}
          >
            {t("picture.remove")}
          </button>
        )}
      </div>
      {mixParts(now).length > 0 && !masked && <Check label={t("mix.use", { n: mixParts(now).length })} value={now.mixing} onChange={(mixing) => edit({ mixing })} />}
      {now.picture && !masked && task !== "variations" && (
        <Slider label={t("strength")} help={t("strength.help")} min={0} max={1} step={0.05} value={now.strength} onChange={(strength) => edit({ strength })} />
      )}
      {masked && (
        <>
          <Slider label={t("feather")} help={t("feather.help")} min={0} max={64} step={1} value={now.feather} onChange={(feather) => edit({ feather })} />
          {task === "inpaint" && (
            <Select
              label={t("crop")}
              help={t("crop.help")}
              value={now.crop === null ? "" : now.crop ? "yes" : "no"}
              options={[
                ["", t("crop.auto")],
                ["yes", t("crop.window")],
                ["no", t("crop.whole")],
              ]}
              onChange={(value) => edit({ crop: value === "" ? null : value === "yes" })}
            />
          )}
          <Check label={t("paste")} value={now.pasteBack} onChange={(pasteBack) => edit({ pasteBack })} />
          {task === "inpaint" && <Check label={t("under")} value={now.keepUnder} onChange={(keepUnder) => edit({ keepUnder })} />}
          {task === "inpaint" && now.keepUnder && (
            <Slider label={t("strength")} min={0} max={1} step={0.05} value={now.strength} onChange={(strength) => edit({ strength })} />
          )}
          {isPadded(now) && (
            <button type="button" onClick={() => edit({ pad: [0, 0, 0, 0] })}>
              {t("frame.reset")}
            </button>
          )}
        </>
      )}
      {now.hint && (
        <div className="slot">
          <Picture url={uploadUrl(now.hint)} alt={t("hint")} />
          <span>{masked ? t("hint.masked") : t("hint")}</span>
          <button type="button" onClick={() => edit({ hint: null })}>
            {t("hint.remove")}
          </button>
        </div>
      )}
    </section>
  );
}
