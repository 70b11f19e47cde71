/* What the pages have in common: building them, numbers for people, the answer, and keeping it fresh. */
"use strict";

const POLL_MS = 2000;
const PATIENCE_MS = 4000;
const STALE_MS = 6000;
// The AverageValue that the HPA example scales on.
const TARGET = 0.85;

/* Building the page: a description of the wanted nodes, laid over the ones that are there. Data only ever becomes text
   nodes and attribute values, and what did not change is left alone, so that focus, selection and open details stay. */

const SVG_TAGS = new Set(["svg", "path", "line", "text", "circle", "title"]);
const given = new WeakMap();
const h = (tag, attributes, ...children) => ({
  tag,
  attributes: attributes || {},
  children: children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
});

function lay(parent, wanted) {
  wanted.forEach((want, index) => {
    const there = parent.childNodes[index];
    if (typeof want !== "object") {
      const text = String(want);
      if (there?.nodeType !== Node.TEXT_NODE) place(parent, there, document.createTextNode(text));
      else if (there.data !== text) there.data = text;
      return;
    }
    let node = there;
    if (there?.localName !== want.tag) {
      node = SVG_TAGS.has(want.tag) ? document.createElementNS("http://www.w3.org/2000/svg", want.tag) : document.createElement(want.tag);
      if (want.attributes.open) node.open = true;
      place(parent, there, node);
    }
    dress(node, want.attributes);
    lay(node, want.children);
  });
  while (parent.childNodes.length > wanted.length) parent.lastChild.remove();
}

function place(parent, there, node) {
  if (there) there.replaceWith(node);
  else parent.append(node);
}

function dress(node, attributes) {
  const before = given.get(node) || {};
  for (const name of Object.keys(before)) if (!(name in attributes)) node.removeAttribute(name);
  for (const [name, value] of Object.entries(attributes)) {
    // Whether details are open is the reader's to say, once they are there.
    if (name === "open" || before[name] === value) continue;
    if (name === "grow") node.style.flexGrow = value;
    else node.setAttribute(name, value);
  }
  given.set(node, attributes);
}

const show = (id, ...children) => lay(document.getElementById(id), h("", null, children).children);

function table(caption, heads, rows, kind = "") {
  // The roles are said aloud because a phone shows rows as grids, and some browsers then forget what they are.
  const cell = (tag, role, content, index, more) => h(tag, { class: heads[index].kind, role, ...more }, content);
  return h("table", { role: "table", class: kind },
    h("caption", { class: "hidden" }, caption),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, heads.map((head, index) => cell("th", "columnheader", head.text, index, { scope: "col" })))),
    h("tbody", { role: "rowgroup" }, rows.map((row) => h("tr", { role: "row", class: row.strong ? "strong" : "" },
      row.cells.map((content, index) => (index ? cell("td", "cell", content, index) : cell("th", "rowheader", content, 0, { scope: "row" })))))));
}

const col = (text, kind = "") => ({ text, kind });
const num = (text) => col(text, "number");

/* Numbers for people. */

const grouped = new Intl.NumberFormat("en-US");
const known = (value) => value !== null && value !== undefined;
const count = (value) => grouped.format(Math.round(value));
const clock = (date) => date.toLocaleTimeString("en-GB");
const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
const percent = (ratio, digits = 1) => `${(ratio * 100).toFixed(digits)} %`;
const signed = (ratio) => {
  const size = Math.abs(ratio);
  // Small is not nothing: 0.003 % must not read as 0.0 %.
  return `${ratio < 0 ? "−" : ratio > 0 ? "+" : ""}${size > 0 && size < 0.0005 ? `${Number((size * 100).toPrecision(1))} %` : percent(size)}`;
};
const unknown = (reason) => h("span", { class: "unknown" }, reason ? `unknown (${reason})` : "unknown");
const because = (reason) => reason && h("span", { class: "note because" }, reason);
const total = (values) => (values.length && values.every(known) ? values.reduce((sum, value) => sum + value, 0) : null);

function bytes(value) {
  const sizes = [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]];
  const [unit, size] = sizes.find((entry) => Math.abs(value) >= entry[1]) || ["B", 1];
  return `${(value / size).toFixed(unit === "GiB" ? 2 : unit === "MiB" ? 1 : 0)} ${unit}`;
}

function ratio(value) {
  // 0.999 must not read as 1.00, where the word beside it changes.
  return value.toFixed([TARGET, 1].some((edge) => value !== edge && Math.abs(value - edge) < 0.005) ? 3 : 2);
}

function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

function term(name, value) {
  if (!known(value)) return unknown();
  if (typeof value !== "number") return String(value);
  if (name.endsWith("_bytes")) return bytes(value);
  if (name.endsWith("_ratio")) return ratio(value);
  if (Number.isInteger(value)) return count(value);
  return value.toLocaleString("en-US", Math.abs(value) < 1 ? { maximumSignificantDigits: 3 } : { maximumFractionDigits: 2 });
}

/* The answer. */

const SIGNS = {
  safe: "M12 1a11 11 0 1 0 0 22 11 11 0 0 0 0-22zm-1.6 16.2-5-5 2-2 3 3 6.200-6.400 2 2z",
  near: "M12 1.500 23.500 22H.5zM10.600 9v6.500h2.800V9zm0 8v2.600h2.800V17z",
  over: "M7.400 1h9.200L23 7.400v9.200L16.600 23H7.400L1 16.600V7.400zM10.600 5v9h2.800V5zm0 11v3h2.800v-3z",
  none: "M12 1a11 11 0 1 0 0 22 11 11 0 0 0 0-22zM6 10.500h12v3H6z",
};
const WORDS = { safe: "Safe", near: "Near the limit", over: "Over the limit", none: "No advice" };

function showAnswer(state, headline, numbers, advice) {
  document.getElementById("answer").className = state;
  show("icon", h("path", { d: SIGNS[state], fill: "currentColor", "fill-rule": "evenodd" }));
  show("headline", headline);
  show("numbers", numbers);
  show("advice", advice);
  document.title = `${headline} · kvgauge`;
}

function stack(label, segments, whole) {
  const used = segments.reduce((sum, segment) => sum + segment.size, 0);
  return h("div", { class: "stack", role: "img", "aria-label": label },
    segments.filter((segment) => segment.size > 0).map((segment) => h("span", { class: `k-${segment.kind}`, grow: String(segment.size) })),
    whole > used && h("span", { class: "room", grow: String(whole - used) }));
}

/* Charts over time: `points` have wall_seconds, oldest first. */

const HISTORY_SECONDS = 900;
const MARKS = { 60: 15, 120: 30, 300: 60, 600: 120, [HISTORY_SECONDS]: 300 };

function stepOf(points) {
  const steps = points.slice(1).map((point, index) => point.wall_seconds - points[index].wall_seconds).sort((a, b) => a - b);
  return steps.length ? steps[Math.floor(steps.length / 2)] : 1;
}

function timespan(points) {
  const end = points[points.length - 1].wall_seconds, lasts = end - points[0].wall_seconds;
  // A young minute would be a sliver of a quarter of an hour.
  return { end, lasts, span: Object.keys(MARKS).map(Number).find((seconds) => lasts <= seconds) || HISTORY_SECONDS };
}

const ago = (seconds) => (seconds < 120 ? `−${seconds} s` : `−${seconds / 60} min`);

// Points that follow each other without a gap; `known` is said of a point.
function runs(points, isKnown) {
  const gap = Math.max(5, 3 * stepOf(points)), found = [];
  let before = null;
  for (const point of points) {
    if (!isKnown(point)) { before = null; continue; }
    if (before === null || point.wall_seconds - before > gap) found.push([]);
    found[found.length - 1].push(point);
    before = point.wall_seconds;
  }
  return found;
}

// `draw` is given pens that know the axes, and gives what is drawn over the grid.
function timeChart({ within, spoken, end, span, high, step, level, draw, height = 240 }) {
  const width = Math.max(document.getElementById(within).clientWidth, 200);
  const left = 44, right = 10, top = 10, bottom = 24;
  const x = (seconds) => width - right - ((end - seconds) / span) * (width - left - right);
  const y = (value) => height - bottom - (value / high) * (height - top - bottom);
  const text = (kind, at, down, anchor, content) => h("text", { class: kind, x: at, y: down, "text-anchor": anchor }, content);
  const line = (kind, value) => h("line", { class: kind, x1: left, x2: width - right, y1: y(value), y2: y(value) });
  const place = (points, value) => points.map((point) => `${x(point.wall_seconds).toFixed(1)} ${y(value(point)).toFixed(1)}`);
  const pens = {
    line,
    words: (kind, value, down, content) => text(kind, left + 6, y(value) + down, "start", content),
    curve: (points, value) => {
      const path = runs(points, (point) => known(value(point))).map((run) => `M${place(run, value).join("L")}`).join("");
      const last = points[points.length - 1];
      return [path && h("path", { class: "curve", d: path }), known(value(last)) && h("circle", { class: "dot", cx: x(last.wall_seconds), cy: y(value(last)), r: 4 })];
    },
    area: (kind, points, from, to) => {
      const path = runs(points, (point) => known(to(point))).map((run) => `M${place(run, to).concat(place([...run].reverse(), from)).join("L")}Z`).join("");
      return path && h("path", { class: kind, d: path });
    },
  };
  const levels = Array.from({ length: Math.floor(high / step) + 1 }, (_, index) => index * step);
  const marks = Array.from({ length: span / MARKS[span] + 1 }, (_, index) => index * MARKS[span]);
  return h("svg", { role: "img", "aria-label": spoken, viewBox: `0 0 ${width} ${height}` },
    levels.map((value) => [line("grid", value), text("", left - 6, y(value) + 4, "end", level(value))]),
    marks.map((back) => text("", x(end - back), height - 6, back === span ? "start" : back ? "middle" : "end", back ? ago(back) : "now")),
    draw(pens));
}

/* Keeping it fresh. A page says of itself:
   whom        who answers, in words: "the sidecar"
   about       whom its silence says nothing about: "the engine"
   read()      asks, keeps what it read, and gives the Unix time that it is of, in seconds
   render()    shows what was read
   answer()    [state, numbers, advice] for the top of the page, WORDS[state] being its headline
   stepSeconds() from one figure to the next */

const watch = { page: null, ofSeconds: null, arrived: null, moved: null, timer: null, trouble: null, asking: null };

async function ask(path) {
  const { whom } = watch.page;
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", signal: watch.asking.signal });
    if (answer.ok) return await answer.json();
  } catch (error) {
    throw new Error(error.name === "AbortError" ? `${whom} does not answer in time` : `${whom} cannot be reached`);
  }
  throw new Error(answer.status === 503 ? `${whom} itself has no fresh figures (503)` : `${whom} answers ${path.split("?")[0]} with ${answer.status}`);
}

function staleness() {
  if (watch.trouble) return watch.trouble;
  // Who was told to look every 20 s is not stale after 5.
  const patience = Math.max(STALE_MS, 3000 * watch.page.stepSeconds());
  return watch.moved !== null && performance.now() - watch.moved > patience ? `${watch.page.whom}'s clock stands still` : null;
}

function showFreshness() {
  const trouble = staleness(), { whom, about } = watch.page;
  document.getElementById("freshness").classList.toggle("stale", Boolean(trouble));
  document.getElementById("main").classList.toggle("stale", Boolean(trouble));
  const every = `every ${POLL_MS / 1000} seconds`;
  if (!trouble) {
    const [state, numbers, advice] = watch.page.answer();
    show("freshness-text", `Live: figures of ${clock(new Date(watch.ofSeconds * 1000))}, asked for ${every}`);
    showAnswer(state, WORDS[state], numbers, advice);
    return;
  }
  if (watch.ofSeconds === null) {
    show("freshness-text", `No figures yet: ${trouble}. Asking again ${every}.`);
    showAnswer("none", "No answer yet", "", `So far ${trouble}. That says nothing about ${about}.`);
    return;
  }
  const since = clock(watch.arrived), [state, numbers] = watch.page.answer();
  show("freshness-text", `Stale since ${since}: ${trouble}. All below is of then.`);
  showAnswer("none", "Stale: no fresh answer", `At ${since}: ${WORDS[state].toLowerCase()}; ${numbers}`,
    `This page no longer hears from ${whom}. That says nothing about ${about}.`);
}

async function look() {
  stop();
  const asking = watch.asking = new AbortController(), began = performance.now();
  const patience = setTimeout(() => asking.abort(), PATIENCE_MS);
  let trouble = null;
  try {
    const seconds = await watch.page.read();
    if (seconds !== watch.ofSeconds) {
      watch.moved = performance.now();
      watch.arrived = new Date();
    }
    watch.ofSeconds = seconds;
    watch.page.render();
    document.getElementById("main").classList.remove("empty");
  } catch (error) {
    trouble = error.message;
  }
  clearTimeout(patience);
  // Stopped in between: somebody else looks by now, or nobody.
  if (watch.asking !== asking) return;
  watch.trouble = trouble;
  showFreshness();
  watch.timer = setTimeout(look, Math.max(POLL_MS - (performance.now() - began), 50));
}

function stop() {
  clearTimeout(watch.timer);
  watch.asking?.abort();
  watch.asking = null;
}

function pauseWhenHidden() {
  if (document.hidden) {
    stop();
    return;
  }
  // Nobody looked, so nothing was asked: the wait for movement begins anew.
  watch.moved = watch.ofSeconds === null ? null : performance.now();
  look();
}

function keepFresh(page) {
  watch.page = page;
  document.addEventListener("visibilitychange", pauseWhenHidden);
  // Charts are as wide as they are shown.
  addEventListener("resize", () => { if (watch.ofSeconds !== null) page.render(); });
  if (!document.hidden) look();
}
