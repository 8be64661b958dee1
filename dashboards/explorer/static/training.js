// Trainings: curves, also while they go on; checkpoints and all that each was made of; tokenizers with their pictures.
import { ask, count, facts, figure, h, link, part, put, say, seconds, short, table, when } from "./dom.js";
import { COLOURS, lineChart } from "./chart.js";

const BESIDE = ["lr", "grad_norm", "tokens_per_s", "tflops_per_rank", "mfu", "hfu", "step_s", "memory_gib", "imbalance", "stalled_share"];

export async function view(place, path, _query, signal) {
  if (path.length === 2) return one(place, path[0], path[1], signal);
  let live = await overview(place, signal);
  let known = "";
  return async (state) => {
    const now = JSON.stringify(state.stages.map((stage) => [stage.name, stage.version, stage.state]));
    if (known && known !== now) live = await overview(place, signal);
    else await live?.();
    known = now;
  };
}

/** All trainings, and the one that one would want to see first: it gives what keeps that one fresh. */
async function overview(place, signal) {
  const found = (await ask("/api/trainings", null, signal)).trainings;
  const chosen = found.find((t) => t.state === "going on") ?? found.find((t) => t.dataset === "model" && t.has_curve) ?? found.find((t) => t.has_curve);
  const below = h("div", {});
  put(place, h("h1", {}, "Training"), found.length ? list(found) : say("Nothing has been trained yet: `plait run` trains tokenizers and a model."), below);
  if (!chosen) return null;
  const page = h("div", {});
  below.append(h("h2", {}, `${chosen.state === "going on" ? "Going on" : "The last one"}: ${chosen.dataset} ${short(chosen.key)}`), page);
  return one(page, chosen.dataset, chosen.key, signal, true);
}

const list = (found) => table([
  ["training", (t) => h("a", { href: link(["training", t.dataset, t.key]) }, `${t.dataset} ${short(t.key)}`)], ["state", (t) => h("span.pill", { class: t.state === "going on" ? "going" : t.state }, h("span.dot", {}), t.state)],
  ["begun", (t) => when(t.at)], ["took", (t) => seconds(t.seconds), "r"], ["steps", (t) => count(t.steps), "r"], ["measured", (t) => Object.entries(t.metrics).slice(0, 4).map(([n, v]) => `${n} ${figure(v)}`).join(", ")], ["", (t) => (t.stands ? "stands" : "")]], found);

async function one(place, dataset, key, signal, isBelow) {
  const address = `/api/trainings/${encodeURIComponent(dataset)}/${encodeURIComponent(key)}`;
  const draw = (found) => put(place, ...[isBelow ? null : h("p", {}, h("a", { href: "#/training" }, "Training"), h("span.faint", {}, " / "), `${dataset} ${short(key)}`), isBelow ? null : h("h1", {}, `${dataset} ${short(key)}`),
    h("p.soft", {}, `${found.state}, begun ${when(found.at)}${found.seconds ? `, took ${seconds(found.seconds)}` : ""}${found.curve.num_steps ? `, ${count(found.curve.num_steps)} points up to step ${count(found.curve.steps.at(-1))}${found.steps ? ` of ${count(found.steps)}` : ""}` : ""}.`),
    charts(found.curve), h("h2", {}, "Checkpoints"), checkpoints(found), h("h2", {}, "Made of"), madeOf(found)].filter(Boolean));
  let found = await ask(address, null, signal);
  draw(found);
  if (found.state !== "going on") return null;
  return async () => {
    const now = await ask(address, null, signal);
    if (now.curve.num_steps !== found.curve.num_steps || now.state !== found.state || now.checkpoints.length !== found.checkpoints.length) draw(now);
    found = now;
  };
}

/** Losses together, one line a modality; then what else was measured. */
function charts(curve) {
  if (!curve.num_steps) return say("Nothing has been measured yet: the first steps show here within seconds.");
  const names = Object.keys(curve.metrics);
  const series = (name, i, title) => ({ name: title ?? name, colour: COLOURS[i % COLOURS.length], points: curve.steps.map((step, at) => [step, curve.metrics[name][at] ?? NaN]) });
  const losses = names.filter((name) => name === "loss" || name.startsWith("loss/"));
  const rates = names.filter((name) => name.startsWith("tokens_per_s/"));
  const made = [];
  if (losses.length) made.push(withKey({ title: "loss by modality", big: losses.length > 1, series: losses.map((name, i) => series(name, i, name.replace("loss/", ""))) }));
  if (rates.length) made.push(withKey({ title: "tokens a second by modality", series: rates.map((name, i) => series(name, i + 1, name.replace("tokens_per_s/", ""))) }));
  const others = names.filter((name) => !losses.includes(name) && !rates.includes(name) && name !== "tokens_seen");
  others.sort((a, b) => (BESIDE.indexOf(a) + 99) % 99 - ((BESIDE.indexOf(b) + 99) % 99));
  const [first, rest] = [others.slice(0, 7), others.slice(7)];
  made.push(...first.map((name) => lineChart({ title: name, series: [series(name, 0)] })));
  return [h("div.charts", {}, made), rest.length ? h("details", { css: { "margin-top": "10px" } }, h("summary", {}, `${rest.length} more`), h("div.charts", {}, rest.map((name) => lineChart({ title: name, series: [series(name, 0)] })))) : null].filter(Boolean).reduce((all, el) => (all.append(el), all), h("div", {}));
}

function withKey(wanted) {
  const made = lineChart(wanted);
  if (wanted.series.length > 1) made.append(h("figcaption.row", {}, wanted.series.map((one) => h("span.key", {}, h("i", { css: { background: one.colour } }), one.name))));
  return made;
}

function checkpoints(found) {
  if (!found.checkpoints.length) return h("p.soft", {}, "None yet.");
  return table([["step", (c) => count(c.step), "r"], ["", (c) => Object.entries(c.facts).filter(([name]) => name !== "step").slice(0, 5).map(([n, v]) => `${n} ${figure(v)}`).join(", ")], ["manifest", (c) => h("code", {}, c.manifest)], ["files", (c) => h("code", { title: c.files_sha256 }, short(c.files_sha256))], ["", (c) => (c.row ? h("a", { href: link(["lineage", c.row]) }, "lineage") : h("span.faint", {}, "not published"))]], found.checkpoints);
}

function madeOf(found) {
  const settings = (values) => h("details", {}, h("summary", {}, `${Object.keys(values).length} settings`), h("pre", {}, JSON.stringify(values, null, 1)));
  const run = found.run ? facts([["run", h("a", { href: link(["runs", found.run.run_id]) }, found.run.run_id)], ["command", found.run.command ? h("code", {}, `plait ${found.run.command.join(" ")}`) : null], ["stage", `${found.stage.stage ?? "?"}, revision ${found.stage.revision ?? "?"}`], ["code", h("code", {}, short(found.code))], ["key", h("code", {}, found.key)]]) : null;
  return h("div", {}, h("section.card", {}, run, settings(found.settings)),
    table([["dataset", (d) => h("a", { href: link(["lineage", `${d.name}@${d.version}`]) }, `${d.name}@${d.version}`)], ["as", (d) => d.role], ["for", (d) => [...new Set(d.readers)].join(", ")], ["rows", (d) => count(d.rows), "r"], ["digest", (d) => h("code", { title: d.digest }, d.digest.slice(0, 12))], ["made", (d) => when(d.at)], ["code", (d) => h("code", {}, short(d.code))], ["", (d) => settings(d.settings)]], found.made_of));
}

export async function tokenizers(place, _path, _query, signal) {
  const found = (await ask("/api/tokenizers", null, signal)).tokenizers;
  put(place, h("h1", {}, "Tokenizers"), h("p.soft", {}, found.length ? "Original above, reconstruction below, clip by clip." : ""), ...(found.length ? found.map((one) => tokenizer(one, signal)) : [say("No tokenizer has been trained yet: `plait run --to tokenizer` trains one.")]));
  return null;
}

function tokenizer(one, signal) {
  const curve = h("div", {});
  const pictures = one.pictures.map((name) => h("figure", { css: { margin: "10px 0" } }, h("img.recon", { src: `/picture/${one.dataset}/${one.key}/${name}`, alt: `${name} of ${one.dataset} ${short(one.key)}`, loading: "lazy" })));
  const open = () => part(curve, async () => charts((await ask(`/api/trainings/${one.dataset}/${one.key}`, null, signal)).curve));
  const best = one.rows.at(-1) ?? {};
  return h("section.card", { css: { "margin-bottom": "14px" } },
    h("div.row", {}, h("strong", {}, `${one.dataset} ${short(one.key)}`), h("span.pill", { class: one.state === "going on" ? "going" : one.state }, h("span.dot", {}), one.state), one.stands ? h("span.soft", {}, "stands") : h("span.faint", {}, "older"), h("span.soft", {}, when(one.at)), h("a", { href: link(["training", one.dataset, one.key]) }, "training and lineage")),
    h("div.row", { css: { margin: "8px 0" } }, ["psnr", "ssim", "perplexity", "usage", "codebook_size", "kind", "size", "step"].filter((n) => best[n] !== undefined && best[n] !== null).map((name) => h("span", {}, h("span.soft", {}, `${name} `), h("strong.num", {}, figure(best[name]))))),
    pictures, one.has_curve && one.dataset === "tokenizer" ? h("details", { ontoggle: (event) => { if (event.target.open && !curve.hasChildNodes()) open(); } }, h("summary", {}, "Curves"), curve) : null);
}
