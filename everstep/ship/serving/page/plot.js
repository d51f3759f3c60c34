// A plot as inline SVG: lines, and bands between two lines.

const NAMESPACE = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [900, 380, 74, 16, 16, 48];
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
  const raw = (high - low) / about || 1;
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * size).find((one) => one >= raw);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high + step * 1e-9; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}

const short = (value) => {
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-3)) return value.toExponential(0);
  return value.toLocaleString("en", { maximumSignificantDigits: 4 });
};

// lines: [{ name, points: [[x, y], …] }], at most three; bands: [{ points: [[x, low, high], …] }].
export function plot({ lines, bands = [], across, along, label, named = short }) {
  const xs = [...lines, ...bands].flatMap((one) => one.points.map((point) => point[0]));
  const ys = [...lines, ...bands].flatMap((one) => one.points.flatMap((point) => point.slice(1)));
  let [left, right] = [Math.min(...xs), Math.max(...xs)];
  let [low, high] = [Math.min(...ys), Math.max(...ys)];
  if (left === right) [left, right] = [left - 1, right + 1];
  const margin = 0.06 * (high - low) || Math.abs(high) * 0.1 || 1;
  [low, high] = [low - margin, high + margin];
  const x = (value) => LEFT + ((value - left) / (right - left)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const svg = shape("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
  for (const tick of ticks(low, high)) {
    svg.append(shape("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick) }));
    svg.append(shape("text", { x: LEFT - 8, y: y(tick) + 6, "text-anchor": "end", "font-size": 17 }, short(tick)));
  }
  for (const tick of ticks(left, right, 6)) {
    svg.append(shape("text", { x: x(tick), y: HEIGHT - BOTTOM + 22, "text-anchor": "middle", "font-size": 17 }, named(tick)));
  }
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
    const legend = { class: `${KINDS[kind]}-text`, x: WIDTH - RIGHT - 6, y: TOP + 18 + 22 * k, "text-anchor": "end" };
    svg.append(shape("text", { ...legend, "font-size": 18, "font-weight": 600 }, `${["—", "- -", "···"][kind]} ${line.name}`));
  });
  return svg;
}
