"use strict";
// The timeline of clients: whom it shows and in which order, and bars for the window of time that is shown.
(() => {
  const chart = desim.chart("timeline");
  if (!chart) return;
  const { roster, classed, jobs, fates, legs, grain, limit, waiting, busy, most } = chart.material;
  const whole = desim.payload.window;
  const now = desim.now;
  const scale = grain / whole.ticks;
  const told = limit / whole.ticks;
  const ends = new Set(["lost", "cancelled", "rejected"]);
  const people = roster.map(([label, kind, updates, seconds, first], place) => ({ label, kind, updates, seconds, first, place }));
  const orders = {
    number: ["Number", (one) => one.place],
    ...(classed ? { class: ["Device class", (one) => one.kind] } : {}),
    updates: ["Updates, most first", (one) => -one.updates],
    fast: ["Speed, fastest first", (one) => one.seconds],
    slow: ["Speed, slowest first", (one) => (one.seconds === null ? null : -one.seconds)],
    first: ["First seen", (one) => one.first],
  };
  let order = "number";
  let words = "";
  let shown = [];

  function missing(value) {
    return value === null || value === undefined;
  }

  function compare(a, b) {
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    return a < b ? -1 : a > b ? 1 : 0;
  }

  function choose() {
    const key = orders[order][1];
    const found = people.filter((one) => `${one.label} ${one.kind ?? ""}`.toLowerCase().includes(words));
    found.sort((a, b) => compare(key(a), key(b)) || a.place - b.place);
    shown = found.slice(0, most.clients);
    return found.length;
  }

  // The legs of one job, as far as it came: what ended it, or the end of the run, cuts the last.
  function* legsOf([place, job, version, start, downloaded, started, computed, ended, fate]) {
    const cut = missing(ended) ? whole.end : (start + ended) * scale;
    const at = (offset) => (missing(offset) ? null : (start + offset) * scale);
    const marks = waiting ? [0, downloaded, started, computed] : [0, downloaded, downloaded, computed];
    const stops = waiting ? [downloaded, started, computed] : [downloaded, downloaded, computed];
    for (const [rank, leg] of legs.entries()) {
      const begin = at(marks[rank]);
      if (begin === null) return;
      const last = rank === legs.length - 1 || missing(stops[rank]);
      const stop = last ? cut : Math.min(at(stops[rank]), cut);
      const end = last && ends.has(fates[fate]) ? fates[fate] : null;
      if (stop > begin || end) yield { label: people[place].label, job, version, leg, start: begin, stop, ended: end };
    }
  }

  function bars() {
    const here = new Set(shown.map((one) => one.place));
    const found = [];
    for (const row of jobs) {
      if (!here.has(row[0]) || row[3] * scale > now.until) continue;
      if (!missing(row[7]) && (row[3] + row[7]) * scale < now.since) continue;
      for (const leg of legsOf(row)) if (leg.stop >= now.since && leg.start <= now.until) found.push(leg);
    }
    return found;
  }

  // Bars one by one, where all of them are known and a reader could tell them apart; else how busy each client was.
  function view() {
    if (!busy.length) return { legs: bars(), busy: [] };
    if (now.until <= told * (1 + 1e-9)) {
      const found = bars();
      if (found.length <= most.bars) return { legs: found, busy: [] };
    }
    return { legs: [], busy: shown.flatMap(shades) };
  }

  function shades(one) {
    const digits = busy[one.place];
    const step = whole.end / digits.length;
    const first = Math.floor(now.since / step);
    const last = Math.min(digits.length, Math.ceil(now.until / step));
    const width = Math.max(1, Math.ceil((last - first) / 100));
    const found = [];
    for (let at = first; at < last; at += width) {
      const part = [...digits.slice(at, Math.min(at + width, last))];
      const level = Math.round(part.reduce((sum, digit) => sum + Number(digit), 0) / part.length) / 9;
      const before = found.at(-1);
      const stop = Math.min(at + width, last) * step;
      if (before && before.busy === level) before.stop = stop;
      else found.push({ label: one.label, start: at * step, stop, busy: level });
    }
    return found.filter((cell) => cell.busy > 0);
  }

  let cached = null;
  let key = "";
  function current() {
    const asked = `${order} ${words} ${now.since} ${now.until}`;
    if (asked !== key) [cached, key] = [view(), asked];
    return cached;
  }
  desim.made.legs = () => current().legs;
  desim.made.busy = () => current().busy;
  desim.signals.order = () => shown.map((one) => one.label);

  async function redraw() {
    const number = choose();
    const drawn = desim.views.get("timeline");
    said.textContent = number > shown.length ? `${shown.length} of ${number} clients` :
      number ? `${number} client${number === 1 ? "" : "s"}` : "No client is called so.";
    if (!drawn) return;
    drawn.signal("order", desim.signals.order());
    for (const name of ["legs", "busy"]) if (chart.data.includes(name)) drawn.data(name, desim.made[name]());
    await drawn.runAsync();
    desim.tidy("timeline");
    desim.place("timeline").dataset.shown = shown.map((one) => one.label).join("\n");
  }

  // ---- what a reader can ask for

  const tools = document.createElement("div");
  tools.className = "tools";
  const select = document.createElement("select");
  for (const [name, [title]] of Object.entries(orders)) select.append(new Option(title, name));
  const label = document.createElement("label");
  label.append("Order ", select);
  const field = document.createElement("input");
  Object.assign(field, { type: "search", placeholder: classed ? "Client or class" : "Client" });
  field.setAttribute("aria-label", "Search clients of the timeline");
  const said = document.createElement("output");
  said.setAttribute("aria-live", "polite");
  tools.append(label, field, said);
  select.addEventListener("change", () => { order = select.value; redraw(); });
  field.addEventListener("input", () => { words = field.value.trim().toLowerCase(); redraw(); });
  desim.place("timeline").before(tools);
  redraw();
})();
