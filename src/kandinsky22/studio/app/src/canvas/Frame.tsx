/** The frame around the picture: dragging an edge outwards makes room that is painted. */
import { useRef } from "react";
import { doc, edit } from "../state/app";
import type { Sides } from "../state/request";
import { useStore } from "../state/store";
import { useText, type Key } from "../text";

const STEP = 8;
const MOST = 1024;
const EDGES = ["top", "right", "bottom", "left"] as const;

export function Frame({ scale }: { scale: number }) {
  const t = useText();
  const pad = useStore(doc, (now) => now.pad);
  const grip = useRef<{ at: number; pad: number; scale: number } | null>(null);
  const set = (k: number, pixels: number) => {
    const value = Math.max(0, Math.min(MOST, Math.round(pixels / STEP) * STEP));
    edit({ pad: pad.map((old, j) => (j === k ? value : old)) as Sides });
  };
  return EDGES.map((edge, k) => {
    const across = edge === "left" || edge === "right";
    const outward = edge === "top" || edge === "left" ? -1 : 1;
    return (
      <div
        key={edge}
        className={`edge ${edge}`}
        role="slider"
        tabIndex={0}
        aria-label={t(`edge.${edge}` as Key)}
        aria-orientation={across ? "horizontal" : "vertical"}
        aria-valuemin={0}
        aria-valuemax={MOST}
        aria-valuenow={pad[k]}
        onPointerDown={(event) => {
          event.currentTarget.setPointerCapture(event.pointerId);
          grip.current = { at: across ? event.clientX : event.clientY, pad: pad[k]!, scale };
        }}
        onPointerMove={(event) => {
          const from = grip.current;
          if (from) set(k, from.pad + (((across ? event.clientX : event.clientY) - from.at) * outward * 1.5) / from.scale);
        }}
        onPointerUp={() => (grip.current = null)}
        onPointerCancel={() => (grip.current = null)}
        onDoubleClick={() => set(k, 0)}
        onKeyDown={(event) => {
          const by = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1 }[event.key];
          if (!by) return;
          event.preventDefault();
          set(k, pad[k]! + by * outward * STEP * (event.shiftKey ? 4 : 1));
        }}
      />
    );
  });
}
