import { useState } from "react";
import { useText } from "../text";
import { Picture } from "../ui/Picture";

/** Two pictures one over the other; the slider says how much of the second shows. */
export function BeforeAfter({ before, after }: { before: string; after: string }) {
  const t = useText();
  const [share, setShare] = useState(50);
  return (
    <div className="before-after" style={{ "--share": `${share}%` } as React.CSSProperties}>
      <Picture url={before} alt={t("compare.first")} />
      <Picture url={after} alt={t("compare.second")} className="after" />
      <input type="range" min={0} max={100} value={share} aria-label={t("compare.slider")} onChange={(event) => setShare(Number(event.target.value))} />
    </div>
  );
}
