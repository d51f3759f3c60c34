// A plot as inline SVG: lines, and bands between two lines.

const NAMESPACE = "http://www.w3.org/2000/svg";
const [RIGHT, BOTTOM, ROW] = [16, 48, 22];
const NARROWEST = 1e-9; // range of an axis, relative to its numbers, which float64 can still part
const KINDS = ["first", "second", "third"];
const DASHES = ["", "dashed", "dotted"];

function shape(name, attributes, text) {
  const made = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Round numbers between two limits.
export function ticks(low, high, about = 5) {
  const raw = high / about - low / about || 1;
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * size).find((one) => one >= raw);
  const first = Math.ceil(low / step);
  const found = [];
  for (let k = 0; k <= about + 1; k++) { // counted, since first + k may equal first + k + 1
    const tick = Number(((first + k) * step).toPrecision(12));
    if (tick > high + step * 1e-9) break;
    if (tick !== found.at(-1)) found.push(tick);
  }
  return found;
}

function short(value, digits = 4) {
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-3)) return value.toExponential(digits - 4);
  return value.toLocaleString("en", { maximumSignificantDigits: digits });
}

// The shortest names that say the numbers exactly.
export function names(values) {
  for (let digits = 4; ; digits++) {
    const found = values.map((value) => short(value, digits));
    const isExact = found.every((name, k) => Number(name.replaceAll(",", "")) === values[k]);
    if (digits === 12 || isExact) return found;
  }
}

// lines: [{ name, points: [[x, y], …] }], at most three; bands: [{ points: [[x, low, high], …] }].
export function plot({ lines, bands = [], across, along, label, named }) {
  const xs = [...lines, ...bands].flatMap((one) => one.points.map((point) => point[0]));
  const ys = [...lines, ...bands].flatMap((one) => one.points.flatMap((point) => point.slice(1)));
  let [left, right] = [Math.min(...xs), Math.max(...xs)];
  let [low, high] = [Math.min(...ys), Math.max(...ys)];
  if (left === right) [left, right] = [left - 1, right + 1];
  const margin = low === high ? Math.abs(high) * 0.1 || 1
    : Math.max(0.06 * (high - low), NARROWEST * Math.max(Math.abs(low), Math.abs(high)));
  [low, high] = [low - margin, high + margin];
  const heights = ticks(low, high);
  const told = names(heights);
  const WIDTH = Math.max(300, Math.min(1152, document.documentElement.clientWidth - 24)); // so that text stays readable
  const TOP = 16 + ROW * lines.length; // names stand above, where no line passes
  const HEIGHT = Math.max(240, 0.42 * WIDTH) + TOP - 16;
  const LEFT = Math.max(74, 32 + 9.5 * Math.max(...told.map((name) => name.length)));
  const x = (value) => LEFT + ((value - left) / (right - left)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const svg = shape("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
  heights.forEach((tick, k) => {
    svg.append(shape("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick) }));
    svg.append(shape("text", { x: LEFT - 8, y: y(tick) + 6, "text-anchor": "end", "font-size": 17 }, told[k]));
  });
  const inside = ticks(left, right, Math.max(2, Math.round(WIDTH / 150)));
  const isFew = inside.length < 2;
  const places = isFew ? [left, right] : inside;
  const steps = named ? places.map(named) : names(places);
  places.forEach((tick, k) => {
    const anchor = isFew ? ["middle", "end"][k] : "middle";
    const at = isFew ? x(tick) : Math.min(x(tick), WIDTH - 4.8 * steps[k].length); // half its width inside the edge
    const place = { x: at, y: HEIGHT - BOTTOM + 22, "text-anchor": anchor, "font-size": 17 };
    svg.append(shape("text", place, steps[k]));
  });
  svg.append(shape("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 4, "text-anchor": "middle", "font-size": 17 }, along));
  svg.append(shape("text", { x: 16, y: (TOP + HEIGHT - BOTTOM) / 2, "font-size": 17, "text-anchor": "middle",
    transform: `rotate(-90 16 ${(TOP + HEIGHT - BOTTOM) / 2})` }, across));
  for (const band of bands) {
    const upper = band.points.map((point) => `${x(point[0])},${y(point[2])}`);
    const lower = band.points.map((point) => `${x(point[0])},${y(point[1])}`).reverse();
    svg.append(shape("polygon", { class: "band", points: [...upper, ...lower].join(" ") }));
  }
  lines.forEach((line, k) => {
    const kind = k % KINDS.length;
    const points = line.points.map((point) => `${x(point[0])},${y(point[1])}`).join(" ");
    svg.append(shape("polyline", { class: `line ${KINDS[kind]} ${DASHES[kind]}`, points }));
    if (line.points.length === 1) {
      const [[at, value]] = line.points;
      svg.append(shape("circle", { class: `line ${KINDS[kind]}`, cx: x(at), cy: y(value), r: 3 }));
    }
    const legend = { class: `${KINDS[kind]}-text`, x: LEFT, y: ROW * (k + 1) - 4, "font-size": 18, "font-weight": 600 };
    svg.append(shape("text", legend, `${["—", "- -", "···"][kind]} ${line.name}`));
  });
  return svg;
}
