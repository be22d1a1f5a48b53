/** The state of the studio: the document, where the user is, what the server has, and messages. */
import { api, ApiError, type DocumentView, type SystemView } from "../api/client";
import { t } from "../text";
import { EMPTY, type Doc } from "./request";
import { persistent, Store } from "./store";

export type View = "create" | "mix" | "compare" | "history" | "library" | "system";
export const VIEWS: View[] = ["create", "mix", "compare", "history", "library", "system"];

export const doc = persistent<Doc>("kandinsky22.doc", EMPTY);
export const edit = (values: Partial<Doc>): void => doc.patch(values);

/** What the stage shows: the canvas, a job while it is painted, or a finished picture. */
export type Shown = { kind: "canvas" } | { kind: "job"; id: string } | { kind: "picture"; id: string };
export const shown = new Store<Shown>({ kind: "canvas" });

const viewOfHash = (): View => {
  const name = location.hash.replace(/^#\/?/, "");
  return VIEWS.find((view) => view === name) ?? "create";
};
export const view = new Store<View>(viewOfHash());
addEventListener("hashchange", () => view.set(viewOfHash()));
export function go(to: View): void {
  location.hash = `/${to}`;
  view.set(to);
}

export const system = new Store<SystemView | null>(null);
export async function refreshSystem(): Promise<void> {
  try {
    system.set(await api.get("/api/v1/system"));
  } catch {
    // shown by the connection
  }
}

export const documents = new Store<DocumentView[]>([]);
export async function refreshDocuments(): Promise<void> {
  documents.set(await api.get("/api/v1/documents"));
}
export async function saveDocument(kind: DocumentView["kind"], name: string, value: unknown): Promise<void> {
  await api.put("/api/v1/documents/{kind}/{name}", { path: { kind, name }, body: { value } });
  await refreshDocuments();
}
export async function removeDocument(kind: DocumentView["kind"], name: string): Promise<void> {
  await api.delete("/api/v1/documents/{kind}/{name}", { path: { kind, name } });
  await refreshDocuments();
}

export interface Toast {
  id: number;
  text: string;
  tone: "info" | "error";
  action?: { label: string; run: () => void };
}
export const toasts = new Store<Toast[]>([]);
let count = 0;
export function toast(text: string, options: Partial<Pick<Toast, "tone" | "action">> = {}): void {
  const id = ++count;
  toasts.set((old) => [...old.slice(-2), { id, text, tone: "info", ...options }]);
  const time = options.action || options.tone === "error" ? 9000 : 4000;
  setTimeout(() => dismiss(id), time);
}
export const dismiss = (id: number): void => toasts.set((old) => old.filter((item) => item.id !== id));

/** An error in words that say what to do next. */
export function words(error: unknown): string {
  if (error instanceof ApiError) {
    if (error.kind === "offline") return t("error.offline");
    if (error.kind === "busy") return t("error.busy");
    if (error.kind === "unauthorized") return t("error.key");
    return error.message.charAt(0).toUpperCase() + error.message.slice(1);
  }
  return error instanceof Error ? error.message : String(error);
}

/** Run something, and show its error if it fails. */
export async function attempt<T>(work: () => Promise<T>): Promise<T | undefined> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") return undefined;
    toast(words(error), { tone: "error" });
    return undefined;
  }
}
