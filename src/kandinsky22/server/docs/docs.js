// Shows /openapi.json. Every value is set as text, never as markup.
"use strict";

function element(name, text, children = []) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

function table(title, rows) {
  const body = rows.map((row) => element("tr", "", row.map((cell) => element("td", cell))));
  return rows.length ? [element("h3", title), element("table", "", body)] : [];
}

function typeOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" or ");
  if (schema.enum) return schema.enum.join(" | ");
  return schema.type === "array" ? `list of ${typeOf(schema.items)}` : schema.type || "any";
}

function operationOf(method, path, operation) {
  const heading = element("h2", "", [element("span", method.toUpperCase()), element("code", path)]);
  heading.firstChild.className = "method";
  const parts = [heading, element("p", operation.description || operation.summary || "")];
  const given = (operation.parameters || []).map((p) => [p.name, p.in, typeOf(p.schema), p.description || ""]);
  parts.push(...table("Parameters", given));
  const content = Object.entries(operation.requestBody?.content || {});
  parts.push(...table("Body", content.map(([media, body]) => [media, typeOf(body.schema)])));
  const answers = Object.entries(operation.responses).map(([status, answer]) => [
    status, answer.description, Object.values(answer.content || {}).map((body) => typeOf(body.schema)).join(", "),
  ]);
  return element("section", "", [...parts, ...table("Answers", answers)]);
}

async function show() {
  const main = document.querySelector("main");
  const answer = await fetch("/openapi.json");
  const openapi = await answer.json();
  const sections = Object.entries(openapi.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => operationOf(method, path, operation)));
  const schemas = Object.entries(openapi.components?.schemas || {}).map(([name, schema]) => {
    const fields = Object.entries(schema.properties || {});
    const rows = fields.map(([field, value]) => [field, typeOf(value), value.description || ""]);
    const section = element("section", "", [element("h2", name), element("p", schema.description || ""), ...table("Fields", rows)]);
    return section;
  });
  main.replaceChildren(...sections, ...schemas);
}

show().catch((error) => document.querySelector("main").replaceChildren(element("p", String(error))));
