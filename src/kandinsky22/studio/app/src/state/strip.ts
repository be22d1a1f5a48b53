/** The pictures between two parts of a mix, and the film of them. */
import { api } from "../api/client";
import { attempt, doc } from "./app";
import { between } from "./embeddings";
import { jobs, submit } from "./jobs";
import { partJson, requestOf, type ConditionJson, type MixPart } from "./request";
import { persistent } from "./store";

export const strip = persistent("kandinsky22.strip", { from: 0, to: 1, frames: 7, turned: true, cells: [] as string[], times: [] as number[] });

/** Paint every frame with one seed; the ends are the two parts alone. */
export async function paintStrip(from: MixPart, to: MixPart): Promise<void> {
  const { frames, turned } = strip.get();
  const times = Array.from({ length: frames }, (_, k) => k / (frames - 1));
  const seed = doc.get().seed ?? Math.floor(Math.random() * 2 ** 31);
  strip.patch({ cells: [], times });
  await attempt(async () => {
    const conditions: ConditionJson[] = turned
      ? (await between(from, to, times, seed)).map((embedding) => ({ embedding }))
      : times.map((t) => ({ parts: [partJson(from), partJson(to)], weights: [1 - t, t] }));
    for (const condition of conditions) {
      const request = { ...requestOf({ ...doc.get(), mixing: false, picture: null, mask: null, hint: null, seed, count: 1 }), condition };
      const job = await submit(request, { group: "strip", preview: 128, hidden: true });
      strip.set((old) => ({ ...old, cells: [...old.cells, job.id] }));
    }
  });
}

/** The strip there and back as a film. */
export async function filmOf(format: "gif" | "apng" | "mp4", fps: number): Promise<Blob | undefined> {
  const pictures = strip.get().cells.flatMap((id) => jobs.get().get(id)?.view.pictures[0]?.id ?? []);
  return attempt(() => api.film({ pictures: [...pictures, ...pictures.slice(1, -1).reverse()], fps, format, loop: true }));
}
