// What the views share: elements from text (never from markup), addresses, numbers as people read them, pages.

/** An element. Strings become text: whatever a caption or a file name holds, it is never markup. */
export function h(tag, attributes, ...children) {
  const [name, ...classes] = tag.split(".");
  const made = document.createElement(name || "div");
  if (classes.length) made.className = classes.join(" ");
  return filled(made, attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "css") for (const [property, what] of Object.entries(value)) made.style.setProperty(property, what);
    else if (name === "class" && made.className) made.classList.add(...value.split(" ").filter(Boolean));
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...real(children));
  return made;
}

const real = (children) => children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);

/** Put these in place of what is there; null and false are nothing. */
export const put = (place, ...children) => place.replaceChildren(...real(children));

/** JSON of an address; what cannot be had is an Error with the server's sentence. */
export async function ask(address, query, signal) {
  const text = query ? new URLSearchParams(pairs(query)).toString() : "";
  let reply;
  try {
    reply = await fetch(text ? `${address}?${text}` : address, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("plait ui does not answer any more: start it again, this page goes on by itself");
  }
  const found = await reply.json().catch(() => ({ error: `the answer of ${address} is no JSON (${reply.status})` }));
  if (!reply.ok) throw new Error(found.error ?? `${address} answered ${reply.status}`);
  return found;
}

function pairs(query) {
  return Object.entries(query).flatMap(([name, value]) =>
    Array.isArray(value) ? value.map((one) => [name, one]) : value === "" || value === null || value === undefined ? [] : [[name, value]]);
}

/** A hash address: link(["clips", key], {sort: "flow"}). */
export function link(parts, query) {
  const text = new URLSearchParams(pairs(query ?? {})).toString();
  return `#/${parts.map(encodeURIComponent).join("/")}${text ? `?${text}` : ""}`;
}

export const count = (value) => (value === null || value === undefined ? "" : Number(value).toLocaleString("en-GB"));
export const short = (text) => (text ?? "").slice(0, 8);
export const percent = (part, all) => (!all ? "" : part && part < all / 1000 ? "<0.1 %" : `${((100 * part) / all).toFixed(part && part < all / 100 ? 1 : 0)} %`);

/** A number with four digits that say something. */
export function figure(value) {
  if (value === null || value === undefined) return "-";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return count(value);
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e6 || size < 1e-3)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

export function seconds(value) {
  if (value === null || value === undefined) return "";
  if (value < 60) return `${value.toFixed(1)} s`;
  const minutes = Math.floor(value / 60);
  return minutes < 60 ? `${minutes} min ${Math.round(value % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export const when = (at) => (at ? at.slice(0, 19).replace("T", " ") : "");

/** A table: columns are [title, cell(row), "r" for numbers]. */
export function table(columns, rows, attributes) {
  const head = h("tr", {}, columns.map(([title, , side]) => h("th", { class: side ?? "" }, title)));
  const body = rows.map((row) => h("tr", {}, columns.map(([, cell, side]) => h("td", { class: side ?? "" }, cell(row)))));
  return h("div.scroll", {}, h("table", attributes, h("thead", {}, head), h("tbody", {}, body)));
}

/** Pairs of names and values. */
export function facts(pairsShown) {
  const shown = pairsShown.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return h("dl", {}, shown.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

/** "1 to 48 of 6,053" with both ways. `go` is told the new offset. */
export function pager(found, size, go) {
  const last = Math.min(found.offset + size, found.total);
  const said = found.total ? `${count(found.offset + 1)} to ${count(last)} of ${count(found.total)}` : "none";
  return h("div.pager", {}, h("span.num", {}, said),
    h("button", { disabled: found.offset === 0, onclick: () => go(Math.max(0, found.offset - size)), "aria-label": "Previous page" }, "Previous"),
    h("button", { disabled: last >= found.total, onclick: () => go(found.offset + size), "aria-label": "Next page" }, "Next"));
}

/** A select of [value, title]. */
export function choice(title, options, chosen, onchange) {
  const list = options.map(([value, name]) => h("option", { value, selected: String(value) === String(chosen ?? "") }, name));
  return h("label", {}, title, h("select", { onchange: (event) => onchange(event.target.value) }, list));
}

/** A button that copies a text, and says so. */
export function copier(text, title = "Copy") {
  const button = h("button", { type: "button" }, title);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select it and press Ctrl-C";
    }
    setTimeout(() => { button.textContent = title; }, 1600);
  });
  return button;
}

export const say = (sentence, isError) => h("p.say", { class: isError ? "error" : "", role: isError ? "alert" : null }, sentence);

/** A part of a view that may fail alone. */
export async function part(place, make) {
  try {
    put(place, await make());
  } catch (error) {
    if (error.name !== "AbortError") put(place, say(error.message, true));
  }
}

/** A name for a row that leads to its lineage. */
export const toRow = (key, label) => h("a", { href: link(["lineage", key]), title: key }, label ?? short(key));
