/** What follows from the pixels of a mask: its bounds, how it is blended, and the part that will be painted. */
export interface Box {
  left: number;
  top: number;
  right: number;
  bottom: number;
}

/** The smallest box around what is not 0; null if there is nothing. */
export function boundsOf(values: Uint8Array, width: number): Box | null {
  const box = { left: width, top: Infinity, right: 0, bottom: 0 };
  for (let k = 0; k < values.length; k++) {
    if (!values[k]) continue;
    const x = k % width;
    const y = (k - x) / width;
    box.left = Math.min(box.left, x);
    box.right = Math.max(box.right, x + 1);
    box.top = Math.min(box.top, y);
    box.bottom = y + 1;
  }
  return box.right ? box : null;
}

/** The distance of each pixel to the nearest 0, over `reach` and at most 1; by two passes over the neighbours. */
export function rampOf(values: Uint8Array, width: number, height: number, reach: number): Float32Array {
  const distance = Float32Array.from(values, (value) => (value ? reach : 0));
  const pull = (x: number, y: number, by: 1 | -1) => {
    const k = y * width + x;
    if (!values[k]) return;
    let least = distance[k]!;
    if (x + by >= 0 && x + by < width) least = Math.min(least, distance[k + by]! + 1);
    if (y + by >= 0 && y + by < height) {
      const row = k + by * width;
      least = Math.min(least, distance[row]! + 1);
      if (x > 0) least = Math.min(least, distance[row - 1]! + Math.SQRT2);
      if (x + 1 < width) least = Math.min(least, distance[row + 1]! + Math.SQRT2);
    }
    distance[k] = least;
  };
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) pull(x, y, -1);
  for (let y = height - 1; y >= 0; y--) for (let x = width - 1; x >= 0; x--) pull(x, y, 1);
  return distance.map((value) => Math.min(1, value / reach));
}

const ZOOM = 4; // as in imaging/masks.py
const MOST = 0.7;
const MARGIN = 0.5;
const WINDOW_FROM = 1.5;

/** The window that the server computes for a mask; null: the whole picture. As `masks.window` computes it. */
export function windowOf(area: Box, width: number, height: number, model: { width: number; height: number }, crop: boolean | null): Box | null {
  if (!(crop ?? width * height > WINDOW_FROM * model.width * model.height)) return null;
  const across = area.right - area.left;
  const down = area.bottom - area.top;
  const scale = Math.min(
    Math.max(
      Math.max(Math.ceil(down * (1 + 2 * MARGIN)), Math.ceil(model.height / ZOOM)) / model.height,
      Math.max(Math.ceil(across * (1 + 2 * MARGIN)), Math.ceil(model.width / ZOOM)) / model.width,
    ),
    height / model.height,
    width / model.width,
  );
  const tall = Math.min(Math.max(1, Math.round(model.height * scale)), height);
  const wide = Math.min(Math.max(1, Math.round(model.width * scale)), width);
  if (tall < down || wide < across || tall * wide > MOST * width * height) return null;
  const place = (start: number, stop: number, length: number, whole: number) =>
    Math.min(Math.max(Math.floor((start + stop - length) / 2), 0), whole - length);
  const top = place(area.top, area.bottom, tall, height);
  const left = place(area.left, area.right, wide, width);
  return { left, top, right: left + wide, bottom: top + tall };
}
