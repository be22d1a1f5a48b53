/** Wildcards: {red|blue} and __file__ in a prompt stand for each of several words; all of them make a batch. */
import { documents } from "./app";

export const MOST = 64;
const CHOICE = /\{([^{}]*\|[^{}]*)\}|__([\w-]+)__/;

/** Every prompt that a text stands for, at most `MOST` and one. An unknown file stays as it is. */
export function expand(text: string): string[] {
  const lists = new Map(
    documents
      .get()
      .filter(({ kind }) => kind === "wildcard")
      .map(({ name, value }) => [name, (value as { lines?: string[] }).lines ?? []]),
  );
  let prompts = [text];
  for (let depth = 0; depth < 12; depth++) {
    let changed = false;
    const next: string[] = [];
    for (const prompt of prompts) {
      const found = CHOICE.exec(prompt);
      const words = found ? (found[1]?.split("|") ?? lists.get(found[2] ?? "")) : undefined;
      if (!found || !words?.length) {
        next.push(prompt);
        continue;
      }
      changed = true;
      for (const word of words) next.push(prompt.slice(0, found.index) + word.trim() + prompt.slice(found.index + found[0].length));
    }
    prompts = next.slice(0, MOST + 1);
    if (!changed) break;
  }
  return prompts;
}
