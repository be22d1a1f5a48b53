/** Comparisons: the document painted for each of several values of one or two settings, and two pictures side by side. */
import { attempt, doc } from "./app";
import { jobs, refresh, submit } from "./jobs";
import { requestOf, type Doc, type RequestJson } from "./request";
import { persistent, Store } from "./store";

export const AXES = ["seed", "steps", "guidance", "sampler", "speed", "strength", "priorGuidance", "priorSteps", "negative", "prompt"] as const;
export type Axis = (typeof AXES)[number];
const NUMBERS: Axis[] = ["seed", "steps", "guidance", "strength", "priorGuidance", "priorSteps"];
export const MOST_CELLS = 64;

/** What shows best what a setting does. */
export const SUGGESTED: Record<Axis, string> = {
  seed: "1, 2, 3, 4",
  steps: "5, 10, 20, 40",
  guidance: "1, 2, 4, 8",
  sampler: "ddpm, ddim, dpmpp_2m, unipc",
  speed: "exact, fast, turbo",
  strength: "0.2, 0.4, 0.6, 0.8",
  priorGuidance: "1, 2, 4, 8",
  priorSteps: "2, 5, 10, 25",
  negative: "",
  prompt: "",
};

export interface Grid {
  x: Axis;
  xs: string;
  y: Axis | "";
  ys: string;
  columns: string[];
  rows: string[];
  cells: string[]; // ids of jobs, row by row
}
export const grid = persistent<Grid>("kandinsky22.grid", { x: "steps", xs: SUGGESTED.steps, y: "", ys: "", columns: [], rows: [], cells: [] });
export const valuesOf = (text: string): string[] => text.split(/[,;\n]/).map((word) => word.trim()).filter(Boolean);

/** The document with one setting changed. */
function changed(now: Doc, axis: Axis | "", value: string): Doc {
  if (!axis) return now;
  return { ...now, [axis]: NUMBERS.includes(axis) ? Number(value) : value };
}

export async function paintGrid(): Promise<void> {
  const { x, xs, y, ys } = grid.get();
  const columns = valuesOf(xs);
  const rows = y ? valuesOf(ys) : [""];
  const seed = doc.get().seed ?? Math.floor(Math.random() * 2 ** 31);
  const base: Doc = { ...doc.get(), count: 1, seed }; // one seed, so that only the setting differs
  grid.patch({ columns, rows, cells: [] });
  await attempt(async () => {
    for (const row of rows) {
      for (const column of columns) {
        const request = requestOf(changed(changed(base, y, row), x, column));
        const job = await submit(request, { group: "grid", preview: 128 });
        grid.set((old) => ({ ...old, cells: [...old.cells, job.id] }));
      }
    }
  });
}

/** Ask for jobs that this page does not know yet, as after a reload. */
export const recall = (ids: string[]): void => ids.filter((id) => !jobs.get().has(id)).forEach((id) => void refresh(id));

export interface Compared {
  id: string;
  url: string;
  job: string;
  prompt: string;
}
/** The two pictures that are compared, the last one chosen last. */
export const pair = new Store<Compared[]>([]);
export function choose(picture: Compared): void {
  pair.set((old) => (old.some(({ id }) => id === picture.id) ? old.filter(({ id }) => id !== picture.id) : [...old.slice(-1), picture]));
}

/** What differs between two requests: the setting, and its two values. */
export function difference(a: RequestJson, b: RequestJson): [string, string, string][] {
  const [left, right] = [flat(a), flat(b)];
  const names = [...new Set([...left.keys(), ...right.keys()])].sort();
  return names.flatMap((name) => {
    const [one, two] = [left.get(name) ?? "–", right.get(name) ?? "–"];
    return one === two ? [] : [[name, one, two] as [string, string, string]];
  });
}

function flat(value: unknown, path = ""): Map<string, string> {
  if (typeof value !== "object" || value === null) return new Map([[path, String(value)]]);
  return new Map(Object.entries(value).flatMap(([name, part]) => [...flat(part, path ? `${path}.${name}` : name)]));
}
