/** The mask that is being drawn: a bitmap of the picture's size, with undo, and what follows from it. */
import { api, upload, uploadUrl, type PictureRef } from "../api/client";
import { attempt, doc, edit } from "../state/app";
import { Store } from "../state/store";
import { boundsOf, rampOf, type Box } from "./area";

export type Point = readonly [number, number];
const INK = "#e8542a";
const MOST_UNDO = 40;
const PAUSE = 250; // ms after a change, before it is uploaded

export interface MaskState {
  version: number; // changes with every finished change
  undo: number;
  redo: number;
  bounds: Box | null; // null: nothing is painted
}

/** `hard` is what is drawn, `soft` the same as it is blended, by the feather. Both are shown by the canvas. */
class Mask {
  readonly hard = document.createElement("canvas");
  readonly soft = document.createElement("canvas");
  readonly state = new Store<MaskState>({ version: 0, undo: 0, redo: 0, bounds: null });
  private readonly ink = this.hard.getContext("2d", { willReadFrequently: true })!;
  private past: Uint8Array[] = [];
  private future: Uint8Array[] = [];
  private now: Uint8Array = new Uint8Array(0);
  private isStored = true;
  private storing: Promise<void> = Promise.resolve();
  private timer = 0;
  private of = ""; // the picture it was made for, and the mask it was loaded from

  /** Begin with the document's mask, or an empty one of its picture's size. */
  async open(picture: PictureRef, mask: PictureRef | null): Promise<void> {
    const id = `${picture.sha256} ${mask?.sha256 ?? ""}`;
    if (id === this.of) return;
    this.of = id;
    this.hard.width = this.soft.width = picture.width;
    this.hard.height = this.soft.height = picture.height;
    this.past = [];
    this.future = [];
    this.now = new Uint8Array(picture.width * picture.height);
    if (mask) await this.draw(await api.blob(uploadUrl(mask)));
    this.finish(true);
    this.past = [];
    this.isStored = true;
    this.publish();
  }

  /** Replace it by a picture of a mask: what is light is painted. */
  async load(file: Blob): Promise<void> {
    await this.draw(file);
    this.finish();
  }

  line(from: Point, to: Point, width: number, erase: boolean): void {
    this.paint(erase, () => {
      this.ink.lineWidth = width;
      this.ink.lineCap = this.ink.lineJoin = "round";
      this.ink.beginPath();
      this.ink.moveTo(...from);
      this.ink.lineTo(to[0] + 0.01, to[1]);
      this.ink.stroke();
    });
  }

  polygon(points: readonly Point[], erase: boolean): void {
    this.paint(erase, () => {
      this.ink.beginPath();
      points.forEach((point) => this.ink.lineTo(...point));
      this.ink.closePath();
      this.ink.fill();
    });
    this.finish();
  }

  all(filled: boolean): void {
    this.put(new Uint8Array(this.now.length).fill(filled ? 1 : 0));
  }

  invert(): void {
    this.put(this.now.map((value) => 1 - value));
  }

  /** Make it wider by so many pixels; narrower where negative. */
  grow(pixels: number): void {
    const { width, height } = this.hard;
    const reach = Math.abs(pixels) + 1;
    const spreads = pixels > 0 ? 1 : 0; // the area, or what is outside it
    const distance = rampOf(this.now.map((value) => (value === spreads ? 0 : 1)), width, height, reach);
    this.put(Uint8Array.from(distance, (value) => (value * reach < reach - 0.5 ? spreads : 1 - spreads)));
  }

  undo(): void {
    this.step(this.past, this.future);
  }
  redo(): void {
    this.step(this.future, this.past);
  }

  /** End a change: it can be undone, and is stored soon. */
  finish(force = false): void {
    const next = this.read();
    if (!force && next.every((value, k) => value === this.now[k])) return;
    this.past = [...this.past.slice(1 - MOST_UNDO), this.now];
    this.future = [];
    this.now = next;
    this.changed();
  }

  /** Upload what is not stored yet; the document then has it. */
  store(): Promise<void> {
    clearTimeout(this.timer);
    return (this.storing = this.storing.catch(() => undefined).then(() => this.upload()));
  }

  private async upload(): Promise<void> {
    if (this.isStored) return;
    this.isStored = true;
    if (!this.state.get().bounds) return this.keep(null);
    const page = document.createElement("canvas");
    page.width = this.hard.width;
    page.height = this.hard.height;
    const context = page.getContext("2d")!;
    const pixels = context.createImageData(page.width, page.height);
    this.now.forEach((value, k) => pixels.data.fill(value * 255, 4 * k, 4 * k + 3));
    this.now.forEach((_, k) => (pixels.data[4 * k + 3] = 255));
    context.putImageData(pixels, 0, 0);
    const blob = await new Promise<Blob | null>((resolve) => page.toBlob(resolve, "image/png"));
    try {
      if (blob) this.keep(await upload(blob, "mask.png"));
    } catch (error) {
      this.isStored = false;
      throw error;
    }
  }

  /** Draw `soft` anew. */
  shade(): void {
    const { width, height } = this.hard;
    if (!width) return;
    const ramp = rampOf(this.now, width, height, doc.get().feather + 1);
    const pixels = new ImageData(width, height);
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(INK.slice(at, at + 2), 16));
    ramp.forEach((value, k) => pixels.data.set([r!, g!, b!, 255 * value * value * (3 - 2 * value)], 4 * k));
    this.soft.getContext("2d")!.putImageData(pixels, 0, 0);
  }

  private keep(mask: PictureRef | null): void {
    const { picture } = doc.get();
    if (!picture) return;
    this.of = `${picture.sha256} ${mask?.sha256 ?? ""}`; // which `open` then leaves as it is
    edit({ mask });
  }

  private paint(erase: boolean, draw: () => void): void {
    this.ink.globalCompositeOperation = erase ? "destination-out" : "source-over";
    this.ink.strokeStyle = this.ink.fillStyle = INK;
    draw();
    this.ink.globalCompositeOperation = "source-over";
  }

  private async draw(file: Blob): Promise<void> {
    const image = await createImageBitmap(file);
    const { width, height } = this.hard;
    this.ink.drawImage(image, 0, 0, width, height);
    const { data } = this.ink.getImageData(0, 0, width, height);
    const light = Uint8Array.from({ length: width * height }, (_, k) => (data[4 * k]! + data[4 * k + 1]! + data[4 * k + 2]! > 381 ? 1 : 0));
    this.write(light);
  }

  private read(): Uint8Array {
    const { data } = this.ink.getImageData(0, 0, this.hard.width, this.hard.height);
    const values = new Uint8Array(data.length / 4);
    for (let k = 0; k < values.length; k++) values[k] = data[4 * k + 3]! > 127 ? 1 : 0;
    return values;
  }

  private write(values: Uint8Array): void {
    const pixels = new ImageData(this.hard.width, this.hard.height);
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(INK.slice(at, at + 2), 16));
    values.forEach((value, k) => value && pixels.data.set([r!, g!, b!, 255], 4 * k));
    this.ink.putImageData(pixels, 0, 0);
  }

  private put(values: Uint8Array): void {
    this.write(values);
    this.finish();
  }

  private step(from: Uint8Array[], to: Uint8Array[]): void {
    const values = from.pop();
    if (!values) return;
    to.push(this.now);
    this.now = values;
    this.write(values);
    this.changed();
  }

  private changed(): void {
    this.isStored = false;
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => void attempt(() => this.store()), PAUSE);
    this.publish();
  }

  private publish(): void {
    this.state.set((old) => ({
      version: old.version + 1,
      undo: this.past.length,
      redo: this.future.length,
      bounds: boundsOf(this.now, this.hard.width),
    }));
    this.shade();
  }
}

export const mask = new Mask();
