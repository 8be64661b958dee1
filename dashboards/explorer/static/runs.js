// Runs: what was asked, what became of it, and what it said.
import { ask, count, h, link, pager, put, say, seconds, table, when } from "./dom.js";

const SIZE = 40;

export async function view(place, path, query, signal) {
  if (path[0]) return one(place, path[0], signal);
  const found = await ask("/api/runs", { offset: Number(query.get("offset") ?? 0), limit: SIZE }, signal);
  put(place, h("div.row", {}, h("h1", {}, "Runs"), pager(found, SIZE, (offset) => { location.hash = link(["runs"], { offset }); })),
    found.rows.length ? table([["run", (r) => h("a", { href: link(["runs", r.run_id]) }, r.run_id)], ["state", (r) => state(r)], ["ended, or begun", (r) => when(r.at)], ["computed", (r) => (r.stages ?? []).filter((s) => s.computed).map((s) => s.name).join(", ")], ["command", (r) => h("code", {}, `plait ${r.command.join(" ")}`)], ["error", (r) => r.error ?? ""]], found.rows) : say("No run has been recorded yet: `plait run` makes one."));
  return null;
}

const state = (run) => h("span.pill", { class: run.state }, h("span.dot", {}), run.state);

async function one(place, id, signal) {
  let drawn = -1;
  const draw = async () => {
    const run = await ask(`/api/runs/${encodeURIComponent(id)}`, null, signal);
    if (run.num_lines === drawn) return run;
    drawn = run.num_lines;
    put(place, h("p", {}, h("a", { href: "#/runs" }, "Runs"), h("span.faint", {}, " / "), h("code", {}, id)), h("div.row", {}, h("h1", {}, id), state(run), h("span.soft", {}, when(run.at))), h("p", {}, h("code", {}, `plait ${run.command.join(" ")}`)), run.error ? say(run.error, true) : null,
      run.stages ? table([["stage", (s) => s.name], ["state", (s) => h("span.pill", { class: s.state }, h("span.dot", {}), s.state)], ["in", (s) => count(s.rows_in), "r"], ["rows out", (s) => count(s.rows_out), "r"], ["computed", (s) => count(s.computed), "r"], ["filtered", (s) => count(s.filtered), "r"], ["quarantined", (s) => count(s.quarantined), "r"], ["took", (s) => seconds(s.seconds), "r"]], run.stages) : "",
      h("h2", {}, run.num_lines > run.lines.length ? `The last ${run.lines.length} of ${count(run.num_lines)} lines` : "What it said"),
      h("div.logs.card", {}, run.lines.map((line) => h("div", { class: line.level }, h("span.faint", {}, `${line.at.slice(11, 19)} `), line.stage ? h("strong", {}, `${line.stage} `) : "", line.text))));
    return run;
  };
  const run = await draw();
  return run.state === "running" ? draw : null;
}
