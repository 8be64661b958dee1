// What a row was made of and what was made of it: a column a dataset, raw files to the left.
import { ask, count, facts, figure, h, link, put, say, svg } from "./dom.js";

export async function view(place, path, _query, signal) {
  const target = path.join("/");
  const field = h("input", { type: "search", value: target, size: 60, placeholder: "a row's key, a raw file, a checkpoint, or a dataset, as clips@1", "aria-label": "What to trace" });
  const form = h("form.tools", { onsubmit: (event) => { event.preventDefault(); if (field.value.trim()) location.hash = link(["lineage", field.value.trim()]); } }, field, h("button", {}, "Trace"));
  const below = h("div", {});
  put(place, h("h1", {}, "Lineage"), form, below);
  if (!target) {
    below.append(h("p.soft", {}, "Both ways: back to raw files, and forward to packs, checkpoints and evaluations. Every key that the explorer shows leads here."));
    field.focus();
    return;
  }
  try {
    const address = target.split("/").map(encodeURIComponent).join("/");
    const found = await ask(`/api/lineage/${address}`, null, signal);
    const row = found.key ? await ask(`/api/row/${found.key}`, { near: found.dataset }, signal) : null;
    put(below, h("p", {}, h("strong", {}, found.label ?? found.target), " ", h("a", { href: link(["rows", `${found.dataset}@${found.version}`]) }, `${found.dataset}@${found.version}`), h("span.soft", {}, ` (${count(found.rows)} rows)`), found.key ? [" ", h("code", {}, found.key)] : null, found.dataset === "clips" && found.key ? [" ", h("a", { href: link(["clips", found.key]) }, "see the clip")] : null, found.dataset === "packs" && found.key ? [" ", h("a", { href: link(["packs", found.key]) }, "see the pack")] : null, found.dataset === "generations" && found.key ? [" ", h("a", { href: link(["answers", found.key]) }, "see the answer")] : null),
      ...levels(found), row ? h("section", {}, h("h2", {}, "The row"), facts(Object.entries(row.columns).map(([name, value]) => [name, typeof value === "object" && value !== null ? h("code", {}, JSON.stringify(value)) : typeof value === "number" ? figure(value) : value === null ? null : String(value)]))) : "");
  } catch (error) {
    if (error.name !== "AbortError") put(below, say(error.message, true));
  }
}

/** The answer of /api/lineage as columns with lines between them. */
export function levels(found) {
  const all = new Map();
  for (const level of [...found.up.levels, ...found.down.levels]) {
    const name = `${level.dataset}@${level.version}`;
    const before = all.get(name);
    if (!before) all.set(name, { ...level, name, rows: [...level.rows] });
    else {
      const known = new Set(before.rows.map((row) => row.key));
      before.rows.push(...level.rows.filter((row) => !known.has(row.key)));
      before.total = Math.max(before.total, level.total);
      before.whole ||= level.whole;
    }
  }
  const edges = [...found.up.edges, ...found.down.edges];
  const lines = svg("svg", { "aria-hidden": "true", width: 0, height: 0 });
  const nodes = new Map();
  const columns = inColumns([...all.values()].sort((a, b) => a.place - b.place), edges).map((column) => h("div.column", {}, column.map((level) => shown(level, found, nodes))));
  const area = h("div.levels", { tabindex: 0, role: "group", "aria-label": "From raw files to what was made" }, lines, columns);
  requestAnimationFrame(() => join(area, lines, nodes, edges));
  return [area];
}

/** Levels by the longest way from the left-most one, so that lines run from left to right. */
function inColumns(ordered, edges) {
  const levelOf = new Map(ordered.flatMap((level) => [[level.name, level.name], ...level.rows.map((row) => [row.key, level.name])]));
  const before = new Map(ordered.map((level) => [level.name, new Set()]));
  for (const [from, to] of edges) if (levelOf.get(from) !== levelOf.get(to)) before.get(levelOf.get(to))?.add(levelOf.get(from));
  const depth = new Map();
  const deep = (name) => {
    if (!depth.has(name)) {
      depth.set(name, 0);
      depth.set(name, Math.max(0, ...[...(before.get(name) ?? [])].map((one) => deep(one) + 1)));
    }
    return depth.get(name);
  };
  const columns = [];
  for (const level of ordered) (columns[deep(level.name)] ??= []).push(level);
  return columns;
}

/** The end of a path: the beginning is what neighbours share. */
const tail = (label) => (label ?? "").split("/").pop();

function shown(level, found, nodes) {
  const items = level.rows.map((row) => {
    const item = h("a.item", { class: row.key === found.key ? "here" : "", href: link(["lineage", row.key]), title: `${row.path ?? row.label ?? ""}\n${row.key}` }, row.step !== undefined ? `step ${row.step}` : tail(row.path ?? row.label) || row.key.slice(0, 12));
    nodes.set(row.key, item);
    return item;
  });
  const whole = level.whole && !items.length ? h("div.item.whole", { class: found.key === null && level.depth === 0 ? "here" : "" }, level.snapshot_rows === 1 ? "its only row" : `all ${count(level.snapshot_rows)} rows`) : null;
  if (whole) nodes.set(level.name, whole);
  else if (items.length) nodes.set(level.name, items[0]);
  const more = level.total > items.length ? h("div.faint", {}, `and ${count(level.total - items.length)} more`) : null;
  return h("div.level", {}, h("h3", {}, h("a", { href: link(["lineage", level.name]) }, level.name)), whole, items, more);
}

function join(area, lines, nodes, edges) {
  const box = area.getBoundingClientRect();
  lines.setAttribute("width", area.scrollWidth);
  lines.setAttribute("height", area.scrollHeight);
  for (const [from, to] of edges) {
    const [a, b] = [nodes.get(from), nodes.get(to)].map((node) => node?.getBoundingClientRect());
    if (!a || !b) continue;
    const [x1, y1, x2, y2] = [a.right - box.left + area.scrollLeft, a.top + a.height / 2 - box.top, b.left - box.left + area.scrollLeft, b.top + b.height / 2 - box.top];
    const bend = Math.max(14, (x2 - x1) * 0.4);
    lines.append(svg("path", { d: `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}` }));
  }
}
