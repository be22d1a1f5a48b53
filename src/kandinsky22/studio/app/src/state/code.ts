/** A request as a program: Python, curl, and a command line, each of which paints the same picture. */
import { taskOf, docOf, type PictureJson, type RequestJson } from "./request";

export type CodeKind = "python" | "curl" | "command";

/** The pictures of a request, by their path in it: "start.image", "mask.area", "condition.parts.0". */
function picturesOf(value: unknown, path = ""): [string, PictureJson["picture"]][] {
  if (typeof value !== "object" || value === null) return [];
  if ("picture" in value) return [[path, (value as PictureJson).picture]];
  return Object.entries(value).flatMap(([name, part]) => picturesOf(part, path ? `${path}.${name}` : name));
}

const quote = (text: string): string => `'${text.replaceAll("'", `'\\''`)}'`;
const fileOf = (picture: PictureJson["picture"]): string => `${picture.sha256.slice(0, 16)}.png`;

export function codeOf(kind: CodeKind, request: RequestJson, id: string, origin: string): string {
  const inputs = picturesOf(request);
  const fetched = [...new Map(inputs.map(([, picture]) => [picture.sha256, picture])).values()].map(
    (picture) => `curl -s ${origin}/api/v1/uploads/${picture.sha256} -o ${fileOf(picture)}`,
  );
  if (kind === "curl") return curl(request, origin);
  if (kind === "command") {
    const plain = commandOf(request);
    return plain ?? [...fetched, `curl -s ${origin}/api/v1/pictures/${id} -o ${id}.png`, `kandinsky22 replay ${id}.png`].join("\n");
  }
  const lines = ["from kandinsky22 import Kandinsky, Picture, Request", ""];
  if (!inputs.length) lines[0] = "from kandinsky22 import Kandinsky, Request";
  lines.push(...fetched.map((line) => `# ${line}`));
  lines.push(`request = Request.from_json(r"""${JSON.stringify(request)}""")`);
  if (inputs.length) {
    lines.push("files = {sha[:16]: Picture.of(sha[:16] + '.png') for sha in {p.sha256 for p in request.pictures.values()}}");
    lines.push("request = request.with_pictures({path: files[p.sha256[:16]] for path, p in request.pictures.items()})");
  }
  lines.push("(painting,) = Kandinsky.load(request.model)(request)", `painting.save("${id}.png")`);
  return lines.join("\n");
}

function curl(request: RequestJson, origin: string): string {
  return [
    `curl -s ${origin}/api/v1/jobs -H 'content-type: application/json' \\`,
    `  -d ${quote(JSON.stringify({ request }))}`,
    "# the answer has the job's id; when it has succeeded:",
    `curl -s ${origin}/api/v1/pictures/ID-0 -o picture.png`,
  ].join("\n");
}

/** The command line of a request of words alone; null for others. */
function commandOf(request: RequestJson): string | null {
  const doc = docOf(request);
  if (taskOf(doc) !== "text2img" || doc.mixing || !("prompt" in request.condition) || request.condition.image) return null;
  if (request.negative && !("prompt" in request.negative)) return null;
  const options: [string, string | number | null | undefined][] = [
    ["negative-prompt", request.negative && "prompt" in request.negative ? quote(request.negative.prompt) : null],
    ["seed", request.seed],
    ["prior-seed", request.prior_seed],
    ["variation-seed", request.variation_seed],
    ["variation-strength", request.variation_strength || null],
    ["width", request.width],
    ["height", request.height],
    ["steps", request.decoder?.steps],
    ["guidance-scale", request.decoder?.guidance_scale],
    ["sampler", request.decoder?.sampler],
    ["guidance-interval", request.decoder?.guidance_interval?.join()],
    ["reuse", request.decoder?.reuse],
    ["prior", request.prior?.sampler === "linear" ? "linear" : null],
    ["prior-num-inference-steps", request.prior?.sampler === "linear" ? null : request.prior?.steps],
    ["prior-guidance-scale", request.prior?.sampler === "linear" ? null : request.prior?.guidance_scale],
    ["prior-sampler", request.prior?.sampler === "linear" ? null : request.prior?.sampler],
    ["model", request.model && request.model !== "box" ? quote(request.model) : null],
  ];
  const given = options.filter(([, value]) => value !== null && value !== undefined).map(([name, value]) => `--${name} ${value}`);
  return ["kandinsky22 text2img", ...given, "--", quote(request.condition.prompt)].join(" ");
}
