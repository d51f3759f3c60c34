// One unit or gate over a text: by colour, and as a line.

import { ask } from "./api.js";
import { byId, element, heat, visible } from "./elements.js";
import { plot } from "./plot.js";

export async function showUnits(run) {
  const body = { run, text: byId("units-text").value, layer: Number(byId("layer").value || 0),
    unit: byId("unit").valueAsNumber || 0 };
  if (byId("part").value) body.part = byId("part").value;
  const found = await ask("/units", body);
  if (run !== byId("run").value) return;
  options(byId("layer"), found.layers.map(({ name }, k) => [k, name]), found.layer);
  const parts = Object.entries(found.layers[found.layer].parts);
  options(byId("part"), parts.map(([name, units]) => [name, `${name} (${units} units)`]), found.part);
  byId("unit").max = found.layers[found.layer].parts[found.part] - 1;
  draw(found);
}

export function forgetUnits() {
  for (const name of ["layer", "part"]) byId(name).replaceChildren();
  byId("unit").value = 0;
}

function options(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, name]) => element("option", { value }, name)));
  select.value = chosen;
}

function draw({ labels, values, part, unit }) {
  const most = Math.max(...values.map(Math.abs), 1e-9);
  byId("unit-text").replaceChildren(...labels.map((label, k) => {
    const piece = element("span", { title: `${visible(label)}: ${values[k].toFixed(3)}` }, label);
    heat(piece, Math.abs(values[k]) / most, values[k] < 0 ? "band" : "heat");
    return piece;
  }));
  const name = `${part} of unit ${unit}`;
  const said = `${name}: from ${Math.min(...values).toFixed(3)} to ${Math.max(...values).toFixed(3)}`;
  byId("units-status").textContent = `${said}; orange above zero, blue below.`;
  const points = values.map((value, k) => [k, value]);
  byId("unit-plot").replaceChildren(plot({ lines: [{ name, points }], along: "piece", across: part, label: said }));
}
