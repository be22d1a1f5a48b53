/** The tool in hand, and how the canvas is seen. */
import { persistent, Store } from "../state/store";

export const TOOLS = ["brush", "eraser", "rectangle", "lasso", "move"] as const;
export type Tool = (typeof TOOLS)[number];
export const KEYS: Record<string, Tool> = { b: "brush", e: "eraser", r: "rectangle", l: "lasso", h: "move" };

export const hand = persistent("kandinsky22.tool", { tool: "brush" as Tool, share: 12, opacity: 60 });
/** `zoom` times the size at which everything fits, moved by (x, y) screen pixels. */
export const eye = new Store({ zoom: 1, x: 0, y: 0 });
export const fit = (): void => eye.set({ zoom: 1, x: 0, y: 0 });

/** Zoom about a point, given from the middle of the canvas. */
export function zoomBy(factor: number, x = 0, y = 0): void {
  eye.set((old) => {
    const zoom = Math.min(16, Math.max(0.25, old.zoom * factor));
    const by = zoom / old.zoom;
    return { zoom, x: x + (old.x - x) * by, y: y + (old.y - y) * by };
  });
}
