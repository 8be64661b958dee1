// Clips: a grid sorted and filtered by what was measured, and one clip with all that is known of it.
import { ask, choice, count, facts, figure, h, link, pager, part, percent, put, say, table, when } from "./dom.js";
import { histogram } from "./chart.js";
import { levels } from "./lineage.js";

const SIZE = 48;

export async function view(place, path, query, signal) {
  if (path[0]) return one(place, path[0], signal);
  const about = await ask("/api/clips/about", null, signal);
  const wish = Object.fromEntries(["sort", "order", "fate", "kind", "words"].map((name) => [name, query.get(name) ?? ""]));
  wish.range = query.getAll("range");
  const offset = Number(query.get("offset") ?? 0);
  const go = (changed) => { location.hash = link(["clips"], { ...wish, offset: "", ...changed }); };
  const shown = wish.sort || about.scores.find((name) => about.thresholds[name]) || about.scores[0];
  const spread = h("div", {});
  const grid = h("div", {}, h("p.faint", {}, "Reading ..."));
  put(place, h("div.row", {}, h("h1", {}, "Clips"), h("span.soft", {}, `${about.dataset}, scores of ${about.judge ?? "none"}${about.judging ? `, judged before ${about.judging}` : ""}`)),
    tools(about, wish, go), h("div.split", {}, grid, h("aside.card", { "aria-label": "How scores are spread" }, spread, clauses(about))));
  part(spread, async () => spreadOf(await ask("/api/clips/histogram", { score: shown }, signal), about, shown, wish, go));
  await part(grid, async () => {
    const found = await ask("/api/clips", { ...wish, offset, limit: SIZE }, signal);
    const head = h("div.row", { css: { "margin-bottom": "8px" } }, h("span.soft", {}, found.total === found.of ? `${count(found.of)} clips` : `${count(found.total)} of ${count(found.of)} clips (${percent(found.total, found.of)})`), pager(found, SIZE, (at) => go({ offset: at })));
    return [head, found.rows.length ? h("div.thumbs", {}, found.rows.map((row) => thumb(row, wish.sort || shown))) : say("No clip passes all of these filters: take one away.")];
  });
}

function tools(about, wish, go) {
  const words = h("input", { type: "search", value: wish.words, placeholder: "in the caption", "aria-label": "Words in the caption", size: 18 });
  const form = h("form", { onsubmit: (event) => { event.preventDefault(); go({ words: words.value }); } }, h("label", {}, "words", words));
  const fates = [["", "any"], ["left out", "left out, any reason"], ...about.fates.map((f) => [f.reason, `${f.reason} (${count(f.clips)})`])];
  return h("div.tools", {},
    choice("sort by", [["", "place in the dataset"], ...about.scores.map((name) => [name, name])], wish.sort, (sort) => go({ sort })),
    choice("", [["", "lowest first"], ["down", "highest first"]], wish.order, (order) => go({ order })),
    choice("fate", fates, wish.fate, (fate) => go({ fate })),
    choice("kind", [["", "any"], ["video", `films (${count(about.num_videos)})`], ["image", `images (${count(about.total - about.num_videos)})`]], wish.kind, (kind) => go({ kind })),
    form,
    wish.range.map((range) => h("button", { title: "Take this filter away", onclick: () => go({ range: wish.range.filter((one) => one !== range) }) }, `${range.split(":")[0]}: ${range.split(":")[1] || "-\u221e"} to ${range.split(":")[2] || "\u221e"}  \u00d7`)));
}

function spreadOf(found, about, name, wish, go) {
  const lines = about.thresholds[name] ?? [];
  const low = h("input", { type: "number", step: "any", placeholder: "from", "aria-label": `${name} from` });
  const high = h("input", { type: "number", step: "any", placeholder: "to", "aria-label": `${name} to` });
  const form = h("form.row", { onsubmit: (event) => { event.preventDefault(); if (low.value || high.value) go({ range: [...wish.range.filter((r) => r.split(":")[0] !== name), `${name}:${low.value}:${high.value}`] }); } }, low, high, h("button", {}, "Filter"));
  return [h("div.row", {}, h("strong", {}, name), h("span.soft", {}, found.nulls ? `${count(found.nulls)} unknown` : ""), h("span.grow", {}), h("span.key", {}, h("i", { css: { background: "var(--s0)" } }), "kept")),
    found.bins.length ? histogram(found, lines) : h("p.faint", {}, "nothing measured"),
    lines.length ? h("p.faint", {}, `Red: ${lines.map(figure).join(", ")}, where the select cuts.`) : null, form];
}

function clauses(about) {
  const found = Object.entries(about.clauses);
  return [h("h2", {}, "Select"), found.length ? facts(found.map(([name, sql]) => [name, h("code", {}, sql)])) : h("p.soft", {}, "No stage stands behind a select."),
    h("h2", {}, "What became of them"), table([["fate", (f) => h("a", { href: link(["clips"], { fate: f.reason }) }, f.reason)], ["clips", (f) => count(f.clips), "r"], ["", (f) => percent(f.clips, about.total), "r"]], about.fates.slice(0, 14))];
}

function thumb(row, name) {
  const value = row.scores[name] ?? row[name];
  const film = row.source_kind === "video";
  return h("a.thumb", { href: link(["clips", row.key]) },
    h("div.still", {}, h("img", { src: `/frame/clips/${row.key}?side=160`, alt: row.caption ?? row.label, loading: "lazy" }), film ? h("span.badge", {}, `${(row.num_frames / (row.fps || 1)).toFixed(1)} s`) : null),
    h("div.about", {}, h("div.two", { title: row.caption }, row.caption ?? h("span.faint", {}, "no caption")),
      h("div.num", {}, name ? `${name} ${figure(value)}` : ""), h("div", { class: row.fate === "kept" ? "good" : "warn", title: row.fate }, row.fate), h("div.faint", { title: row.label }, row.label)));
}

async function one(place, key, signal) {
  const clip = await ask(`/api/clips/${encodeURIComponent(key)}`, null, signal);
  const { row, scores } = clip;
  const film = row.source_kind === "video";
  const media = `/media/clips/${key}`;
  const player = film ? h("video", { src: media, controls: true, loop: true, muted: true, autoplay: true, "aria-label": row.label }) : h("img", { src: media, alt: row.label });
  const number = Math.min(8, row.num_frames ?? 1);
  const frames = film ? h("div.frames", {}, Array.from({ length: number }, (_, i) => h("img", { src: `/frame/clips/${key}?number=${i}&of=${number}&side=160`, alt: `frame ${i + 1} of ${number}`, loading: "lazy" }))) : null;
  const tree = h("div", {}, h("p.faint", {}, "Reading ..."));
  put(place, 
    h("p", {}, h("a", { href: "#/clips" }, "Clips"), h("span.faint", {}, " / "), h("code", {}, key)),
    h("h1", {}, row.label),
    h("div.split", {},
      h("div", {}, h("div.player", {}, player), frames,
        h("h2", {}, "Captions"), clip.captions.length ? clip.captions.map((said) => h("p", {}, said.text, " ", h("span.faint", {}, said.captioner))) : h("p.soft", {}, "None."),
        h("h2", {}, "What became of it"), table([["stage", (f) => `${f.stage}@${f.version}`], ["", (f) => h("span", { class: { kept: "good", quarantined: "bad", read: "soft" }[f.state] ?? "warn" }, f.state)], ["why", (f) => f.reason ?? ""], ["rows", (f) => f.rows ? count(f.rows) : "", "r"]], clip.fates)),
      h("div", {}, h("section.card", {}, h("h2", { css: { "margin-top": 0 } }, "Scores"), facts(Object.entries(scores).map(([name, value]) => [name, value === null ? h("span.faint", {}, "not asked or unknown") : figure(value)]))),
        clip.clauses.length ? [h("h2", {}, "Select"), table([["clause", (c) => c.name], ["over the scores", (c) => h("code", {}, c.sql)], ["", (c) => c.passes === null || c.passes === undefined ? "no score" : h("span", { class: c.passes ? "good" : "bad" }, c.passes ? "passes" : "fails")]], clip.clauses)] : null,
        h("h2", {}, "Row"), facts(Object.entries(row).filter(([name]) => name !== "label").map(([name, value]) => [name, typeof value === "string" && /T\d\d:/.test(value) ? when(value) : figure(value)])))),
    h("h2", {}, "From the raw file to checkpoints"), tree);
  await part(tree, async () => levels(await ask(`/api/lineage/${key}`, { near: "clips" }, signal)));
}
