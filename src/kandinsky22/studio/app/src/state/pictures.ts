/** What is done with a picture besides looking at it: it becomes a start, a hint, a part of a mix, or a file is opened. */
import { api, request, upload, type PictureRef } from "../api/client";
import { t } from "../text";
import { attempt, doc, edit, go, refreshDocuments, shown, toast, words } from "./app";
import { docOf, EMPTY, newPart, type RequestJson } from "./request";

export type Use = "start" | "hint" | "part";
interface Painted {
  id: string;
  url: string;
  prompt: string;
}

/** A painted picture as an input; the server then finds its pixels among the uploads. */
export async function asInput(picture: Painted): Promise<PictureRef> {
  return upload(await api.blob(picture.url), `${picture.id}.png`);
}

export async function use(picture: PictureRef, as: Use): Promise<void> {
  if (as === "part") {
    const parts = doc.get().mix.filter((part) => part.kind !== "text" || part.text.trim());
    edit({ mix: [...parts, newPart({ kind: "picture", picture })] });
    return go("mix");
  }
  edit(as === "hint" ? { hint: picture } : { picture, mask: null, pad: [0, 0, 0, 0], mixing: false });
  shown.set({ kind: "canvas" });
  go("create");
}

export const usePainted = (picture: Painted, as: Use): Promise<void | undefined> => attempt(async () => use(await asInput(picture), as));

/** Estimate the depth of the picture on the canvas, as the hint. */
export async function estimateDepth(): Promise<void> {
  const { picture } = doc.get();
  if (!picture) return;
  await attempt(async () => {
    const { id, name, width, height } = await api.post("/api/v1/depth", { body: { picture: picture.sha256 } });
    edit({ hint: { sha256: id, name, width, height } });
  });
}

/** Open a file: settings that it carries are restored; any other picture goes on the canvas. */
export async function open(file: File): Promise<void> {
  try {
    if (file.name.endsWith(".safetensors")) return void (await openEmbedding(file));
    const form = new FormData();
    form.append("file", file, file.name);
    const answer = await request("/api/v1/metadata", { method: "POST", body: form });
    const found = (await answer.json()) as { request: RequestJson | null; options: Record<string, unknown> | null; ignored: string[] };
    if (found.request) {
      doc.set(docOf(found.request));
      go("create");
      return toast(t("restored"));
    }
    if (found.options) {
      doc.set(docOfOptions(found.options));
      go("create");
      return toast(found.ignored.length ? t("restored.partly", { names: found.ignored.join(", ") }) : t("restored"));
    }
    await use(await upload(file, file.name), "start");
  } catch (error) {
    toast(words(error), { tone: "error" });
  }
}

/** The document of options of text2img. */
function docOfOptions(options: Record<string, unknown>): typeof EMPTY {
  const number = (name: string) => (typeof options[name] === "number" ? (options[name] as number) : null);
  return {
    ...EMPTY,
    prompt: String(options.prompt ?? ""),
    negative: String(options.negative_prompt ?? ""),
    steps: number("num_inference_steps"),
    guidance: number("guidance_scale"),
    seed: number("seed"),
    width: number("width"),
    height: number("height"),
    sampler: typeof options.sampler === "string" ? options.sampler : null,
  };
}

async function openEmbedding(file: File): Promise<void> {
  const form = new FormData();
  form.append("file", file, file.name);
  const answer = (await (await request("/api/v1/uploads", { method: "POST", body: form })).json()) as { id: string };
  const name = file.name.replace(/\.safetensors$/, "");
  await api.put("/api/v1/documents/{kind}/{name}", { path: { kind: "embedding", name }, body: { value: { upload: answer.id } } });
  await refreshDocuments();
  toast(t("embedding.saved", { name }));
}
