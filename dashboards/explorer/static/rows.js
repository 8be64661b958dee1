// Any dataset as a table, a page at a time.
import { ask, choice, count, figure, h, link, pager, put, say, table, toRow } from "./dom.js";

const SIZE = 50;

export async function view(place, path, query, signal) {
  const state = await ask("/api/state", null, signal);
  const made = state.stages.filter((stage) => stage.rows !== undefined);
  const target = path.join("/") || made[0]?.name;
  if (!target) return put(place, h("h1", {}, "Rows"), say(state.sentence ?? "Nothing has been made yet."));
  const words = query.get("words") ?? "";
  const go = (to, changed) => { location.hash = link(["rows", to], { words, ...changed }); };
  const found = await ask(`/api/rows/${encodeURIComponent(target)}`, { words, offset: Number(query.get("offset") ?? 0), limit: SIZE }, signal);
  const field = h("input", { type: "search", value: words, placeholder: "in the label", "aria-label": "Words in the label" });
  put(place, h("div.row", {}, h("h1", {}, `Rows of ${found.dataset}@${found.version}`), h("span.soft", {}, found.hidden.length ? `not shown: ${found.hidden.join(", ")}` : "")),
    h("div.tools", {}, choice("dataset", made.map((stage) => [stage.name, stage.name]), target, (to) => go(to, { words: "" })),
      found.versions.length > 1 ? choice("version", [...new Set(found.versions)].map((v) => [v, count(v)]), found.version, (v) => go(`${found.dataset}@${v}`, {})) : null,
      h("form", { onsubmit: (event) => { event.preventDefault(); go(target, { words: field.value }); } }, h("label", {}, "words", field)),
      h("a", { href: link(["lineage", `${found.dataset}@${found.version}`]) }, "lineage"), pager(found, SIZE, (offset) => go(target, { offset }))),
    found.rows.length ? table(found.columns.filter((c) => c.name !== "key").map((column) => [column.name, (row) => cell(column, row), /int|double|float/.test(column.type) ? "r" : ""]), found.rows) : say("No row."));
  return null;
}

function cell(column, row) {
  const value = row[column.name];
  if (column.name === "label") return toRow(row.key, value || row.key.slice(0, 12));
  if (value === null || value === undefined) return h("span.faint", {}, "-");
  if (typeof value === "number") return figure(value);
  if (typeof value === "object") return h("code", {}, JSON.stringify(value));
  const text = String(value);
  return /^[0-9a-f]{32,64}$/.test(text) ? h("code", { title: text }, text.slice(0, 12)) : text;
}
