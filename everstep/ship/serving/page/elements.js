// Small helpers for elements.

export const byId = (id) => document.getElementById(id);

// element("p", { class: "hint", title: "…" }, "text", child, …)
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

export const percent = (p) => `${(100 * p).toFixed(p >= 0.1 ? 0 : p >= 0.001 ? 1 : 2)} %`;

// White space that can be seen.
export const visible = (text) =>
  text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ +| +$/g, (run) => "␣".repeat(run.length)) || "∅";

export function bar(name, p) {
  const drawn = element("span", { class: "bar", "aria-hidden": "true" });
  drawn.style.width = `${100 * Math.min(1, p)}%`;
  return element("li", {}, name, element("span", {}, drawn), element("span", { class: "number" }, percent(p)));
}

// A background from none (0) to strong (1), on which the text stays readable; kind: heat or band.
export function heat(node, share, kind = "heat") {
  const strength = Math.max(0, Math.min(1, share)).toFixed(3);
  node.style.backgroundColor = `rgb(var(--${kind}) / calc(var(--strongest) * ${strength}))`;
}

export function table(heads, rows) {
  const cell = (kind) => (value) =>
    element(kind, typeof value === "number" ? { class: "number" } : kind === "th" ? { scope: "col" } : {},
      typeof value === "number" ? value.toLocaleString("en", { maximumFractionDigits: 4 }) : String(value ?? ""));
  return element("table", {},
    element("thead", {}, element("tr", {}, ...heads.map(cell("th")))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map(cell("td"))))));
}
