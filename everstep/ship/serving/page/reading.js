// The view in which the model reads what is typed: surprise by colour, and the likeliest next symbols.

import { ask } from "./api.js";
import { bar, byId, element, heat, visible } from "./elements.js";

const BITS = 1 / Math.log(2);
const MOST_BITS = 10;
let pending = null;
let timer = 0;

export function readSoon(run, trouble) {
  clearTimeout(timer);
  timer = setTimeout(() => read(run, trouble), 120);
}

async function read(run, trouble) {
  pending?.abort();
  const mine = (pending = new AbortController());
  const text = byId("typed").value;
  let session = null;
  try {
    // not aborted, since a session whose id never comes could not be deleted
    session = (await ask("/sessions", { run, begin: true })).session;
    if (mine !== pending) return;
    const path = `/sessions/${session}`;
    const found = text
      ? await ask(`${path}/steps`, { text, surprise: true, top: 10 }, { signal: mine.signal })
      : await ask(`${path}?top=10`, undefined, { signal: mine.signal });
    if (mine !== pending) return;
    colour(found.texts ?? [], (found.surprise ?? []).map((nats) => (nats === null ? null : nats * BITS)));
    next(found.top, run, trouble);
    trouble(null);
  } catch (error) {
    if (mine === pending && error.name !== "AbortError") trouble(error);
  } finally {
    if (session) ask(`/sessions/${session}`, undefined, { method: "DELETE" }).catch(() => {});
  }
}

function colour(texts, bits) {
  const parts = texts.map((text, k) => {
    const part = element("span", bits[k] === null ? {} : { title: `${visible(text)}: ${bits[k].toFixed(1)} bits` }, text);
    heat(part, (bits[k] ?? 0) / MOST_BITS);
    return part;
  });
  byId("surprised").replaceChildren(...parts);
  const known = bits.filter((value) => value !== null);
  if (!known.length) {
    byId("surprise-words").textContent = "";
    return;
  }
  const mean = known.reduce((sum, value) => sum + value, 0) / known.length;
  const most = bits.indexOf(Math.max(...known));
  byId("surprise-words").textContent =
    `${mean.toFixed(2)} bits a symbol; most at symbol ${most + 1}, “${visible(texts[most])}”: ${bits[most].toFixed(1)} bits.`;
}

function next(top, run, trouble) {
  const items = top.map(({ id, p, text }) => {
    const add = element("button", { type: "button", class: "name", title: `Append “${visible(text ?? String(id))}”` },
      visible(text ?? String(id)));
    add.addEventListener("click", () => {
      byId("typed").value += text ?? "";
      readSoon(run, trouble);
    });
    return bar(add, p);
  });
  const wasThere = byId("next").contains(document.activeElement);
  byId("next").replaceChildren(...items);
  if (wasThere) byId("next").querySelector("button")?.focus(); // else the keyboard starts again at the top
}
