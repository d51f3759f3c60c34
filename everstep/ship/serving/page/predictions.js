// How a prediction is shown, by what its record holds.

import { bar, element, heat, percent, table } from "./elements.js";
import { plot } from "./plot.js";

const TAG_HUES = [205, 25, 140, 280, 50, 330, 175, 0];

export function shown(predictions) {
  const records = predictions.map((one) => one.record);
  if (records.some((record) => record.ds !== undefined && record.mean !== undefined)) return forecasts(records);
  return predictions.filter((one) => one.text !== "" || Object.keys(one.record).length).map(one);
}

function one({ text, record }) {
  if (record.alignment) return aligned(record);
  if (record.tags && record.tokens) return tagged(record);
  if (record.probabilities && record.label !== undefined) return labelled(record);
  return element("article", {}, element("pre", {}, text));
}

function labelled(record) {
  const names = Object.entries(record.probabilities).sort((a, b) => b[1] - a[1]).slice(0, 10);
  const bars = names.map(([name, p]) => bar(element("span", { class: "name" }, name), p));
  const parts = [];
  if (record.explanation) parts.push(explained(record.explanation));
  return element("article", {},
    element("p", {}, record.text ?? "", " → ", element("strong", {}, record.label || "no label")),
    ...parts, element("ol", { class: "bars", "aria-label": `Probabilities for ${record.text ?? "the line"}` }, ...bars));
}

function explained({ pieces, gradient }) {
  const most = Math.max(...gradient.map(Math.abs), 1e-9);
  const words = pieces.map((piece, k) => {
    const part = element("span", { class: "word", title: `relevance ${gradient[k].toFixed(3)}` }, piece);
    heat(part, Math.max(0, gradient[k]) / most);
    return part;
  });
  return element("p", { class: "words", "aria-label": "Coloured: the parts that speak for the answer" }, ...words);
}

const columns = (record) => Object.entries(record.columns ?? { "": record });

function tagged(record) {
  const kinds = new Map();
  const hue = (tag) => {
    const kind = tag.replace(/^[BIESLU]-/, "");
    if (!kinds.has(kind)) kinds.set(kind, TAG_HUES[kinds.size % TAG_HUES.length]);
    return kinds.get(kind);
  };
  const rows = columns(record).map(([name, column]) => {
    const words = record.tokens.map((token, k) => {
      const tag = column.tags[k];
      const p = column.probabilities?.[k]?.[tag];
      const word = element("span", { class: "word", title: p === undefined ? tag : `${tag} ${percent(p)}` },
        token, element("small", {}, tag === "O" || tag === "_" ? "\u00a0" : tag));
      if (tag !== "O" && tag !== "_") word.style.backgroundColor = `hsl(${hue(tag)} 75% 50% / 0.28)`;
      return word;
    });
    return element("div", {}, name ? element("h3", {}, name) : "", element("p", { class: "words" }, ...words));
  });
  return element("article", {}, ...rows);
}

function aligned(record) {
  const source = record.source_tokens.map((token) => element("span", { class: "word" }, token));
  const target = record.tokens.map((token, k) => {
    const word = element("button", { type: "button", class: "word" }, token);
    const weights = record.alignment[k] ?? [];
    const light = () => source.forEach((one, place) => heat(one, weights[place] ?? 0));
    const dark = () => source.forEach((one) => heat(one, 0));
    const best = weights.indexOf(Math.max(...weights));
    const p = Math.exp(record.token_log_p?.[k] ?? NaN);
    word.title = `reads ${record.source_tokens[best] ?? "nothing"}${Number.isNaN(p) ? "" : `, p ${percent(p)}`}`;
    word.setAttribute("aria-label", `${token}: ${word.title}`);
    for (const [event, act] of [["mouseenter", light], ["focus", light], ["mouseleave", dark], ["blur", dark]]) {
      word.addEventListener(event, act);
    }
    return word;
  });
  const others = (record.n_best ?? []).slice(1).map((other) => [other.log_p, other.translation]);
  return element("article", {},
    element("p", { class: "words", "aria-label": "Source" }, ...source),
    element("p", { class: "words", "aria-label": "Result; each word shows what it reads" }, ...target),
    element("p", {}, element("strong", {}, record.translation)),
    others.length ? table(["log\u00a0p", "other results"], others) : "");
}

function forecasts(records) {
  const series = grouped(records.filter((record) => record.ds !== undefined));
  return [...series].map(([name, rows]) => {
    const has = (key) => rows[0][key] !== undefined;
    const between = (low, high) => (has(low) && has(high)
      ? [{ points: rows.map((row, k) => [k, row[low], row[high]]) }] : []);
    const lines = [{ name: "mean", points: rows.map((row, k) => [k, row.mean]) }];
    if (has("q0.5")) lines.push({ name: "median", points: rows.map((row, k) => [k, row["q0.5"]]) });
    const label = `Forecast of ${name}: from ${rows[0].mean.toPrecision(4)} at ${rows[0].ds} to `
      + `${rows.at(-1).mean.toPrecision(4)} at ${rows.at(-1).ds}`;
    const drawn = plot({ lines, bands: [...between("q0.05", "q0.95"), ...between("q0.1", "q0.9")], along: "time",
      across: String(name), label, named: (k) => short(rows[k]?.ds) });
    const bands = has("q0.05") ? " Bands: 80 % and 90 % of the values are expected within." : "";
    return element("figure", {}, drawn, element("figcaption", {}, `${label}.${bands}`));
  });
}

// A time without its year, if it has one.
const short = (ds) => { const text = String(ds ?? ""); return text.length > 10 ? text.slice(5, 16) : text; };

function grouped(rows) {
  const found = new Map();
  for (const row of rows) found.set(row.unique_id, [...(found.get(row.unique_id) ?? []), row]);
  return found;
}
