// The page: runs, tabs, and the forms.

import { ask, events, useToken } from "./api.js";
import { byId, element, table } from "./elements.js";
import { learn, stopLearning } from "./learning.js";
import { shown } from "./predictions.js";
import { readSoon } from "./reading.js";
import { forgetUnits, showUnits } from "./units.js";

const TABS = [
  ["next", "Next symbol", (run) => run.typed && ["sessions", "generate"].every((verb) => run.abilities.includes(verb))],
  ["generate", "Generate", (run) => run.abilities.includes("generate")],
  ["predict", "Predict", (run) => run.abilities.includes("predict")],
  ["score", "Score", (run) => run.abilities.includes("score")],
  ["units", "Units", (run) => run.abilities.includes("units")],
  ["learning", "Learning", () => true],
];
let runs = [];
let writing = null;

const run = () => runs.find((one) => one.name === byId("run").value);

function trouble(error) {
  const place = byId("trouble");
  place.hidden = !error;
  place.textContent = error ? error.message : "";
  if (error?.status === 401) {
    byId("token-form").hidden = false;
    byId("token").focus();
  }
}

function openTab(name) {
  for (const tab of byId("tabs").children) {
    const isOpen = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", isOpen);
    tab.tabIndex = isOpen ? 0 : -1;
  }
  for (const [other] of TABS) byId(`panel-${other}`).hidden = other !== name;
  stopLearning();
  writing?.abort();
  if (name === "learning") learn(run().name, trouble);
  if (name === "next") readSoon(run().name, trouble);
}

function openRun() {
  trouble(null);
  const one = run();
  byId("lines-form").textContent = one.lines?.predict ?? "";
  byId("scored-lines-form").textContent = one.lines?.score ?? "";
  byId("job").textContent = one.task ?? "watched";
  const names = TABS.filter(([, , fits]) => fits(one)).map(([name]) => name);
  byId("tabs").replaceChildren(...TABS.filter(([name]) => names.includes(name)).map(([name, title]) => {
    const tab = element("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}` }, title);
    tab.addEventListener("click", () => openTab(name));
    return tab;
  }));
  for (const option of document.querySelectorAll(".option")) {
    option.hidden = !(one.understands ?? []).includes(option.dataset.needs);
  }
  for (const place of ["predicted", "scored", "generated", "surprised", "next", "curves", "unit-text", "unit-plot"]) byId(place).replaceChildren();
  for (const place of ["surprise-words", "generate-status", "predict-status", "score-status", "units-status"]) byId(place).textContent = "";
  forgetUnits();
  openTab(names[0]);
}

// Arrow keys move between tabs.
byId("tabs").addEventListener("keydown", (event) => {
  const tabs = [...byId("tabs").children];
  const at = tabs.indexOf(document.activeElement);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (at < 0 || to === undefined) return;
  event.preventDefault();
  const tab = tabs[(to + tabs.length) % tabs.length];
  tab.focus();
  tab.click();
});

const linesOf = (id) => byId(id).value.replace(/\n+$/, "").split("\n").map((line) => line.replace(/\r$/, ""));

function submitted(form, act) {
  byId(form).addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = event.target.querySelector("button");
    button.disabled = true;
    try {
      await act();
      trouble(null);
    } catch (error) {
      if (error.name !== "AbortError") trouble(error);
    } finally {
      button.disabled = false;
    }
  });
}

submitted("generate-form", async () => {
  const output = byId("generated");
  const status = byId("generate-status");
  output.textContent = "";
  status.textContent = "Writing …";
  writing?.abort();
  writing = new AbortController();
  byId("halt").disabled = false;
  const body = { run: run().name, prompt: byId("prompt").value, length: byId("length").valueAsNumber,
    temperature: byId("temperature").valueAsNumber, top_p: byId("top-p").valueAsNumber, stream: true };
  if (byId("top-k").valueAsNumber) body.top_k = byId("top-k").valueAsNumber;
  if (byId("seed").value) body.seed = byId("seed").valueAsNumber;
  let isDone = false;
  try {
    for await (const [name, value] of events("/generate", body, writing.signal)) {
      if (name === "message") output.append(value.text);
      if (name === "error") throw new Error(value.error);
      if (name === "done") {
        isDone = true;
        status.textContent = `${value.tokens} tokens in ${value.seconds.toFixed(1)} seconds.`;
      }
    }
    if (!isDone) throw new Error("The text ended early: the server has left.");
  } catch (error) {
    status.textContent = error.name === "AbortError" ? "Stopped." : "";
    throw error;
  } finally {
    byId("halt").disabled = true;
  }
});
byId("halt").addEventListener("click", () => writing?.abort());

submitted("predict-form", async () => {
  const body = { run: run().name, lines: linesOf("lines") };
  const can = run().understands ?? [];
  if (can.includes("n_best")) body.n_best = byId("n-best").valueAsNumber;
  if (can.includes("probabilities")) body.probabilities = byId("probabilities").checked;
  if (can.includes("explain")) body.explain = byId("explain").checked;
  const found = await ask("/predict", body);
  if (body.run !== run().name) return;
  const nodes = shown(found.predictions);
  byId("predicted").replaceChildren(...nodes);
  byId("predict-status").textContent = `${nodes.length} ${nodes.length === 1 ? "prediction" : "predictions"}.`;
});

submitted("score-form", async () => {
  const lines = linesOf("scored-lines");
  const asked = run().name;
  const found = await ask("/score", { run: asked, lines });
  if (asked !== run().name) return;
  const rows = found.scores.map((one, k) => [lines[k], one.logp, one.tokens,
    one.logp === null ? null : Math.exp(-one.logp / Math.max(1, one.tokens))]); // null: not a finite number
  byId("scored").replaceChildren(table(["line", "log p (nats)", "tokens", "perplexity"], rows));
  byId("score-status").textContent = `${rows.length} ${rows.length === 1 ? "line" : "lines"}.`;
});

submitted("units-form", () => showUnits(run().name));
byId("layer").addEventListener("change", () => { byId("part").value = ""; showUnits(run().name).catch(trouble); });
byId("part").addEventListener("change", () => showUnits(run().name).catch(trouble));

for (const slider of document.querySelectorAll("input[type=range]")) {
  const tell = () => {
    const zero = slider.dataset.zero && slider.valueAsNumber === 0;
    document.querySelector(`output[for=${slider.id}]`).textContent = zero ? slider.dataset.zero : slider.value;
  };
  slider.addEventListener("input", tell);
  tell();
}

byId("typed").addEventListener("input", () => readSoon(run().name, trouble));
byId("live").addEventListener("change", () => learn(run().name, trouble));
byId("measure").addEventListener("change", () => learn(run().name, trouble));
byId("run").addEventListener("change", openRun);
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken(byId("token").value);
  byId("token-form").hidden = true;
  start();
});

async function start() {
  try {
    runs = (await ask("/runs")).runs;
    byId("run").replaceChildren(...runs.map(({ name }) => element("option", { value: name }, name)));
    openRun();
  } catch (error) {
    trouble(error);
  }
}

start();
