/** The picture that is worked on: its mask is drawn with mouse, pen, fingers or keys, and its frame dragged wider. */
import { useEffect, useLayoutEffect, useRef, useState, type PointerEvent } from "react";
import { uploadUrl, type PictureRef } from "../api/client";
import { attempt, doc, system } from "../state/app";
import { useStore } from "../state/store";
import { useText } from "../text";
import { Picture } from "../ui/Picture";
import { windowOf } from "./area";
import { Frame } from "./Frame";
import { mask, type Point } from "./mask";
import { eye, fit, hand, KEYS, zoomBy } from "./tools";
import { Toolbar } from "./Toolbar";

const STEP = 4; // screen pixels that an arrow key moves the brush

export function Canvas({ picture }: { picture: PictureRef }) {
  const t = useText();
  const viewport = useRef<HTMLDivElement>(null);
  const layer = useRef<HTMLDivElement>(null);
  const [room, setRoom] = useState<Point>([600, 480]);
  const [shape, setShape] = useState<Point[]>([]); // the rectangle or lasso while it is drawn
  const [brush, setBrush] = useState<Point | null>(null); // where keys have moved it
  const now = useStore(doc);
  const { tool, share, opacity } = useStore(hand);
  const seen = useStore(eye);
  const { bounds } = useStore(mask.state);
  const model = useStore(system)?.defaults;
  const pointers = useRef(new Map<number, Point>());
  const last = useRef<Point | null>(null);

  const [top, right, bottom, left] = now.pad;
  const page = [picture.width + left + right, picture.height + top + bottom] as const;
  const scale = Math.min((room[0] - 72) / page[0], (room[1] - 72) / page[1]) * seen.zoom;
  const size = Math.max(1, (share / 100) * Math.min(picture.width, picture.height));

  useEffect(() => void attempt(() => mask.open(picture, now.mask)), [picture, now.mask]);
  useEffect(() => mask.shade(), [now.feather]);
  useEffect(fit, [picture]);
  useLayoutEffect(() => {
    layer.current?.append(mask.hard, mask.soft);
    const observer = new ResizeObserver(([entry]) => entry && setRoom([entry.contentRect.width, entry.contentRect.height]));
    observer.observe(viewport.current!);
    const wheel = (event: WheelEvent) => {
      if (!event.ctrlKey && !event.altKey) return; // a pinch has ctrlKey; a plain wheel scrolls the page
      event.preventDefault();
      const box = viewport.current!.getBoundingClientRect();
      zoomBy(Math.exp(-event.deltaY / 400), event.clientX - box.x - box.width / 2, event.clientY - box.y - box.height / 2);
    };
    const target = viewport.current!;
    target.addEventListener("wheel", wheel, { passive: false });
    return () => {
      observer.disconnect();
      target.removeEventListener("wheel", wheel);
    };
  }, []);

  const pointOf = (event: { clientX: number; clientY: number }): Point => {
    const box = layer.current!.getBoundingClientRect();
    return [((event.clientX - box.x) / box.width) * picture.width, ((event.clientY - box.y) / box.height) * picture.height];
  };
  const moves = (event: PointerEvent) => tool === "move" || event.button === 1;

  function down(event: PointerEvent): void {
    (event.currentTarget as HTMLElement).setPointerCapture(event.pointerId);
    pointers.current.set(event.pointerId, [event.clientX, event.clientY]);
    if (pointers.current.size > 1) {
      if (last.current) mask.finish();
      last.current = null;
      setShape([]);
      return;
    }
    if (moves(event)) return;
    const at = pointOf(event);
    last.current = at;
    setBrush(null);
    if (tool === "brush" || tool === "eraser") mask.line(at, at, size, tool === "eraser");
    else setShape([at]);
  }

  function move(event: PointerEvent): void {
    const before = pointers.current.get(event.pointerId);
    if (!before) return;
    const others = [...pointers.current].filter(([id]) => id !== event.pointerId);
    pointers.current.set(event.pointerId, [event.clientX, event.clientY]);
    const other = others[0]?.[1];
    if (other) {
      const distance = (point: Point) => Math.hypot(point[0] - other[0], point[1] - other[1]);
      const box = viewport.current!.getBoundingClientRect();
      eye.patch({ x: eye.get().x + (event.clientX - before[0]) / 2, y: eye.get().y + (event.clientY - before[1]) / 2 });
      zoomBy(distance([event.clientX, event.clientY]) / Math.max(1, distance(before)), other[0] - box.x - box.width / 2, other[1] - box.y - box.height / 2);
    } else if (!last.current) {
      eye.patch({ x: eye.get().x + event.clientX - before[0], y: eye.get().y + event.clientY - before[1] });
    } else if (tool === "brush" || tool === "eraser") {
      for (const part of event.nativeEvent.getCoalescedEvents?.() ?? [event]) {
        const at = pointOf(part);
        const pressed = event.pointerType === "pen" ? 0.4 + 1.2 * event.pressure : 1;
        mask.line(last.current, at, size * pressed, tool === "eraser");
        last.current = at;
      }
    } else {
      const at = pointOf(event);
      setShape((old) => (tool === "rectangle" ? [old[0] ?? at, at] : [...old, at]));
    }
  }

  function up(event: PointerEvent): void {
    pointers.current.delete(event.pointerId);
    if (!last.current) return;
    last.current = null;
    if (shape.length > 1) mask.polygon(corners(shape, tool === "rectangle"), event.altKey);
    else mask.finish();
    setShape([]);
  }

  function key(event: React.KeyboardEvent): void {
    const letter = event.key.toLowerCase();
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if ((event.ctrlKey || event.metaKey) && (letter === "z" || letter === "y")) {
      if (letter === "y" || event.shiftKey) mask.redo();
      else mask.undo();
    } else if (event.ctrlKey || event.metaKey || event.altKey) return;
    else if (arrow) {
      const from = brush ?? [picture.width / 2, picture.height / 2];
      const by = ((event.shiftKey ? 5 : 1) * STEP) / scale;
      setBrush([from[0] + arrow[0]! * by, from[1] + arrow[1]! * by]);
    } else if (letter === " " || letter === "enter") {
      const at = brush ?? [picture.width / 2, picture.height / 2];
      setBrush(at);
      mask.line(at, at, size, tool === "eraser");
      mask.finish();
    } else if (KEYS[letter]) hand.patch({ tool: KEYS[letter] });
    else if (letter === "[" || letter === "]") hand.patch({ share: Math.min(60, Math.max(1, share + (letter === "]" ? 2 : -2))) });
    else if (letter === "i") mask.invert();
    else if (letter === "+" || letter === "=" || letter === "-") zoomBy(letter === "-" ? 0.8 : 1.25);
    else if (letter === "0") fit();
    else return;
    event.preventDefault();
  }

  const window = bounds && model && !now.pad.some(Boolean) ? windowOf(bounds, picture.width, picture.height, model, now.crop) : null;
  return (
    <div className="editor">
      <Toolbar />
      <div className="viewport" ref={viewport}>
        <div
          className="page"
          style={{ width: page[0] * scale, height: page[1] * scale, transform: `translate(-50%, -50%) translate(${seen.x}px, ${seen.y}px)` }}
        >
          <div
            className={`layers ${tool}`}
            ref={layer}
            tabIndex={0}
            role="application"
            aria-label={t("canvas.label")}
            style={{ left: left * scale, top: top * scale, width: picture.width * scale, height: picture.height * scale, "--opacity": opacity / 100 } as React.CSSProperties}
            onPointerDown={down}
            onPointerMove={move}
            onPointerUp={up}
            onPointerCancel={up}
            onKeyDown={key}
          >
            <Picture url={uploadUrl(picture)} alt={picture.name ?? t("canvas.picture")} />
          </div>
          <svg className="marks" viewBox={`${-left} ${-top} ${page[0]} ${page[1]}`} aria-hidden="true">
            {window && <rect x={window.left} y={window.top} width={window.right - window.left} height={window.bottom - window.top} className="window" />}
            {shape.length > 1 && <polygon points={corners(shape, tool === "rectangle").map((point) => point.join()).join(" ")} />}
            {brush && <circle cx={brush[0]} cy={brush[1]} r={size / 2} />}
          </svg>
          <Frame scale={scale} />
        </div>
      </div>
      <p className="hint">
        {now.pad.some(Boolean)
          ? t("canvas.outpaint", { w: page[0], h: page[1] })
          : window
            ? t("canvas.window")
            : bounds
              ? t("canvas.mask")
              : t("canvas.empty")}
      </p>
    </div>
  );
}

function corners(points: Point[], isRectangle: boolean): Point[] {
  const [from, to] = [points[0]!, points.at(-1)!];
  return isRectangle ? [from, [to[0], from[1]], to, [from[0], to[1]]] : points;
}
