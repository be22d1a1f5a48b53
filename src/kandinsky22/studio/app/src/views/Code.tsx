import { useEffect, useState } from "react";
import { attempt, toast } from "../state/app";
import { codeOf, type CodeKind } from "../state/code";
import { requestOfPicture } from "../state/library";
import type { RequestJson } from "../state/request";
import { useText } from "../text";

const KINDS: [CodeKind, string][] = [
  ["python", "Python"],
  ["curl", "curl"],
  ["command", "kandinsky22"],
];

/** A picture as a program that paints it again. */
export function Code({ picture }: { picture: { id: string; job: string } }) {
  const t = useText();
  const [kind, setKind] = useState<CodeKind>("python");
  const [request, setRequest] = useState<RequestJson | null>(null);
  useEffect(() => void attempt(async () => setRequest(await requestOfPicture(picture))), [picture.id]);
  const text = request ? codeOf(kind, request, picture.id, location.origin) : "";
  return (
    <section className="code" aria-label={t("code")}>
      <div className="segments" role="group" aria-label={t("code")}>
        {KINDS.map(([name, label]) => (
          <button key={name} type="button" aria-pressed={kind === name} onClick={() => setKind(name)}>
            {label}
          </button>
        ))}
        <button type="button" onClick={() => void attempt(async () => (await navigator.clipboard.writeText(text), toast(t("code.copied"))))}>
          {t("code.copy")}
        </button>
      </div>
      <pre tabIndex={0}>{text}</pre>
    </section>
  );
}
