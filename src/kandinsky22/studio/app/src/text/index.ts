/** The words of the interface, one file per language. */
import { useStore } from "../state/store";
import { Store } from "../state/store";
import { en } from "./en";
import { ru } from "./ru";

export type Key = keyof typeof en;
export type Language = "en" | "ru";
const LANGUAGES: Record<Language, Record<Key, string>> = { en, ru };
const NAME = "kandinsky22.language";

const stored = localStorage.getItem(NAME);
const initial: Language = stored === "en" || stored === "ru" ? stored : navigator.language.startsWith("ru") ? "ru" : "en";
export const language = new Store<Language>(initial);
document.documentElement.lang = initial;

export function setLanguage(name: Language): void {
  localStorage.setItem(NAME, name);
  document.documentElement.lang = name;
  language.set(name);
}

/** The text of a key, with values in place of {names}. */
export function t(key: Key, values: Record<string, string | number> = {}): string {
  return LANGUAGES[language.get()][key].replace(/\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole));
}

/** `t` for a component, which is rendered again in another language. */
export function useText(): typeof t {
  useStore(language);
  return t;
}

