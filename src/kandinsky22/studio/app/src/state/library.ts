/** Finished pictures, the newest first, page by page, and what is done with them. */
import { api, type LibraryPicture } from "../api/client";
import { t } from "../text";
import { attempt, toast } from "./app";
import { refresh } from "./jobs";
import { forPicture, type RequestJson } from "./request";
import { Store } from "./store";

export const TRASH = "trash";
const PAGE = 60;

export interface Filter {
  search: string;
  starred: boolean;
  folder: string | null;
}
export interface Pictures {
  list: LibraryPicture[];
  filter: Filter;
  complete: boolean;
  loading: boolean;
}
export const NO_FILTER: Filter = { search: "", starred: false, folder: null };

function pages(): { store: Store<Pictures>; load: (filter?: Filter) => Promise<void>; more: () => Promise<void>; refresh: () => Promise<void> } {
  const store = new Store<Pictures>({ list: [], filter: NO_FILTER, complete: false, loading: false });
  let call = 0;
  const fetchPage = (filter: Filter, before?: number) =>
    api.get("/api/v1/library", { query: { ...filter, starred: filter.starred || undefined, before, count: PAGE } as never });
  return {
    store,
    load: async (filter = store.get().filter) => {
      const mine = ++call;
      store.patch({ filter, loading: true });
      const list = await attempt(() => fetchPage(filter));
      if (mine === call) store.patch({ list: list ?? [], loading: false, complete: (list?.length ?? 0) < PAGE });
    },
    /** Put what is new before what is shown. */
    refresh: async () => {
      const mine = call;
      const first = await attempt(() => fetchPage(store.get().filter));
      if (mine !== call || !first) return;
      const known = new Set(store.get().list.map((picture) => picture.id));
      store.set((old) => ({ ...old, list: [...first.filter((picture) => !known.has(picture.id)), ...old.list] }));
    },
    more: async () => {
      const { list, filter, complete, loading } = store.get();
      if (complete || loading) return;
      const mine = ++call;
      store.patch({ loading: true });
      const next = await attempt(() => fetchPage(filter, list.at(-1)?.number));
      if (mine !== call) return;
      const known = new Set(list.map((picture) => picture.id));
      const fresh = (next ?? []).filter((picture) => !known.has(picture.id));
      store.patch({ list: [...list, ...fresh], loading: false, complete: (next?.length ?? 0) < PAGE });
    },
  };
}

export const history = pages();
export const recent = pages();
export const folders = new Store<{ name: string; count: number }[]>([]);
export async function refreshFolders(): Promise<void> {
  folders.set(await api.get("/api/v1/folders"));
}

function change(id: string, values: Partial<LibraryPicture> | null): void {
  for (const { store } of [history, recent]) {
    store.set((old) => ({
      ...old,
      list: old.list.flatMap((picture) => (picture.id !== id ? [picture] : values ? [{ ...picture, ...values }] : [])),
    }));
  }
}

export async function star(picture: { id: string; starred: boolean }): Promise<void> {
  change(picture.id, { starred: !picture.starred });
  await attempt(() => api.patch("/api/v1/pictures/{picture}", { path: { picture: picture.id }, body: { starred: !picture.starred } }));
}

export async function move(id: string, folder: string | null): Promise<void> {
  await attempt(() => api.patch("/api/v1/library/{picture}", { path: { picture: id }, body: { folder } }));
  change(id, { folder });
  await attempt(refreshFolders);
}

/** Put pictures into the trash; the message takes them out again. */
export async function remove(pictures: LibraryPicture[]): Promise<void> {
  const before = pictures.map(({ id, folder }) => ({ id, folder }));
  await Promise.all(pictures.map(({ id }) => api.patch("/api/v1/library/{picture}", { path: { picture: id }, body: { folder: TRASH } })));
  pictures.forEach(({ id }) => change(id, null));
  void attempt(refreshFolders);
  const undo = () =>
    void attempt(async () => {
      await Promise.all(before.map(({ id, folder }) => api.patch("/api/v1/library/{picture}", { path: { picture: id }, body: { folder } })));
      await Promise.all([history.load(), recent.load(), refreshFolders()]);
    });
  toast(t("history.deleted", { n: pictures.length }), { action: { label: t("undo"), run: undo } });
}

/** The request that paints a picture alone. */
export async function requestOfPicture(picture: { id: string; job: string }): Promise<RequestJson | null> {
  const job = await refresh(picture.job);
  if (!job) return null;
  const position = Number(picture.id.slice(picture.job.length + 1));
  return forPicture(job.request as unknown as RequestJson, Number.isNaN(position) ? 0 : position);
}
