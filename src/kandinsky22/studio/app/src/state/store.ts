/** A value that components subscribe to. */
import { useSyncExternalStore } from "react";

export class Store<T> {
  private readonly listeners = new Set<() => void>();

  constructor(private value: T) {}

  get = (): T => this.value;

  set(next: T | ((old: T) => T)): void {
    const value = typeof next === "function" ? (next as (old: T) => T)(this.value) : next;
    if (Object.is(value, this.value)) return;
    this.value = value;
    this.listeners.forEach((listener) => listener());
  }

  patch(values: Partial<T>): void {
    this.set((old) => ({ ...old, ...values }));
  }

  subscribe = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  };
}

/** The value of a store, or a part of it; the part must be the same object while nothing in it changes. */
export function useStore<T, S = T>(store: Store<T>, select: (value: T) => S = (value) => value as unknown as S): S {
  return useSyncExternalStore(store.subscribe, () => select(store.get()));
}

/** A store whose value survives in this browser. */
export function persistent<T extends object>(name: string, initial: T): Store<T> {
  let value = initial;
  try {
    const stored = localStorage.getItem(name);
    if (stored) value = Array.isArray(initial) ? JSON.parse(stored) : { ...initial, ...JSON.parse(stored) };
  } catch {
    // stored by another version: begin afresh
  }
  const store = new Store<T>(value);
  let timer = 0;
  const write = () => {
    try {
      localStorage.setItem(name, JSON.stringify(store.get()));
    } catch {
      // no room, or storage is off: it does not survive
    }
  };
  store.subscribe(() => {
    clearTimeout(timer);
    timer = window.setTimeout(write, 150);
  });
  addEventListener("pagehide", write);
  return store;
}
