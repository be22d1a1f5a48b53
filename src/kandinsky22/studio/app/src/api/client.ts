/** A typed client of the server: paths, parameters and answers are those of its OpenAPI. */
import type { components, paths } from "./schema";

export type Schemas = components["schemas"];
export type JobView = Schemas["JobView"];
export type PictureView = Schemas["PictureView"];
export type LibraryPicture = Schemas["LibraryPicture"];
export type SystemView = Schemas["SystemView"];
export type DocumentView = Schemas["DocumentView"];

type Method = "get" | "post" | "put" | "patch" | "delete";
type PathWith<M extends Method> = { [P in keyof paths]: paths[P][M] extends { responses: unknown } ? P : never }[keyof paths];
type Json<R> = R extends { content: { "application/json": infer T } } ? T : never;
type Answer<O> = O extends { responses: infer R } ? { [S in keyof R & (200 | 201 | 202)]: Json<R[S]> }[keyof R & (200 | 201 | 202)] : never;
type Body<O> = O extends { requestBody: { content: { "application/json": infer T } } } ? T : undefined;
type Query<O> = O extends { parameters: { query?: infer Q } } ? Q : undefined;

interface Options<O> {
  path?: Record<string, string>;
  query?: Query<O>;
  body?: Body<O>;
  form?: FormData;
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

/** An error of the server, or of the way to it: `kind` is "offline" where there was no answer. */
export class ApiError extends Error {
  constructor(
    readonly kind: string,
    message: string,
    readonly status = 0,
  ) {
    super(message);
  }
}

const KEY = "kandinsky22.key";
let key = localStorage.getItem(KEY) ?? "";
const onKeyWanted = new Set<() => void>();

export const hasKey = (): boolean => key !== "";
export function setKey(value: string): void {
  key = value.trim();
  if (key) localStorage.setItem(KEY, key);
  else localStorage.removeItem(KEY);
}
/** Call `listener` whenever the server asks for a key; returns what ends that. */
export function whenKeyWanted(listener: () => void): () => void {
  onKeyWanted.add(listener);
  return () => onKeyWanted.delete(listener);
}

/** `fetch` with the key. Throws `ApiError` for anything but success. */
export async function request(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  if (key) headers.set("authorization", `Bearer ${key}`);
  let response: Response;
  try {
    response = await fetch(path, { ...init, headers });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError("offline", "offline");
  }
  if (response.ok) return response;
  const text = await response.text();
  let kind = "internal";
  let message = text.slice(0, 300) || response.statusText;
  try {
    const { error } = JSON.parse(text) as { error: { kind?: string; message: string } };
    kind = error.kind ?? kind;
    message = error.message;
  } catch {
    // not our server's words: a proxy's page
  }
  if (response.status === 401) onKeyWanted.forEach((listener) => listener());
  throw new ApiError(kind, message, response.status);
}

function urlOf(path: string, options: { path?: Record<string, string>; query?: unknown }): string {
  const filled = path.replace(/\{(\w+)\}/g, (_, name: string) => encodeURIComponent(options.path?.[name] ?? ""));
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries((options.query ?? {}) as Record<string, unknown>)) {
    if (value !== undefined && value !== null && value !== "") query.set(name, String(value));
  }
  return query.size ? `${filled}?${query}` : filled;
}

async function call<M extends Method, P extends PathWith<M>>(method: M, path: P, options: Options<paths[P][M]> = {}): Promise<Response> {
  const headers: Record<string, string> = { ...options.headers };
  if (options.body !== undefined) headers["content-type"] = "application/json";
  const body = options.form ?? (options.body === undefined ? undefined : JSON.stringify(options.body));
  return request(urlOf(path, options), { method: method.toUpperCase(), headers, body: body ?? null, signal: options.signal ?? null });
}

async function json<M extends Method, P extends PathWith<M>>(method: M, path: P, options?: Options<paths[P][M]>): Promise<Answer<paths[P][M]>> {
  const response = await call(method, path, options);
  return (response.status === 204 ? undefined : await response.json()) as Answer<paths[P][M]>;
}

export const api = {
  get: <P extends PathWith<"get">>(path: P, options?: Options<paths[P]["get"]>) => json("get", path, options),
  post: <P extends PathWith<"post">>(path: P, options?: Options<paths[P]["post"]>) => json("post", path, options),
  put: <P extends PathWith<"put">>(path: P, options?: Options<paths[P]["put"]>) => json("put", path, options),
  patch: <P extends PathWith<"patch">>(path: P, options?: Options<paths[P]["patch"]>) => json("patch", path, options),
  delete: <P extends PathWith<"delete">>(path: P, options?: Options<paths[P]["delete"]>) => json("delete", path, options),
  film: async (body: Schemas["NewFilm"]): Promise<Blob> => (await call("post", "/api/v1/films", { body })).blob(),
  blob: async (path: string): Promise<Blob> => (await request(path)).blob(),
};

/** An uploaded picture: `sha256` is the hash of its pixels, and its id. */
export interface PictureRef {
  sha256: string;
  height: number;
  width: number;
  name?: string;
}

export async function upload(file: Blob, name: string): Promise<PictureRef> {
  const form = new FormData();
  form.append("file", file, name);
  const answer = (await (await request("/api/v1/uploads", { method: "POST", body: form })).json()) as {
    id: string;
    kind: string;
    width: number;
    height: number;
  };
  if (answer.kind !== "picture") throw new ApiError("invalid", "not a picture");
  return { sha256: answer.id, height: answer.height, width: answer.width, name };
}

export const uploadUrl = (picture: PictureRef): string => `/api/v1/uploads/${picture.sha256}`;
export const thumbnailUrl = (id: string, side: "192" | "384" = "192"): string => `/api/v1/pictures/${id}/thumbnail?side=${side}`;
