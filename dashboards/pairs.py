"""Two pictures beside each other, again and again, as one page without a server: people say which they prefer."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages.evaluate.preference import VOTES_FORMAT

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;margin:1em auto;max-width:1200px;color:#222;text-align:center}
.sides{display:flex;gap:2em;justify-content:center}figure{margin:0;flex:1;cursor:pointer}
img{width:100%;max-width:512px;image-rendering:pixelated;border:3px solid #ddd}figure.chosen img{border-color:#4c72b0}
button,input{font:inherit;margin:.2em}progress{width:60%}#prompt{font-size:1.3em;min-height:3em}
"""
_BODY = """
<p><progress id="bar" value="0"></progress> <span id="done"></span></p><p id="prompt"></p>
<div class="sides"><figure id="left"><img alt="left"><figcaption>1</figcaption></figure>
<figure id="right"><img alt="right"><figcaption>2</figcaption></figure></div>
<p><button id="one">1: left</button><button id="zero">0: neither, both</button><button id="two">2: right</button>
<button id="back">Backspace: back</button></p>
<p><label>Your name <input id="rater"></label> <button id="save">Save votes</button></p>
<p>Which one shows better what the words say? Press 1, 2, or 0 where you cannot tell. Save at the end, or before.</p>
"""
_SCRIPT = """
"use strict";
const told = JSON.parse(document.getElementById("pairs").textContent);
const at = (id) => document.getElementById(id);
const place = "plait pairs " + told.name;
let votes = {}, now = 0;
try { votes = JSON.parse(localStorage.getItem(place)) || {}; } catch (error) { votes = {}; }
function show() {
  const count = told.pairs.length, done = told.pairs.filter((pair) => pair.key in votes).length;
  at("bar").max = count; at("bar").value = done;
  at("done").textContent = done + " of " + count;
  const pair = told.pairs[now];
  at("prompt").textContent = pair ? pair.prompt : "That was the last one: save your votes.";
  for (const side of ["left", "right"]) {
    at(side).style.visibility = pair ? "visible" : "hidden";
    at(side).className = pair && votes[pair.key] === side ? "chosen" : "";
    if (pair) at(side).querySelector("img").src = pair[side];
  }
}
function vote(side) {
  if (now >= told.pairs.length) return;
  votes[told.pairs[now].key] = side;
  try { localStorage.setItem(place, JSON.stringify(votes)); } catch (error) { /* saved by hand alone */ }
  now += 1;
  show();
}
function back() { now = Math.max(0, now - 1); show(); }
function save() {
  const rater = at("rater").value.trim();
  const text = JSON.stringify({format: told.format, rater: rater, sealed: told.sealed, votes: votes});
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = "votes" + (rater ? "-" + rater.replace(/[^A-Za-z0-9]+/g, "-") : "") + ".json";
  link.click();
}
const keys = {"1": () => vote("left"), "2": () => vote("right"), "0": () => vote("tie"), "Backspace": back};
document.addEventListener("keydown", (event) => {
  if (event.target.tagName !== "INPUT" && event.key in keys) { event.preventDefault(); keys[event.key](); }
});
at("left").onclick = at("one").onclick = () => vote("left");
at("right").onclick = at("two").onclick = () => vote("right");
at("zero").onclick = () => vote("tie");
at("back").onclick = back;
at("save").onclick = save;
while (now < told.pairs.length && told.pairs[now].key in votes) now += 1;
show();
"""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """One pair as it is shown."""

    key: str
    prompt: str
    left: bytes
    """PNG, of films animated."""
    right: bytes


def page(sheets: Sequence[Sheet], sealed: str, name: str) -> str:
    """HTML with everything in it; who stands where is in `sealed` alone. Votes are kept in the browser under `name`."""
    told: Mapping[str, object] = {
        "format": VOTES_FORMAT,
        "name": name,
        "sealed": sealed,
        "pairs": [
            {"key": one.key, "prompt": one.prompt, "left": _inline(one.left), "right": _inline(one.right)}
            for one in sheets
        ],
    }
    data = json.dumps(told).replace("<", "\\u003c")  # a prompt must not end the script that it stands in
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Which is better?</title><style>{_STYLE}</style>'
        f'{_BODY}<script id="pairs" type="application/json">{data}</script><script>{_SCRIPT}</script></html>\n'
    )


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
