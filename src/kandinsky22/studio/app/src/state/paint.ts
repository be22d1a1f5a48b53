/** From the document to jobs, and back from a picture to the document. */
import { attempt, doc, shown, toast } from "./app";
import { submit } from "./jobs";
import { requestOfPicture } from "./library";
import { mask } from "../canvas/mask";
import { docOf, requestOf } from "./request";
import { expand } from "./words";
import { t } from "../text";

export const PREVIEW = 320; // the side of previews in pixels

/** Paint the document: one job for each prompt that it stands for. */
export async function paint(): Promise<void> {
  await attempt(async () => {
    if (doc.get().picture) await mask.store();
    const now = doc.get();
    for (const [k, prompt] of expand(now.prompt).entries()) {
      const job = await submit(requestOf({ ...now, prompt }), { group: "create", preview: PREVIEW });
      if (k === 0) shown.set({ kind: "job", id: job.id });
    }
  });
}

/** Take a picture's settings over into the document. */
export async function restorePicture(picture: { id: string; job: string }): Promise<void> {
  const request = await attempt(() => requestOfPicture(picture));
  if (!request) return;
  doc.set(docOf(request));
  toast(t("restored"));
}
