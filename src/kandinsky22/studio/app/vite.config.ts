// Builds the studio into ../built, with the checksum of its source beside it, which a test of the Python package compares.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { defineConfig, type Plugin } from "vite";

const ROOT = import.meta.dirname;
const OUTPUT = join(ROOT, "..", "built");
const SOURCES = ["index.html", "package-lock.json", "package.json", "src", "tsconfig.json", "vite.config.ts"];

function filesOf(path: string): string[] {
  return statSync(path).isDirectory() ? readdirSync(path).flatMap((name) => filesOf(join(path, name))) : [path];
}

/** The SHA-256 over the names and contents of all sources, except the generated types, which change no output. */
function checksum(): string {
  const files = SOURCES.flatMap((name) => filesOf(join(ROOT, name))).map((path) => relative(ROOT, path).replaceAll("\\", "/"));
  const hash = createHash("sha256");
  for (const file of files.filter((name) => !name.endsWith(".d.ts")).sort()) {
    hash.update(`${file}\0`).update(readFileSync(join(ROOT, file))).update("\0");
  }
  return hash.digest("hex");
}

const writeChecksum: Plugin = {
  name: "checksum",
  closeBundle: () => writeFileSync(join(OUTPUT, "source.sha256"), `${checksum()}\n`),
};

export default defineConfig({
  base: "/",
  build: {
    outDir: OUTPUT,
    emptyOutDir: true,
    assetsInlineLimit: 0, // the content security policy allows no inline content
    modulePreload: false,
    target: "es2022",
    reportCompressedSize: false,
  },
  server: { proxy: { "/api": "http://127.0.0.1:8022" } },
  plugins: [writeChecksum],
});
