// Units that could not be processed, by fault, with the command that tries them again.
import { ask, copier, count, h, link, pager, part, put, say, table } from "./dom.js";

const SIZE = 25;

export async function view(place, _path, _query, signal) {
  const found = await ask("/api/quarantine", null, signal);
  put(place, h("h1", {}, "Quarantine"), h("p.soft", {}, found.total ? `${count(found.total)} units of ${found.faults.length} faults. They are tried again only when asked.` : "Nothing is in quarantine."),
    ...found.faults.map((fault) => card(fault, signal)));
}

function card(fault, signal) {
  const units = h("div", {});
  const open = (offset) => part(units, async () => {
    const rows = await ask(`/api/quarantine/${fault.stage}`, { class: fault.error_class, trace: fault.trace_digest, offset, limit: SIZE }, signal);
    return [h("div.row", {}, pager(rows, SIZE, open)), table([["unit", (r) => h("a", { href: link(["lineage", r.label || r.unit]) }, r.label || r.unit)], ["reason", (r) => r.reason ?? ""], ["tries", (r) => r.attempt, "r"], ["", (r) => errorOf(fault.stage, r.unit, signal)]], rows.rows)];
  });
  return h("section.card", { css: { "margin-bottom": "12px" } },
    h("div.row", {}, h("strong", {}, fault.stage), h("span.bad", {}, `${count(fault.units)} ${fault.units === 1 ? "unit" : "units"}`), h("code", {}, fault.error_class ?? "no class"), h("span.faint.mono", { title: "the same for the same fault" }, fault.trace_digest ?? "")),
    h("p", {}, fault.reason ?? "", h("span.soft", {}, ` (${fault.label ?? fault.unit})`)),
    h("div.row", {}, h("code.grow.command", {}, fault.command), copier(fault.command, "Copy the retry command")),
    h("details", { ontoggle: (event) => { if (event.target.open && !units.hasChildNodes()) open(0); } }, h("summary", {}, "Its units"), units));
}

function errorOf(stage, unit, signal) {
  const place = h("div", {});
  return h("details", { ontoggle: (event) => {
    if (event.target.open && !place.hasChildNodes()) part(place, async () => {
      const found = await ask(`/api/quarantine/${stage}/${unit}`, null, signal);
      return found.error ? h("pre", {}, found.error) : say("No traceback: the row was refused with this sentence.");
    });
  } }, h("summary", {}, "error"), place);
}
