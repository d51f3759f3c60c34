// The learning curves of a run, live.

import { ask } from "./api.js";
import { byId, element, table } from "./elements.js";
import { plot } from "./plot.js";

const MAIN = ["loss", "valid"];
const NAMES = { loss: "training loss", valid: "validation loss" };
let timer = 0;
let current = 0; // counts what was asked for, so that a late answer is known

export function stopLearning() {
  clearTimeout(timer);
  current += 1;
}

export async function learn(run, trouble) {
  stopLearning();
  const mine = current;
  try {
    const found = await ask(`/runs/${encodeURIComponent(run)}/learning`);
    if (mine !== current) return; // of another run, or the tab was left
    draw(found);
    trouble(null);
  } catch (error) {
    if (mine !== current) return;
    trouble(error);
  }
  if (byId("live").checked) timer = setTimeout(() => learn(run, trouble), 2000);
}

function draw({ curves, last }) {
  const select = byId("measure");
  const others = ["", ...Object.keys(curves).filter((name) => !MAIN.includes(name))];
  if (others.join() !== [...select.options].map((option) => option.value).join()) {
    const kept = select.value;
    select.replaceChildren(...others.map((name) => element("option", { value: name }, name || "nothing else")));
    select.value = others.includes(kept) ? kept : "";
  }
  const figure = byId("curves");
  const main = MAIN.filter((name) => curves[name]?.length);
  if (!main.length && !select.value) {
    byId("learning-status").textContent = "No loss has been recorded yet.";
    figure.replaceChildren();
    return;
  }
  const lines = main.map((name) => ({ name: NAMES[name], points: curves[name] }));
  const drawn = [];
  if (lines.length) {
    drawn.push(plot({ lines, along: "optimizer steps", across: "loss", label: said(lines) }));
  }
  if (select.value && curves[select.value]) {
    const other = [{ name: select.value, points: curves[select.value] }];
    drawn.push(plot({ lines: other, along: "optimizer steps", across: select.value, label: said(other) }));
  }
  byId("learning-status").textContent = said(lines);
  const newest = element("div", { class: "wide" }, table(["last record", "value"], Object.entries(last[0] ?? {})));
  figure.replaceChildren(...drawn, newest);
}

function said(lines) {
  return lines.map(({ name, points }) => {
    const [step, value] = points.at(-1);
    return `${name} ${value.toPrecision(4)} at step ${step.toLocaleString("en")}`;
  }).join("; ");
}
