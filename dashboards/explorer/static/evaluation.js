// Scores over steps with intervals, gates and champions; answers with their verdicts.
import { ask, choice, count, facts, figure, h, link, pager, part, put, say, short, table, toRow } from "./dom.js";
import { COLOURS, lineChart } from "./chart.js";

const SIZE = 24, SAMPLES = 30;
const FILL = { pass: "var(--good)", fail: "var(--bad)", inconclusive: "var(--warn)" };

export async function view(place, _path, query, signal) {
  const found = await ask("/api/scores", null, signal);
  const made = [h("div.row", {}, h("h1", {}, "Evaluation"), found.dataset ? h("span.soft", {}, `${found.dataset}, ${count(found.total)} scores`) : null)];
  if (found.rows.length) made.push(...overSteps(found, query));
  else made.push(say("No checkpoint has been scored by `plait evaluate` yet; what the pipeline itself measured is below."));
  const below = h("div", {});
  if (Object.keys(found.metrics).length) made.push(h("h2", {}, `Metrics of ${found.evals}`), h("div.card", {}, facts(Object.entries(found.metrics).map(([n, v]) => [n, figure(v)]))));
  if (found.evals) made.push(h("h2", {}, "Samples"), below);
  put(place, ...made);
  if (found.evals) samples(below, { suite: "", sort: "", order: "", offset: 0 }, signal);
}

function overSteps(found, query) {
  const suites = [...new Set(found.rows.map((row) => row.suite))].sort();
  const suite = query.get("suite") ?? "";
  const rows = found.rows.filter((row) => !suite || row.suite === suite);
  const trainings = [...new Set(found.rows.map((row) => row.training))];
  const aside = (name) => /_chance$/.test(name); // what guessing would score: after the scores themselves
  const names = [...new Set(rows.map((row) => row.score))].sort((a, b) => aside(a) - aside(b) || a.localeCompare(b));
  const gated = rows.filter((row) => row.outcome).reverse();
  const champion = found.rows.filter((row) => row.champion).at(-1);
  return [
    h("div.tools", {}, suites.length > 1 ? choice("suite", [["", "all"], ...suites.map((s) => [s, s])], suite, (value) => { location.hash = link(["evaluation"], { suite: value }); }) : h("span.soft", {}, suites[0]),
      trainings.map((one, i) => h("span.key", {}, h("i", { css: { background: COLOURS[i % 8] } }), `training ${short(one)}`)), h("span.soft", {}, "Whiskers: 95 % of draws of the questions. Ring: the champion then."), h("a", { href: link(["answers"]) }, "Browse answers")),
    champion ? h("p", {}, "Champion: ", h("strong", {}, `${short(champion.training)} step ${champion.step}`)) : h("p.soft", {}, "There is no champion: none is chosen until gates pass."),
    h("div.charts", {}, names.map((name) => lineChart({ title: name, dots: true, series: trainings.map((one, i) => ({ name: short(one), colour: COLOURS[i % 8], points: rows.filter((row) => row.score === name && row.training === one).sort((a, b) => a.step - b.step).map((row) => [row.step, row.value ?? NaN, { low: row.low, high: row.high, ring: row.champion, fill: FILL[row.outcome] }]) })).filter((one) => one.points.length) }))),
    h("h2", {}, "Gates"), gated.length ? table([["checkpoint", (r) => `${short(r.training)} step ${r.step}`], ["score", (r) => r.score], ["outcome", (r) => h("span", { css: { color: FILL[r.outcome] } }, r.outcome)], ["why", (r) => r.reason]], gated) : h("p.soft", {}, "None are set: evaluation.gates holds them.")];
}

function samples(place, wish, signal) {
  const go = (changed) => samples(place, { ...wish, offset: 0, ...changed }, signal);
  return part(place, async () => {
    const found = await ask("/api/samples", { ...wish, limit: SAMPLES }, signal);
    return [h("div.tools", {}, choice("suite", [["", "all"], ...found.choices.suite.map((s) => [s, s])], wish.suite, (suite) => go({ suite })), choice("sort by", [["", "place"], ["score", "score"], ["step", "step"]], wish.sort, (sort) => go({ sort })), choice("", [["", "lowest first"], ["down", "highest first"]], wish.order, (order) => go({ order })), pager(found, SAMPLES, (offset) => go({ offset }))),
      table([["suite", (r) => r.suite], ["step", (r) => count(r.step), "r"], ["prompt", (r) => toRow(r.key, r.prompt)], ["output", (r) => r.output], ["judge", (r) => r.judge], ["score", (r) => figure(r.score), "r"]], found.rows)];
  });
}

export async function answers(place, path, query, signal) {
  if (path[0]) return answer(place, path[0], signal);
  const wish = Object.fromEntries(["suite", "task", "training", "step", "verdict"].map((name) => [name, query.get(name) ?? ""]));
  const go = (changed) => { location.hash = link(["answers"], { ...wish, ...changed }); };
  const found = await ask("/api/answers", { ...wish, offset: Number(query.get("offset") ?? 0), limit: SIZE }, signal);
  const any = (name, values, show = (v) => v) => choice(name, [["", "all"], ...values.map((v) => [v, show(v)])], wish[name], (value) => go({ [name]: value }));
  put(place, h("h1", {}, "Answers"),
    h("div.tools", {}, any("suite", found.choices.suite), any("task", found.choices.task), any("training", found.choices.training, short), any("step", found.steps, count), choice("verdict", [["", "all"], ["right", "right"], ["wrong", "wrong"]], wish.verdict, (verdict) => go({ verdict })), pager(found, SIZE, (offset) => go({ offset }))),
    found.rows.length ? h("div.thumbs", {}, found.rows.map(card)) : say(Object.values(wish).some((v) => v !== "") ? "No answer is like that: choose less." : "No suite has asked for pictures or texts yet: plait evaluate does."));
}

function card(row) {
  const shows = row.asks !== "text" && !row.text;
  return h("a.thumb", { href: link(["answers", row.key]) },
    h("div.still", {}, shows ? h("img.pixel", { src: `/frame/generations/${row.key}?side=128`, alt: row.prompt, loading: "lazy" }) : h("div.about", { css: { "white-space": "normal" } }, row.text || "no words")),
    h("div.about", {}, h("div.two", { title: row.prompt }, row.prompt), h("div", {}, mark(row.verdict), h("span.faint", {}, ` ${row.task || row.suite}, step ${row.step}`))));
}

const mark = (verdict) => verdict ? h("strong", { class: verdict.score >= 1 ? "good" : verdict.score > 0 ? "warn" : "bad" }, verdict.score === null ? "not judged" : figure(verdict.score)) : h("span.faint", {}, "not judged");

async function answer(place, key, signal) {
  const row = await ask(`/api/answers/${encodeURIComponent(key)}`, null, signal);
  const parts = row.verdict?.parts ? pretty(row.verdict.parts) : null;
  put(place, h("p", {}, h("a", { href: "#/answers" }, "Answers"), h("span.faint", {}, " / "), h("code", {}, key)), h("h1", {}, row.prompt),
    h("div.split", {}, h("div", {}, row.text ? h("p.say", {}, row.text) : h("div.player", {}, h("img", { src: `/frame/generations/${key}?side=512`, alt: row.prompt })), parts ? [h("h2", {}, "What the judge saw"), h("pre", {}, parts)] : null),
      h("section.card", {}, facts([["verdict", mark(row.verdict)], ["judge", row.verdict?.judge], ["suite", row.suite], ["task", row.task], ["step", count(row.step)], ["training", h("code", {}, short(row.training))], ["asks", row.asks], ["answer number", String(row.index)], ["about", row.about ? h("pre", {}, pretty(row.about)) : null]]), h("p", {}, h("a", { href: link(["lineage", key]) }, "Lineage of this answer")))));
}

/** JSON with a line for each name, and arrays of numbers in one. */
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 1).replace(/\[\s+([-\d.,\s]+?)\s+\]/g, (_, numbers) => `[${numbers.split(/,\s*/).join(", ")}]`);
  } catch {
    return text;
  }
}
