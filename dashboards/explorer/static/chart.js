// Lines over steps, as SVG: axes with round numbers, whiskers, and what stands under the pointer.
import { figure, h, svg } from "./dom.js";

const NARROW = 400, HEIGHT = 190, LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 22;

/** Round numbers between two ends. */
export function ticks(low, high, wanted = 4) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough) ?? 10 * power;
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}

function ends(values) {
  const known = values.filter(Number.isFinite);
  if (!known.length) return null;
  let low = known[0], high = known[0];
  for (const value of known) { low = Math.min(low, value); high = Math.max(high, value); }
  const spare = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [low >= 0 && low - spare < 0 ? 0 : low - spare, high + spare];
}

/**
 * series: [{name, colour, points: [[x, y, extra]]}]; extra may have low, high, title, ring and fill.
 */
export function lineChart({ title, series, dots = false, big = false }) {
  const WIDTH = big ? NARROW * 2.04 : NARROW;
  const all = series.flatMap((one) => one.points);
  const high = ends(all.flatMap(([, y, extra]) => [y, extra?.low, extra?.high]));
  const read = h("span.read", {}, "");
  const frame = h("figure.chart", { class: big ? "big" : "", css: { margin: 0 } }, h("div.title", {}, h("span", {}, title), read));
  if (!high) return frame.append(h("p.faint", {}, "nothing measured")), frame;
  const xs = all.map(([x]) => x);
  const first = Math.min(...xs), last = Math.max(...xs);
  const x = (value) => LEFT + ((WIDTH - LEFT - RIGHT) * (value - first)) / (last - first || 1);
  const y = (value) => TOP + ((HEIGHT - TOP - BOTTOM) * (high[1] - value)) / (high[1] - high[0] || 1);
  const drawn = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}: ${series.map((s) => s.name).join(", ")}` });
  for (const value of ticks(...high)) {
    drawn.append(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
      svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, figure(value)));
  }
  for (const value of ticks(first, last)) drawn.append(svg("text", { x: x(value), y: HEIGHT - 6, "text-anchor": value === last ? "end" : "middle" }, figure(value)));
  for (const one of series) drawn.append(...line(one, x, y, dots || one.points.length === 1));
  frame.append(drawn);
  pointed(drawn, series, WIDTH, x, read, first, last);
  return frame;
}

function line(one, x, y, dots) {
  const known = one.points.filter(([, value]) => Number.isFinite(value));
  const path = known.map(([at, value], i) => `${i ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const made = [svg("path", { d: path, fill: "none", stroke: one.colour, "stroke-width": 1.5, "stroke-dasharray": one.dashed ? "3 3" : null })];
  for (const [at, value, extra] of known) {
    if (Number.isFinite(extra?.low)) made.push(svg("line", { x1: x(at), x2: x(at), y1: y(extra.low), y2: y(extra.high), stroke: one.colour, "stroke-opacity": 0.45 }));
    if (dots) made.push(svg("circle", { cx: x(at), cy: y(value), r: 2.8, fill: extra?.fill ?? one.colour }));
    if (extra?.ring) made.push(svg("circle", { cx: x(at), cy: y(value), r: 5.5, fill: "none", stroke: "var(--good)", "stroke-width": 1.5 }));
  }
  return made;
}

function pointed(drawn, series, WIDTH, x, read, first, last) {
  const cross = svg("line", { class: "cross", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  drawn.append(cross);
  drawn.addEventListener("pointermove", (event) => {
    const box = drawn.getBoundingClientRect();
    const at = ((event.clientX - box.left) * WIDTH) / box.width;
    const wanted = first + ((at - LEFT) * (last - first)) / (WIDTH - LEFT - RIGHT);
    const near = series.map((one) => one.points.reduce((best, p) => (Math.abs(p[0] - wanted) < Math.abs(best[0] - wanted) ? p : best), one.points[0] ?? [0, NaN]));
    const step = near.reduce((best, p) => (Math.abs(p[0] - wanted) < Math.abs(best - wanted) ? p[0] : best), near[0][0]);
    cross.setAttribute("x1", x(step)); cross.setAttribute("x2", x(step)); cross.setAttribute("visibility", "visible");
    read.replaceChildren(`${figure(step)}: `, ...near.flatMap((p, i) => (p[0] === step && Number.isFinite(p[1]) ? [h("span", { css: { color: series[i].colour } }, `${figure(p[1])} `)] : [])));
  });
  drawn.addEventListener("pointerleave", () => { cross.setAttribute("visibility", "hidden"); read.replaceChildren(); });
}

/** Bars of a histogram: all in grey, the kept part in colour, thresholds as red lines. */
export function histogram(found, thresholds) {
  const width = 340, height = 74, base = 58;
  const most = Math.max(1, ...found.bins);
  const step = width / Math.max(1, found.bins.length);
  const made = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "hist", role: "img", "aria-label": `How ${found.name} is spread`, width: "100%" });
  found.bins.forEach((number, i) => {
    const tall = number ? Math.max(1.2, (base * number) / most) : 0;
    const part = number ? (tall * found.kept[i]) / number : 0;
    made.append(svg("rect", { class: "all", x: i * step, y: base - tall, width: step - 0.6, height: tall }),
      svg("rect", { class: "kept", x: i * step, y: base - part, width: step - 0.6, height: part }));
  });
  for (const value of thresholds) {
    const at = (width * (value - found.low)) / (found.high - found.low);
    if (at >= 0 && at <= width) made.append(svg("line", { x1: at, x2: at, y1: 0, y2: base }));
  }
  const words = (x, anchor, text) => svg("text", { x, y: height - 3, "text-anchor": anchor, "font-size": 11, fill: "var(--faint)" }, text);
  made.append(words(0, "start", figure(found.low)), words(width, "end", figure(found.high)));
  return made;
}

export const COLOURS = Array.from({ length: 8 }, (_, i) => `var(--s${i})`);
