"use strict";
const EVERY = 2000; // milliseconds
const KEY = "optscale-key"; // in sessionStorage: of this tab, and gone with it
const $ = (id) => document.getElementById(id);

function make(tag, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

const number = (x) =>
  x >= 1e5
    ? new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(x)
    : new Intl.NumberFormat("en", { maximumFractionDigits: x < 10 ? 2 : 0 }).format(x);
const percent = (x) => (x === null ? "–" : `${(100 * x).toFixed(x > 0 && x < 0.1 ? 1 : 0)}%`);
const seconds = (x) =>
  x === null ? "–" : x < 1 ? `${number(Math.round(x * 1000))} ms` : `${number(x)} s`;
const clock = (at) => new Date(at * 1000).toLocaleTimeString("en-GB");
const sum = (values) => Object.values(values).reduce((a, b) => a + b, 0);
const reason = (name) => name.replaceAll("_", " ");
const say = (id, text) => {
  // Only what has changed, so that a screen reader is left alone.
  if ($(id).textContent !== text) $(id).textContent = text;
};

async function ask(path) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const found = await fetch(path, { headers, cache: "no-store" });
  if (!found.ok) throw Object.assign(new Error(`HTTP ${found.status}`), { status: found.status });
  return found.json();
}

// Figures -----------------------------------------------------------------------------------------

function rows(id, lines) {
  const body = $(id).tBodies[0];
  body.replaceChildren(
    ...lines.map((cells) => {
      const row = make("tr");
      cells.forEach((cell, place) => {
        const held = make(place ? "td" : "th", place ? "" : "text");
        if (!place) held.scope = "row";
        if (cell instanceof Node) held.append(cell);
        else held.textContent = cell;
        if (cell instanceof Node) held.className = "bar";
        row.append(held);
      });
      return row;
    }),
  );
}

function bar(share, className = "", upright = false) {
  const made = make("i", className);
  made.style[upright ? "height" : "width"] = `${100 * share}%`;
  return made;
}

/** Stacks of bars: a list of heights for each, with a class for each place in the stack. */
function bars(id, stacks, { classes = [""], ticks, told }) {
  const most = Math.max(...stacks.map((stack) => sum(stack)), 1e-9);
  $(id).replaceChildren(
    ...stacks.map((stack) => {
      const made = make("span");
      made.append(...stack.map((value, place) => bar(value / most, classes[place], true)).reverse());
      return made;
    }),
  );
  $(id).setAttribute("aria-label", told);
  $(`${id}-ticks`).replaceChildren(
    ...ticks.map(([place, text]) => {
      const made = make("span", "", text);
      made.style.left = `${100 * place}%`;
      return made;
    }),
  );
  return most;
}

function showTokens({ steps, step }) {
  const minutes = (steps.length * step) / 60;
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((place) => {
    const ago = minutes * (1 - place);
    return [place, ago ? `${number(ago)} min ago` : "now"];
  });
  const [requests, spent, saved] = [0, 1, 2].map((place) => sum(steps.map((one) => one[place])));
  const told = `${number(spent)} tokens drawn and ${number(saved)} saved in ${number(requests)} answers`;
  const stacks = steps.map(([, drawn, rest]) => [drawn, rest]);
  const narrow = innerWidth < 480 ? ticks.filter((_, place) => place % 2 === 0) : ticks;
  bars("tokens", stacks, { classes: ["", "saved"], ticks: narrow, told });
  const note = $("tokens-note");
  note.replaceChildren(make("span", "key"), "drawn", make("span", "key saved"));
  note.append(`saved against max_samples; ${told}, ${step} seconds a bar`);
}

function showHistogram(id, { edges, counts, count }, told, unit) {
  // From the first bin that holds anything to the last.
  const held = counts.map((value, place) => (value ? place : -1)).filter((place) => place >= 0);
  const all = id === "confidence";
  const first = all || !held.length ? 0 : held[0];
  const last = all || !held.length ? edges.length - 1 : held.at(-1);
  const bounds = [first ? edges[first - 1] : 0, ...edges.slice(first, last + 1)];
  if (last === edges.length) bounds.push(Infinity);
  const every = Math.ceil(bounds.length / (innerWidth < 480 ? 6 : 11));
  const ticks = bounds
    .map((edge, place) => [place / (bounds.length - 1), edge === Infinity ? "more" : unit(edge)])
    .filter((_, place) => place % every === 0 || place === bounds.length - 1);
  bars(id, counts.slice(first, last + 1).map((value) => [value]), { ticks, told });
  say(`${id}-note`, count ? told : "Nothing yet.");
}

// Requests ----------------------------------------------------------------------------------------

function strip(one) {
  const made = make("span", "strip");
  made.setAttribute("role", "img");
  const scores = one.scores.filter((score) => score !== null);
  const best = scores.length ? `, the best ${Math.max(...scores).toFixed(3)}` : "";
  made.setAttribute("aria-label", `${scores.length} scores${best}`);
  one.scores.forEach((score, place) => {
    if (score === null) return;
    const dot = make("i", one.indices[place] === one.selected ? "selected" : "");
    dot.style.left = `${100 * score}%`;
    made.append(dot);
  });
  return made;
}

function line(one) {
  const item = make("li");
  const details = make("details");
  const head = make("summary");
  const cells = [
    ["at", clock(one.at)],
    ["name", one.name],
    ["samples", `${one.samples} of ${one.most}`],
    ["tokens", one.spent === null ? "–" : `${number(one.spent)} tokens`],
    ["took", seconds(one.seconds)],
    ["reason", reason(one.stop_reason)],
    ["claim", one.confidence === null ? "" : `${percent(one.confidence)} sure`],
  ];
  for (const [name, text] of cells) head.append(make("span", name, text));
  head.append(strip(one));
  details.append(head);
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) expand(details, one);
  });
  item.append(details);
  return item;
}

async function expand(details, one) {
  const inside = make("div", "opened", "Asking…");
  details.append(inside);
  try {
    inside.replaceChildren(...opened(await ask(`live/${one.id}`)));
  } catch (error) {
    inside.remove(); // so that opening it again asks again
    details.open = false;
    say("status", `The request cannot be shown: ${error.message}`);
  }
}

/** A line of M and L commands, of points in [0, 1]. */
const path = (points) =>
  points.map(([x, y], place) => `${place ? "L" : "M"}${100 * x} ${100 * (1 - y)}`).join("");

function opened(one) {
  const claim = one.confidence === null ? "claims no confidence" : `claims ${percent(one.confidence)}`;
  const fit = Object.entries(one.params).map(([name, value]) => `${name} ${number(value)}`);
  const told = `Stopped by ${reason(one.stop_reason)} after ${one.samples} of ${one.most}; ${claim}.`;
  const found = [make("p", "note", told)];
  const scores = one.scores.filter((score) => score !== null).sort((a, b) => a - b);
  if (scores.length) {
    const figure = make("figure");
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const lines = [];
    const steps = [[0, 0]];
    scores.forEach((score, place) => {
      steps.push([score, place / scores.length], [score, (place + 1) / scores.length]);
    });
    lines.push(["drawn", [...steps, [1, 1]], "share of scores up to here"]);
    if (one.law) {
      const curve = one.law.x.map((x, place) => [x, one.law.cdf[place]]);
      lines.push(["fitted", curve, `fitted law: ${one.law.name}, ${fit.join(", ")}`]);
    }
    if (one.aim) lines.push(["aim", [[one.aim[1], 0], [one.aim[1], 1]], one.aim.join(" ")]);
    svg.setAttribute("viewBox", "0 0 100 100");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("class", "cdf");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", lines.map(([, , words]) => words).join("; "));
    const caption = make("figcaption");
    for (const [name, points, words] of lines) {
      const drawn = document.createElementNS("http://www.w3.org/2000/svg", "path");
      drawn.setAttribute("d", path(points));
      drawn.setAttribute("class", name);
      svg.append(drawn);
      caption.append(make("span", `key line ${name}`), words);
    }
    const ticks = make("div", "ticks");
    for (const [place, text] of [[0, "0"], [0.5, "score"], [1, "1"]]) {
      const tick = make("span", "", text);
      tick.style.left = `${100 * place}%`;
      ticks.append(tick);
    }
    figure.append(svg, ticks, caption);
    found.push(figure);
  }
  const table = make("table");
  const head = table.createTHead().insertRow();
  for (const name of ["Completion", "Score", "Answer", "Tokens", ""]) {
    const cell = make("th", "", name);
    cell.scope = "col";
    head.append(cell);
  }
  const body = table.createTBody();
  one.completions.forEach(([index, score, answer, tokens]) => {
    const row = body.insertRow();
    const cells = [index, score === null ? "–" : score.toFixed(4), answer < 0 ? "none" : `#${answer}`];
    for (const text of [...cells, tokens < 0 ? "–" : number(tokens)]) row.append(make("td", "", text));
    row.append(make("td", "text", index === one.selected ? "returned" : ""));
  });
  const wide = make("div", "wide");
  wide.tabIndex = 0;
  wide.setAttribute("role", "region");
  wide.setAttribute("aria-label", "Completions");
  wide.append(table);
  found.push(wide);
  return found;
}

const lines = new Map();

function showRecent(recent) {
  const kept = new Set(recent.map((one) => one.id));
  for (const [id, item] of lines) {
    // One that is being read stays.
    if (!kept.has(id) && !item.firstChild.open) {
      item.remove();
      lines.delete(id);
    }
  }
  for (const one of [...recent].reverse()) {
    if (!lines.has(one.id)) {
      lines.set(one.id, line(one));
      $("recent").prepend(lines.get(one.id));
    }
  }
  $("none-yet").hidden = lines.size > 0;
}

// All of it ---------------------------------------------------------------------------------------

function show(found) {
  const answered = found.requests["200"] ?? 0;
  const all = sum(found.requests);
  const failed = Object.entries(found.requests).filter(([status]) => status !== "200");
  say("requests", number(all));
  say("requests-note", [`${number(answered)} answered`, ...failed.map(([s, n]) => `${s}: ${n}`)].join(", "));
  say("in_flight", number(found.in_flight));
  const share = found.budget_share < 1 ? `, budgets at ${percent(found.budget_share)}` : "";
  say("in_flight-note", `${number(found.queued)} wait${share}`);
  const { completed = 0, aborted = 0, verifier = 0 } = found.tokens;
  const spent = completed + aborted;
  say("spent", number(spent));
  say("spent-note", `${number(aborted)} of them aborted; verifier: ${number(verifier)}`);
  say("saved", percent(spent ? found.saved_tokens / (spent + found.saved_tokens) : null));
  say("saved-note", `${number(found.saved_tokens)} against max_samples`);
  say("confidence-mean", percent(found.confidence.mean));
  say("confidence-mean-note", `of ${number(found.confidence.count)} answers that claim one`);
  say("median", seconds(found.seconds.p50));
  say("median-note", `the median; 95% within ${seconds(found.seconds.p95)}`);
  showTokens(found);
  const stops = Object.entries(found.stops).sort(([, a], [, b]) => b - a);
  const total = sum(found.stops) || 1;
  rows("stops", stops.map(([name, n]) => [reason(name), bar(n / total), number(n), percent(n / total)]));
  const { count, mean } = found.seconds;
  showHistogram("seconds", found.seconds, `${number(count)} answers, ${seconds(mean)} on average`, seconds);
  const claimed = found.confidence;
  const told = `${number(claimed.count)} answers, ${percent(claimed.mean)} on average`;
  showHistogram("confidence", claimed, told, percent);
  rows(
    "policies",
    found.policies.map((one) => [
      one.name,
      number(one.answers),
      number(one.samples),
      percent(one.saved),
      seconds(one.seconds),
      percent(one.confidence),
    ]),
  );
  $("claims-shown").hidden = !found.claims.length;
  rows(
    "claims",
    found.claims.map((one) => [
      one.name,
      number(one.count),
      percent(one.claimed),
      percent(one.realised),
      one.chance < 1e-4 ? "under 0.01%" : percent(one.chance),
      one.alarm ? "alarm" : "",
    ]),
  );
  const off = found.claims.filter((one) => one.alarm).map((one) => one.name);
  $("alarm").hidden = !off.length;
  say("alarm", `Claims and what comes true differ by more than chance: ${off.join(", ")}. Learn the calibration again.`);
  showRecent(found.recent);
}

async function poll() {
  try {
    const found = await ask("live");
    $("ask-key").hidden = true;
    $("main").hidden = false;
    show(found);
    say("status", `Live, since ${new Date(found.since * 1000).toLocaleString("en-GB")}`);
  } catch (error) {
    if (error.status === 401) {
      if (sessionStorage.getItem(KEY)) say("key-note", "This key is unknown; give another.");
      sessionStorage.removeItem(KEY);
      $("main").hidden = true;
      $("ask-key").hidden = false;
      say("status", "Waiting for a key");
      return;
    }
    say("status", `The gateway does not answer (${error.message}); asking again`);
  }
  // A tab that nobody looks at asks seldom.
  setTimeout(poll, document.hidden ? 10 * EVERY : EVERY);
}

$("ask-key").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("api-key").value.trim());
  $("api-key").value = "";
  poll();
});
poll();
