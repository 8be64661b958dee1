// The router: an address after # to a view. A view that fails says so in its own place; the page stays.
import { ask, h, link, say } from "./dom.js";
import * as clips from "./clips.js";
import * as evaluation from "./evaluation.js";
import * as graph from "./graph.js";
import * as lineage from "./lineage.js";
import * as packs from "./packs.js";
import * as quarantine from "./quarantine.js";
import * as rows from "./rows.js";
import * as runs from "./runs.js";
import * as training from "./training.js";

const POLL_MS = 3000;
const VIEWS = [
  ["", "Graph", graph.view],
  ["clips", "Clips", clips.view],
  ["quarantine", "Quarantine", quarantine.view],
  ["packs", "Packs", packs.view],
  ["tokenizers", "Tokenizers", training.tokenizers],
  ["training", "Training", training.view],
  ["evaluation", "Evaluation", evaluation.view],
  ["answers", "Answers", evaluation.answers],
  ["rows", "Rows", rows.view],
  ["lineage", "Lineage", lineage.view],
  ["runs", "Runs", runs.view],
];

const main = document.getElementById("main");
let shown = null; // what stops the view that is shown
let again = null; // what a live view does at each poll
let seen = ""; // which versions stood when the view was drawn

export function address() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  return { path: path.split("/").filter(Boolean).map(decodeURIComponent), query: new URLSearchParams(query ?? "") };
}

async function route() {
  shown?.abort();
  shown = new AbortController();
  again = null;
  seen = "";
  document.getElementById("fresh").hidden = true;
  const { signal } = shown;
  const { path, query } = address();
  const found = VIEWS.find(([name]) => name === (path[0] ?? ""));
  for (const one of document.querySelectorAll("#nav a")) {
    if (one.dataset.view === (path[0] ?? "")) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
  }
  const place = h("div", {});
  main.replaceChildren(place);
  document.title = `${found ? found[1] : "?"} - plait`;
  if (!found) return place.append(say(`There is no view ${path[0]}: choose one above.`, true));
  try {
    place.append(h("p.faint", { role: "status" }, "Reading ..."));
    const live = await found[2](place, path.slice(1), query, signal);
    if (!signal.aborted) again = live ?? null;
  } catch (error) {
    if (!signal.aborted) place.replaceChildren(h("h1", {}, found[1]), say(error.message, true));
  }
}

/** The bar above says where one is and what goes on; live views follow. */
async function poll() {
  try {
    const state = await ask("/api/state");
    document.getElementById("root").textContent = "\u200e" + state.root;
    document.getElementById("root").title = state.root;
    const going = document.getElementById("going");
    const busy = state.stages.filter((stage) => stage.state === "running").map((stage) => stage.name);
    going.hidden = !state.going.length;
    going.className = "pill going";
    going.replaceChildren(h("span.dot", {}), busy.length ? `running: ${busy.join(", ")}` : "a run goes on");
    const stands = JSON.stringify(state.stages.map((stage) => [stage.name, stage.key]));
    document.getElementById("fresh").hidden = again !== null || seen === "" || seen === stands;
    seen ||= stands;
    await again?.(state);
  } catch (error) {
    if (error.name !== "AbortError") document.getElementById("root").textContent = error.message;
  }
  setTimeout(poll, document.hidden ? POLL_MS * 5 : POLL_MS);
}

document.getElementById("nav").append(...VIEWS.map(([name, title]) => h("a", { href: name ? link([name]) : "#/", "data-view": name }, title)));
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
document.getElementById("fresh").addEventListener("click", route);
addEventListener("hashchange", route);
route();
poll();
