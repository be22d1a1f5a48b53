/** From the document to jobs, and back from a picture to the document. */
import { attempt, doc, shown, toast } from "./app";
import { submit } from "./jobs";
import { requestOfPicture } from "./library";
import { docOf, requestOf } from "./request";
import { t } from "../text";

const PREVIEW = 320; // the side of previews in pixels

/** Paint the document. */
export async function paint(): Promise<void> {
  await attempt(async () => {
    const job = await submit(requestOf(doc.get()), { group: "create", preview: PREVIEW });
    shown.set({ kind: "job", id: job.id });
  });
}

/** Take a picture's settings over into the document. */
export async function restorePicture(picture: { id: string; job: string }): Promise<void> {
  const request = await attempt(() => requestOfPicture(picture));
  if (!request) return;
  doc.set(docOf(request));
  toast(t("restored"));
}
