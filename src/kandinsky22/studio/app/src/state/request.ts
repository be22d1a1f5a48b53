/** Requests as the server stores them, and the one document that the studio edits: what is on the canvas decides the task. */
import type { PictureRef } from "../api/client";

export interface EmbeddingValue {
  encoder: string;
  data: string;
}
export type PartJson = { prompt: string; image?: PictureJson; strength?: number } | PictureJson | { embedding: EmbeddingValue };
export interface PictureJson {
  picture: PictureRef;
}
export type ConditionJson = PartJson | { parts: PartJson[]; weights: number[] };
export interface SamplingJson {
  sampler?: string;
  steps?: number;
  guidance_scale?: number;
  guidance_interval?: [number, number];
  reuse?: number;
}
export interface RequestJson {
  condition: ConditionJson;
  negative?: ConditionJson;
  start?: { image: PictureJson; strength: number };
  hint?: PictureJson;
  mask?: {
    image: PictureJson;
    area?: PictureJson;
    repaint: "white" | "black";
    pad: Sides;
    feather: number;
    paste_back: boolean;
    crop?: boolean;
  };
  height?: number;
  width?: number;
  aspect?: string;
  num_images?: number;
  seed?: number;
  prior_seed?: number;
  variation_seed?: number;
  variation_strength?: number;
  prior?: SamplingJson;
  decoder?: SamplingJson;
  speed?: string;
  model?: string;
}
/** Pixels at the top, right, bottom and left. */
export type Sides = [number, number, number, number];
export type Task = "text2img" | "img2img" | "variations" | "inpaint" | "outpaint" | "controlnet" | "interpolate";

export interface MixPart {
  id: string;
  kind: "text" | "picture" | "embedding";
  text: string;
  picture?: PictureRef;
  embedding?: EmbeddingValue;
  upload?: string; // of a saved embedding
  weight: number;
}

/** What the studio edits. null is the model's own choice. */
export interface Doc {
  prompt: string;
  negative: string;
  mixing: boolean;
  mix: MixPart[];
  normalise: boolean;
  picture: PictureRef | null;
  strength: number;
  mask: PictureRef | null;
  pad: Sides;
  feather: number;
  pasteBack: boolean;
  crop: boolean | null;
  keepUnder: boolean; // under a mask: start from what is there, at `strength`
  hint: PictureRef | null;
  width: number | null;
  height: number | null;
  count: number;
  seed: number | null;
  priorSeed: number | null;
  variationSeed: number | null;
  variationStrength: number;
  steps: number | null;
  guidance: number | null;
  sampler: string | null;
  interval: [number, number] | null;
  reuse: number | null;
  linearPrior: boolean;
  priorSteps: number | null;
  priorGuidance: number | null;
  priorSampler: string | null;
  speed: string;
}

export const EMPTY: Doc = {
  prompt: "",
  negative: "",
  mixing: false,
  mix: [],
  normalise: true,
  picture: null,
  strength: 0.5,
  mask: null,
  pad: [0, 0, 0, 0],
  feather: 8,
  pasteBack: true,
  crop: null,
  keepUnder: false,
  hint: null,
  width: null,
  height: null,
  count: 1,
  seed: null,
  priorSeed: null,
  variationSeed: null,
  variationStrength: 0,
  steps: null,
  guidance: null,
  sampler: null,
  interval: null,
  reuse: null,
  linearPrior: false,
  priorSteps: null,
  priorGuidance: null,
  priorSampler: null,
  speed: "exact",
};
const PRIOR_STRENGTH = 0.85; // of controlnet with a picture, as on the model card

export const isPadded = (doc: Doc): boolean => doc.pad.some((side) => side > 0);
export const mixParts = (doc: Doc): MixPart[] => doc.mix.filter((part) => part.kind !== "text" || part.text.trim());

/** The task that a document amounts to. */
export function taskOf(doc: Doc): Task {
  if (doc.picture && isPadded(doc)) return "outpaint";
  if (doc.picture && doc.mask) return "inpaint";
  if (doc.hint) return "controlnet";
  if (doc.mixing && mixParts(doc).length) return "interpolate";
  if (doc.picture) return doc.prompt.trim() ? "img2img" : "variations";
  return "text2img";
}

export const pictureJson = (picture: PictureRef): PictureJson => ({ picture });

export function partJson(part: MixPart): PartJson {
  if (part.kind === "picture" && part.picture) return pictureJson(part.picture);
  if (part.kind === "embedding" && part.embedding) return { embedding: part.embedding };
  return { prompt: part.text };
}

/** The weights of a mix as they are used; normalised, they sum to 1. */
export function weightsOf(doc: Doc): number[] {
  const weights = mixParts(doc).map((part) => part.weight);
  const sum = weights.reduce((total, weight) => total + weight, 0);
  return doc.normalise && Math.abs(sum) > 0.01 ? weights.map((weight) => weight / sum) : weights;
}

function conditionOf(doc: Doc, task: Task): ConditionJson {
  if (doc.mixing && mixParts(doc).length) return { parts: mixParts(doc).map(partJson), weights: weightsOf(doc) };
  if (task === "variations" && doc.picture) return pictureJson(doc.picture);
  if (task === "controlnet" && doc.picture) return { prompt: doc.prompt, image: pictureJson(doc.picture), strength: PRIOR_STRENGTH };
  return { prompt: doc.prompt };
}

/** Leave out what is null or undefined. */
function given<T extends object>(values: { [K in keyof T]: T[K] | null | undefined }): T {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== null && value !== undefined)) as T;
}

/** The request of a document. */
export function requestOf(doc: Doc): RequestJson {
  const task = taskOf(doc);
  const masked = task === "inpaint" || task === "outpaint";
  const starts = doc.picture && (masked ? task === "inpaint" && doc.keepUnder : task !== "variations");
  const sampling = given<SamplingJson>({
    sampler: doc.sampler,
    steps: doc.steps,
    guidance_scale: doc.guidance,
    guidance_interval: doc.interval,
    reuse: doc.reuse,
  });
  const prior = given<SamplingJson>(
    doc.linearPrior
      ? { sampler: "linear" }
      : { sampler: doc.priorSampler, steps: doc.priorSteps, guidance_scale: doc.priorGuidance },
  );
  return given<RequestJson>({
    condition: conditionOf(doc, task),
    negative: doc.negative.trim() ? { prompt: doc.negative } : null,
    start: starts ? { image: pictureJson(doc.picture!), strength: doc.strength } : null,
    hint: doc.hint && !masked ? pictureJson(doc.hint) : null,
    mask:
      masked && doc.picture
        ? given<NonNullable<RequestJson["mask"]>>({
            image: pictureJson(doc.picture),
            area: doc.mask ? pictureJson(doc.mask) : null,
            repaint: "white",
            pad: doc.pad,
            feather: doc.feather,
            paste_back: doc.pasteBack,
            crop: task === "outpaint" ? false : doc.crop,
          })
        : null,
    height: masked ? null : doc.height,
    width: masked ? null : doc.width,
    num_images: doc.count === 1 ? null : doc.count,
    seed: doc.seed,
    prior_seed: doc.priorSeed,
    variation_seed: doc.variationStrength ? doc.variationSeed : null,
    variation_strength: doc.variationSeed !== null && doc.variationStrength ? doc.variationStrength : null,
    prior: Object.keys(prior).length ? prior : null,
    decoder: Object.keys(sampling).length ? sampling : null,
    speed: doc.speed === "exact" ? null : doc.speed,
  });
}

let parts = 0;
export const newPart = (values: Partial<MixPart>): MixPart => ({
  id: `${Date.now().toString(36)}-${parts++}`,
  kind: "text",
  text: "",
  weight: 1,
  ...values,
});

function mixPart(part: PartJson, weight: number): MixPart {
  if ("picture" in part) return newPart({ kind: "picture", picture: part.picture, weight });
  if ("embedding" in part) return newPart({ kind: "embedding", text: "", embedding: part.embedding, weight });
  return newPart({ text: part.prompt, weight });
}

/** The document of a request: the inverse of `requestOf`. */
export function docOf(request: RequestJson): Doc {
  const { condition, mask, start } = request;
  const doc: Doc = { ...EMPTY };
  if ("parts" in condition) {
    doc.mixing = true;
    doc.normalise = false;
    doc.mix = condition.parts.map((part, k) => mixPart(part, condition.weights[k] ?? 1));
  } else if ("embedding" in condition) {
    doc.mixing = true;
    doc.mix = [mixPart(condition, 1)];
  } else if ("picture" in condition) {
    doc.picture = condition.picture;
  } else {
    doc.prompt = condition.prompt;
  }
  if (request.negative && "prompt" in request.negative) doc.negative = request.negative.prompt;
  if (start) {
    doc.picture = start.image.picture;
    doc.strength = start.strength;
  }
  if (mask) {
    doc.picture = mask.image.picture;
    doc.mask = mask.area?.picture ?? null;
    doc.pad = mask.pad;
    doc.feather = mask.feather;
    doc.pasteBack = mask.paste_back;
    doc.crop = mask.crop ?? null;
    doc.keepUnder = Boolean(start);
  }
  const { prior = {}, decoder = {} } = request;
  return {
    ...doc,
    hint: request.hint?.picture ?? null,
    width: request.width ?? null,
    height: request.height ?? null,
    count: request.num_images ?? 1,
    seed: request.seed ?? null,
    priorSeed: request.prior_seed ?? null,
    variationSeed: request.variation_seed ?? null,
    variationStrength: request.variation_strength ?? 0,
    steps: decoder.steps ?? null,
    guidance: decoder.guidance_scale ?? null,
    sampler: decoder.sampler ?? null,
    interval: decoder.guidance_interval ?? null,
    reuse: decoder.reuse ?? null,
    linearPrior: prior.sampler === "linear",
    priorSteps: prior.sampler === "linear" ? null : (prior.steps ?? null),
    priorGuidance: prior.sampler === "linear" ? null : (prior.guidance_scale ?? null),
    priorSampler: prior.sampler === "linear" ? null : (prior.sampler ?? null),
    speed: request.speed ?? "exact",
  };
}

/** The request of picture `k` alone: the next seeds. */
export function forPicture(request: RequestJson, k: number): RequestJson {
  const { num_images: _, ...rest } = request;
  return given<RequestJson>({
    ...rest,
    seed: request.seed === undefined ? null : request.seed + k,
    variation_seed: request.variation_seed === undefined ? null : request.variation_seed + k,
  } as RequestJson);
}

/** A request's condition in words. */
export function describe(condition: ConditionJson): string {
  if ("parts" in condition) return condition.parts.map((part, k) => `${round(condition.weights[k] ?? 1)} × ${describe(part)}`).join(" + ");
  if ("picture" in condition) return condition.picture.name ?? "picture";
  if ("embedding" in condition) return "embedding";
  return condition.prompt;
}

export const round = (value: number, digits = 2): number => Math.round(value * 10 ** digits) / 10 ** digits;
