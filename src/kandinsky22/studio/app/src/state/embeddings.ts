/** Image embeddings: made by the server of texts and pictures, saved under a name, and used as parts of a mix. */
import { api, uploadUrl } from "../api/client";
import { documents, saveDocument } from "./app";
import { newPart, type EmbeddingValue, type MixPart } from "./request";

interface Made {
  id: string;
}
export interface Saved {
  upload: string;
}
type Wire = { text: string } | { picture: string } | { embedding: string };

/** A part as `/embeddings` takes it; a value that is only here is uploaded first. */
async function wire(part: MixPart): Promise<Wire> {
  if (part.kind === "picture" && part.picture) return { picture: part.picture.sha256 };
  if (part.kind === "text") return { text: part.text };
  if (part.upload) return { embedding: part.upload };
  throw new Error("this embedding is not on the server; save it again");
}

async function make(body: { parts: Wire[]; how: "mix" | "slerp"; weights?: number[]; t?: number; seed?: number | null; name?: string }): Promise<string> {
  const made = (await api.post("/api/v1/embeddings", { body: body as never })) as unknown as Made;
  return made.id;
}

/** Save a mix under a name. */
export async function saveMix(parts: MixPart[], weights: number[], seed: number | null, name: string): Promise<void> {
  const upload = await make({ parts: await Promise.all(parts.map(wire)), how: "mix", weights, seed, name });
  await saveDocument("embedding", name, { upload });
}

/** The embeddings between two parts, turned from one towards the other: one for each t. */
export async function between(from: MixPart, to: MixPart, times: number[], seed: number): Promise<EmbeddingValue[]> {
  const ends = await Promise.all([from, to].map(async (part) => make({ parts: [await wire(part)], how: "mix", weights: [1], seed })));
  const parts = ends.map((embedding) => ({ embedding }));
  return Promise.all(times.map(async (t) => valueOf(await make({ parts, how: "slerp", t }))));
}

export async function partOf(name: string): Promise<MixPart> {
  const saved = documents.get().find((document) => document.kind === "embedding" && document.name === name)?.value as Saved;
  return newPart({ kind: "embedding", text: name, upload: saved.upload, embedding: await valueOf(saved.upload) });
}

/** The numbers of an uploaded embedding, from its safetensors file. */
async function valueOf(upload: string): Promise<EmbeddingValue> {
  const file = new Uint8Array(await (await api.blob(uploadUrl({ sha256: upload, height: 0, width: 0 }))).arrayBuffer());
  const length = Number(new DataView(file.buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + length))) as {
    __metadata__: { encoder: string };
    image_embeds: { data_offsets: [number, number] };
  };
  const [start, end] = header.image_embeds.data_offsets;
  const data = btoa(Array.from(file.subarray(8 + length + start, 8 + length + end), (byte) => String.fromCharCode(byte)).join(""));
  return { encoder: header.__metadata__.encoder, data };
}
