// Packs as strips: length to scale, a colour a kind, a gap between documents; cost beside each.
import { ask, choice, count, facts, figure, h, link, pager, percent, put, table, toRow } from "./dom.js";

const SIZE = 40;

export async function view(place, path, query, signal) {
  if (path[0]) return one(place, path[0], signal);
  const wish = { sort: query.get("sort") ?? "order", order: query.get("order") ?? "" };
  const go = (changed) => { location.hash = link(["packs"], { ...wish, ...changed }); };
  const found = await ask("/api/packs", { ...wish, offset: Number(query.get("offset") ?? 0), limit: SIZE }, signal);
  const kinds = [...new Set(found.rows.flatMap((row) => row.pieces.map((piece) => piece[1])))];
  const mean = found.flops?.mean ?? 0;
  put(place, h("div.row", {}, h("h1", {}, "Packs"), h("span.soft", {}, `${found.dataset}: ${count(found.total)} packs, ${figure(mean)} FLOPs on average, the costliest ${figure(mean ? found.flops.max / mean : 0)} times that`)),
    h("div.tools", {}, choice("in the order of", found.sorts.map((name) => [name, name === "order" ? "training" : name]), wish.sort, (sort) => go({ sort })), choice("", [["", "lowest first"], ["down", "highest first"]], wish.order, (order) => go({ order })), legend(kinds), pager(found, SIZE, (offset) => go({ offset }))),
    table([
      ["pack", (row) => h("a", { href: link(["packs", row.key]) }, row.label)],
      ["what stands where, to scale", (row) => strip(row, found.longest)],
      ["tokens", (row) => count(row.num_tokens), "r"], ["text", (row) => count(row.num_text_tokens), "r"], ["vision", (row) => count(row.num_vision_tokens), "r"], ["documents", (row) => count(row.num_documents), "r"],
      ["FLOPs", (row) => figure(row.flops), "r"], ["to the mean", (row) => percent(row.flops, mean), "r"]], found.rows, { class: "packs" }));
  for (const cell of place.querySelectorAll(".packs td:nth-child(2)")) cell.classList.add("strips");
}

const legend = (kinds) => h("span.row", {}, kinds.map((kind) => h("span.key", {}, h("i", { class: `k-${kind}` }), kind)));

function strip(row, longest, tall) {
  const all = row.pieces.reduce((sum, piece) => sum + piece[0], 0);
  const said = `${row.label}: ${row.num_documents} documents, ${count(all)} tokens`;
  const pieces = row.pieces.map(([length, kind, document, note], i) => h("i", { class: `k-${kind} ${row.pieces[i + 1]?.[2] !== document ? "last" : ""}`, css: { width: `${(100 * length) / all}%` }, title: `${kind}, ${count(length)} tokens${note ? `, ${note}` : ""}, document ${document}` }));
  return h("div.strip", { class: tall ? "tall" : "", role: "img", "aria-label": said, css: { width: `${(100 * all) / (longest || all)}%` } }, pieces);
}

async function one(place, key, signal) {
  const pack = await ask(`/api/packs/${encodeURIComponent(key)}`, null, signal);
  const kinds = [...new Set(pack.pieces.map((piece) => piece[1]))];
  const documents = [];
  for (const [length, kind, document, note] of pack.pieces) {
    if (documents.at(-1)?.document !== document) documents.push({ document, tokens: 0, parts: [] });
    documents.at(-1).tokens += length;
    documents.at(-1).parts.push(`${kind} ${count(length)}${note ? ` (${note})` : ""}`);
  }
  put(place, h("p", {}, h("a", { href: "#/packs" }, "Packs"), h("span.faint", {}, " / "), h("code", {}, key)), h("h1", {}, pack.label), h("div.tools", {}, legend(kinds)), strip(pack, null, true),
    h("div.split", { css: { "margin-top": "16px" } },
      h("div", {}, h("h2", {}, "Documents"), table([["", (d) => d.document, "r"], ["tokens", (d) => count(d.tokens), "r"], ["pieces", (d) => d.parts.join(", ")]], documents)),
      h("div", {}, h("section.card", {}, facts(["order", "phase", "num_tokens", "num_places", "num_text_tokens", "num_vision_tokens", "num_pictures", "loss_weight", "flops"].map((name) => [name, pack[name] === undefined || pack[name] === null ? null : figure(pack[name])]))),
        h("p", {}, h("a", { href: link(["lineage", key]) }, "Lineage of this pack")))),
    h("h2", {}, `Made of ${count(pack.num_members)} rows`), table([["dataset", (m) => m.dataset], ["row", (m) => toRow(m.key, m.label)], ["text", (m) => m.text ?? ""]], pack.members));
}
