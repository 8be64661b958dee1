// The graph: inputs to the left, a box a stage, and the funnel below. Live.
import { ask, count, facts, h, link, percent, put, say, seconds, short, svg, table, when } from "./dom.js";

const TALL = 74, GAP_Y = 14, MIN_COLUMN = 134, MAX_COLUMN = 208, GAP_X = 24;
const PARTS = ["kept", "empty", "filtered", "quarantined"];

export async function view(place, _path, query, signal) {
  const chosen = query.get("stage");
  const draw = (state) => {
    const held = document.activeElement?.dataset?.stage;
    const across = place.querySelector(".graph")?.scrollLeft ?? 0;
    put(place, ...whole(state, chosen, place.clientWidth));
    place.querySelector(".graph")?.scrollTo({ left: across });
    if (held) place.querySelector(`[data-stage="${CSS.escape(held)}"]`)?.focus();
  };
  let drawn = "";
  const live = (state) => {
    const text = JSON.stringify(state);
    if (text !== drawn) draw(state);
    drawn = text;
  };
  live(await ask("/api/state", null, signal));
  return live;
}

function whole(state, chosen, width) {
  const last = state.last;
  const head = h("div.row", {}, h("h1", {}, "Graph"), h("span.grow", {}),
    PARTS.map((part) => h("span.key", {}, h("i", { class: `swatch ${part}`, css: { background: { kept: "var(--good)", filtered: "var(--codes)", quarantined: "var(--bad)", empty: "var(--marks)" }[part] } }), part === "kept" ? "gave rows" : part)));
  const said = [];
  if (state.sentence) said.push(say(state.sentence));
  for (const run of state.going) said.push(h("p", { class: "soft" }, h("span.pill.going", {}, h("span.dot", {}), "going on"), " ", h("a", { href: link(["runs", run.run_id]) }, run.run_id), ` on ${run.host} since ${when(run.at)}: `, h("code", {}, `plait ${run.command.join(" ")}`)));
  if (!state.going.length && last) said.push(h("p.soft", {}, "Last run ", h("a", { href: link(["runs", last.run_id]) }, last.run_id), ` ended ${when(last.at)}, `, h("span", { class: last.ok ? "good" : "bad" }, last.ok ? "well" : "not well"), last.error ? `: ${last.error}` : "", "."));
  if (!state.stages.length) return [head, ...said];
  const one = state.stages.find((stage) => stage.name === chosen);
  return [head, ...said, boxes(state.stages, chosen, width), one ? about(one) : null, h("h2", {}, "Funnel"), funnel(state.stages)].filter(Boolean);
}

/** Where each stage stands: columns by the longest way from an input, pipelines below one another. */
export function placed(stages) {
  const by = new Map(stages.map((stage) => [stage.name, stage]));
  const depth = new Map();
  const deep = (name) => {
    if (!depth.has(name)) {
      depth.set(name, 0);
      depth.set(name, Math.max(0, ...by.get(name).inputs.map((given) => deep(given.name) + 1)));
    }
    return depth.get(name);
  };
  const group = new Map(stages.map((stage) => [stage.name, stage.name]));
  const root = (name) => (group.get(name) === name ? name : root(group.get(name)));
  for (const stage of stages) { deep(stage.name); for (const given of stage.inputs) group.set(root(given.name), root(stage.name)); }
  const groups = new Map();
  for (const stage of stages) groups.set(root(stage.name), [...(groups.get(root(stage.name)) ?? []), stage]);
  const found = new Map();
  const ordered = [];
  let top = 0;
  for (const members of [...groups.values()].sort((a, b) => b.length - a.length)) {
    const columns = [];
    ordered.push(...members);
    for (const stage of members) (columns[depth.get(stage.name)] ??= []).push(stage.name);
    const tallest = Math.max(...columns.map((names) => names?.length ?? 0));
    columns.forEach((names, column) => names.forEach((name, i) => found.set(name, { column, y: top + i + (tallest - names.length) / 2 })));
    top += tallest + 0.35;
  }
  return { found, columns: Math.max(...depth.values()) + 1, tall: top - 0.35, ordered };
}

function boxes(stages, chosen, width) {
  const { found, columns, tall } = placed(stages);
  const wide = Math.max(MIN_COLUMN, Math.min(MAX_COLUMN, (width - 8 + GAP_X) / columns));
  const at = (name) => ({ x: 2 + found.get(name).column * wide, y: 2 + found.get(name).y * (TALL + GAP_Y) });
  const lines = svg("svg", { width: columns * wide, height: tall * (TALL + GAP_Y), "aria-hidden": "true" });
  for (const stage of stages) for (const given of stage.inputs) {
    const from = at(given.name), to = at(stage.name);
    const [x1, y1, x2, y2] = [from.x + wide - GAP_X, from.y + TALL / 2, to.x, to.y + TALL / 2];
    const bend = Math.max(GAP_X * 0.7, (x2 - x1) * 0.35);
    lines.append(svg("path", { class: `${given.role} ${found.get(stage.name).column - found.get(given.name).column > 1 ? "long" : ""} ${chosen && (given.name === chosen || stage.name === chosen) ? "lit" : ""}`, d: `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}` }));
  }
  const made = stages.map((stage) => box(stage, at(stage.name), wide - GAP_X, stage.name === chosen));
  return h("div.graph", { css: { height: `${tall * (TALL + GAP_Y) + 8}px` }, role: "group", "aria-label": "Stages, inputs to the left" }, lines, made);
}

function box(stage, { x, y }, width, isChosen) {
  const unmade = stage.rows === undefined;
  const states = { class: `${stage.state.replace(" ", "-")} ${unmade ? "unmade" : ""}`, href: link([], { stage: isChosen ? "" : stage.name }), "data-stage": stage.name, "aria-current": isChosen ? "true" : null, title: `${stage.name}: ${stage.state}`, css: { left: `${x}px`, top: `${y}px`, width: `${width}px`, height: `${TALL}px` } };
  const body = [h("div.name", { class: stage.name.length > 12 ? "long" : "" }, h("span.dot", {}), h("span", {}, stage.name))];
  if (stage.progress) body.push(working(stage.progress));
  if (!unmade) body.push(h("div.count", {}, h("span", {}, count(stage.rows)), h("span.soft", {}, left(stage))));
  if (!unmade && !stage.progress) body.push(bar(stage));
  body.push(h("div.small", {}, [stage.state === "made" ? "" : stage.state, unmade || stage.progress ? "" : seconds(stage.seconds)].filter(Boolean).join(" \u00b7 ")));
  return h("a.stage", states, body);
}

function left(stage) {
  const lost = stage.filtered + stage.quarantined + stage.empty;
  return lost ? `\u2212${count(lost)}` : "";
}

export function bar(stage, wide) {
  const kept = Math.max(0, stage.rows_in - stage.empty - stage.filtered - stage.quarantined);
  const numbers = { kept: stage.rows_in ? kept : stage.rows, empty: stage.empty, filtered: stage.filtered, quarantined: stage.quarantined };
  const all = Object.values(numbers).reduce((a, b) => a + b, 0) || 1;
  const said = PARTS.filter((part) => numbers[part]).map((part) => `${count(numbers[part])} ${part === "kept" ? "gave rows" : part}`).join(", ");
  return h("div.bar", { class: wide ? "wide" : "", title: said, role: "img", "aria-label": said }, PARTS.map((part) => numbers[part] ? h(`i.${part}`, { css: { width: `max(${(100 * numbers[part]) / all}%, 2px)` } }) : null));
}

function working(progress) {
  const said = progress.total ? `${count(progress.done)} of ${count(progress.total)} ${progress.unit}` : `${count(progress.done)} ${progress.unit}`;
  const gone = (Date.now() - Date.parse(progress.since)) / 1000;
  const rest = progress.total && progress.done ? `, ${seconds((gone * (progress.total - progress.done)) / progress.done)} left` : "";
  return [h("div.bar", { title: said }, h("i.done", { css: { width: `${progress.total ? (100 * progress.done) / progress.total : 0}%` } })), h("div.small", { title: said + rest }, said)];
}

function about(stage) {
  const reasons = Object.entries(stage.reasons ?? {}).sort((a, b) => b[1] - a[1]);
  const most = Math.max(1, ...reasons.map(([, units]) => units));
  const ways = stage.rows === undefined ? [] : [
    h("a", { href: link(["rows", stage.name]) }, "rows"), h("a", { href: link(["lineage", `${stage.name}@${stage.version}`]) }, "lineage"),
    stage.name === "clips" ? h("a", { href: link(["clips"]) }, "browse clips") : null,
    stage.quarantined ? h("a", { href: link(["quarantine"]) }, "quarantine") : null, toRunOf(stage)];
  return h("section.card", { "aria-label": stage.name },
    h("div.row", {}, h("strong", {}, stage.name), h("span.pill", { class: stage.state }, h("span.dot", {}), stage.state), ways),
    stage.error ? say(stage.error, true) : null,
    h("div.split", { css: { "margin-top": "10px" } },
      h("div", {}, reasons.length ? table([["why units gave no row", ([reason]) => reason], ["units", ([, units]) => count(units), "r"], ["", ([, units]) => h("div.bar.wide", {}, h("i.filtered", { css: { width: `${(100 * units) / most}%` } }))]], reasons) : h("p.soft", {}, "Every unit gave rows.")),
      facts([["version", stage.version], ["made", when(stage.at)], ["why", stage.why], ["units in", count(stage.rows_in)], ["rows", count(stage.rows)], ["computed", count(stage.computed)], ["kept as they were", count(stage.kept)], ["took", seconds(stage.seconds)], ["reads", stage.inputs.map((i) => i.name + (i.role === "rows" ? "" : ` (${i.role})`)).join(", ")], ["key", stage.key && h("code", {}, short(stage.key))],
        ...Object.entries(stage.metrics ?? {}).slice(0, 10).map(([n, v]) => [n, String(Number(v.toPrecision?.(4) ?? v))])])));
}

const toRunOf = (stage) => h("a", { href: link(["runs", stage.run_id]) }, "run");

function funnel(stages) {
  const made = placed(stages).ordered.filter((stage) => stage.rows !== undefined);
  return table([
    ["stage", (s) => h("a", { href: link([], { stage: s.name }) }, s.name)],
    ["state", (s) => h("span.pill", { class: s.state }, h("span.dot", {}), s.state)],
    ["in", (s) => count(s.rows_in), "r"], ["rows out", (s) => count(s.rows_out), "r"], ["empty", (s) => s.empty ? count(s.empty) : "", "r"],
    ["filtered", (s) => s.filtered ? count(s.filtered) : "", "r"], ["quarantined", (s) => s.quarantined ? h("a.bad", { href: link(["quarantine"]) }, count(s.quarantined)) : "", "r"],
    ["kept", (s) => s.rows_in ? percent(s.rows_in - s.empty - s.filtered - s.quarantined, s.rows_in) : "", "r"], ["", (s) => bar(s, true)], ["took", (s) => seconds(s.seconds), "r"], ["made", (s) => when(s.at), "r"]], made);
}
