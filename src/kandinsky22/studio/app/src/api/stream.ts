/** The stream of server-sent events of all jobs: read with `fetch`, which can send a key, and connected again forever. */
import { request } from "./client";

export type Connection = "connecting" | "open" | "lost";
type Handler = (kind: string, data: unknown) => void;

const SILENCE = 40_000; // ms without a byte, after which the connection is given up; the server writes every 15 s
const FIRST_WAIT = 400;
const LONGEST_WAIT = 4_000;

/** Connect, and stay connected; returns what ends it. */
export function connect(onEvent: Handler, onConnection: (state: Connection) => void): () => void {
  let stopped = false;
  let abort = new AbortController();
  let wait = FIRST_WAIT;

  async function run(): Promise<void> {
    while (!stopped) {
      abort = new AbortController();
      try {
        const response = await request("/api/v1/events", { signal: abort.signal, headers: { accept: "text/event-stream" } });
        wait = FIRST_WAIT;
        onConnection("open");
        await read(response, onEvent, abort);
      } catch {
        // connected again below, whatever it was
      }
      if (stopped) return;
      onConnection("lost");
      await new Promise((resolve) => setTimeout(resolve, wait));
      wait = Math.min(wait * 1.6, LONGEST_WAIT);
    }
  }
  void run();
  const wake = () => {
    wait = FIRST_WAIT;
  };
  addEventListener("online", wake);
  return () => {
    stopped = true;
    removeEventListener("online", wake);
    abort.abort();
  };
}

async function read(response: Response, onEvent: Handler, abort: AbortController): Promise<void> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let alarm = 0;
  try {
    for (;;) {
      clearTimeout(alarm);
      alarm = window.setTimeout(() => abort.abort(), SILENCE);
      const { done, value } = await reader.read();
      if (done) return;
      text += value;
      const blocks = text.split("\n\n");
      text = blocks.pop() ?? "";
      for (const block of blocks) {
        const fields = Object.fromEntries(block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
        if (fields.event && fields.data) onEvent(fields.event, JSON.parse(fields.data));
      }
    }
  } finally {
    clearTimeout(alarm);
  }
}
