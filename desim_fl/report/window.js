"use strict";
// The time window: dragged out in one chart, or typed; every other chart that knows of time then shows that stretch alone.
(() => {
  const whole = desim.payload.window;
  if (!whole || !whole.end) return;
  const following = desim.payload.charts.filter((chart) => chart.follow);
  if (!following.length) return;
  const now = { since: 0, until: whole.end };
  let due = 0;
  let asked = 0; // how often a window was asked for

  desim.now = now;
  desim.signals.since = () => now.since;
  desim.signals.until = () => now.until;
  const partial = () => now.since > 0 || now.until < whole.end;

  // Rows in the window, and of each series the last before it and the first after it, so that lines reach the edges.
  function cut(rows, by) {
    if (!partial()) return rows;
    const series = new Map();
    for (const row of rows) {
      const key = by === null ? "" : row[by];
      if (!series.has(key)) series.set(key, []);
      series.get(key).push(row);
    }
    return [...series.values()].flatMap((line) => {
      const inside = (row) => row.time >= now.since && row.time <= now.until;
      const before = line.findLastIndex((row) => row.time < now.since);
      const after = line.findIndex((row) => row.time > now.until);
      return line.filter((row, at) => inside(row) || at === before || at === after);
    });
  }

  // The steps of time that the window touches.
  function steps() {
    const first = Math.min(whole.steps - 1, Math.floor((now.since / whole.end) * whole.steps + 1e-9));
    return [first, Math.max(first + 1, Math.ceil((now.until / whole.end) * whole.steps - 1e-9))];
  }

  function sums(counts) {
    const [first, last] = steps();
    const found = new Map();
    for (let at = 0; at < counts.cells.length; at += 4) {
      const [step, bar, fate, number] = counts.cells.slice(at, at + 4);
      if (step < first || step >= last) continue;
      const key = bar * 16 + fate;
      found.set(key, (found.get(key) ?? 0) + number);
    }
    return [...found].sort((a, b) => a[0] - b[0]).map(([key, number]) => [key >> 4, key & 15, number]);
  }

  function bars(counts) {
    const tops = new Map();
    const found = sums(counts);
    return (found.length ? found : [[0, 0, 0]]).map(([bar, fate, number]) => {
      const [left, right] = counts.bars[bar];
      const bottom = tops.get(bar) ?? 0;
      tops.set(bar, bottom + number);
      const row = { left, right, bottom, top: bottom + number, updates: number, count: number };
      if (counts.labels) [row.from, row.to] = counts.labels[bar];
      if (counts.fates) row.fate = counts.fates[fate];
      return row;
    });
  }

  // Median, 99th percentile and maximum of what the bars count: the end of the bar that each of them lies in.
  function marks(counts) {
    const heights = new Map();
    for (const [bar, , number] of sums(counts)) heights.set(bar, (heights.get(bar) ?? 0) + number);
    const total = [...heights.values()].reduce((sum, number) => sum + number, 0);
    const top = Math.max(1, ...heights.values());
    if (!total) return [{ mark: "", value: counts.bars[0][0], words: "no update arrived", height: 1, side: "left" }];
    const end = (bar) => (counts.labels ? counts.labels[bar][1] : counts.bars[bar][1]);
    const greatest = end(Math.max(...heights.keys()));
    return [["median", 0.5, 1.28], ["p99", 0.99, 1.08], ["max", 1, 1.18]].map(([mark, share, height]) => {
      let left = Math.min(total, Math.floor(share * total) + 1);
      const bar = [...heights].find(([, number]) => (left -= number) <= 0)[0];
      const value = end(bar);
      const exact = counts.labels && counts.labels[bar][0] === counts.labels[bar][1];
      const words = `${mark} ${exact ? "" : "\u2264 "}${Number(value.toPrecision(4))}`;
      return { mark, value, words, height: top * height, side: value > greatest / 2 ? "right" : "left" };
    });
  }

  for (const chart of following) {
    for (const [name, by] of Object.entries(chart.follow.cut)) desim.made[name] = () => cut(desim.rows[name], by);
    for (const [name, counts] of Object.entries(chart.follow.counts)) {
      desim.made[name] = () => (partial() ? bars(counts) : desim.rows[name]);
      desim.made[`${name}_marks`] = () => (partial() ? marks(counts) : desim.rows[`${name}_marks`]);
    }
  }

  async function show(chart) {
    const view = desim.views.get(chart.id);
    if (!view) return;
    if (chart.follow.axis) view.signal("since", now.since).signal("until", now.until);
    for (const name of chart.data) if (desim.made[name]) view.data(name, desim.made[name]());
    await view.runAsync();
    desim.tidy(chart.id);
    frame(chart);
  }

  async function showAll() {
    const mine = asked;
    say();
    for (const chart of following) await show(chart);
    document.documentElement.dataset.shown = String(mine);
    due = mine === asked ? 0 : requestAnimationFrame(showAll);
  }

  function move(since, until) {
    now.since = Math.max(0, Math.min(since, until));
    now.until = Math.min(whole.end, Math.max(since, until));
    if (!(now.until - now.since > whole.end * 1e-9)) [now.since, now.until] = [0, whole.end];
    document.documentElement.dataset.asked = String(++asked);
    due ||= requestAnimationFrame(showAll);
  }

  // ---- dragging: a frame over the panel, whose ends are the window's

  // Each panel over time: where it lies in its chart, and the stretch of time that it shows.
  function panels(chart) {
    const place = desim.place(chart.id);
    const found = place.querySelectorAll(`${chart.spec.vconcat ? ".role-scope" : ".root"} > g > path.background`);
    const origin = place.getBoundingClientRect();
    return [...found].map((panel, at) => {
      const box = panel.getBoundingClientRect();
      const overview = at === 0 && chart.follow.overview;
      return {
        left: box.left - origin.left, top: box.top - origin.top, width: box.width, height: box.height,
        since: overview ? 0 : now.since, until: overview ? whole.end : now.until,
      };
    });
  }

  function framed(chart) {
    const place = desim.place(chart.id);
    let found = place.parentNode.querySelector(":scope > .chart > .brush");
    if (!found) {
      found = document.createElement("div");
      found.className = "brush";
      place.append(found);
    }
    return found;
  }

  function lay(brush, panel, left, right) {
    Object.assign(brush.style, {
      left: `${left}px`, width: `${right - left}px`, top: `${panel.top}px`, height: `${panel.height}px`, display: "block",
    });
  }

  // The window in the overview, for as long as it is a part of the run.
  function frame(chart) {
    const brush = framed(chart);
    brush.style.display = "none";
    if (!chart.follow.overview || !partial()) return;
    const [panel] = panels(chart);
    const at = (time) => panel.left + (panel.width * time) / whole.end;
    lay(brush, panel, at(now.since), at(now.until));
  }

  function drags(chart) {
    const place = desim.place(chart.id);
    place.classList.add("drags");
    place.addEventListener("pointerdown", (down) => {
      if (down.button !== 0) return;
      const origin = place.getBoundingClientRect();
      const at = (event) => event.clientX - origin.left;
      const height = down.clientY - origin.top;
      const inside = (panel) => height >= panel.top && height <= panel.top + panel.height &&
        at(down) >= panel.left - 4 && at(down) <= panel.left + panel.width + 4;
      const panel = panels(chart).find(inside);
      if (!panel) return;
      const clamp = (x) => Math.max(panel.left, Math.min(panel.left + panel.width, x));
      const time = (x) => panel.since + ((panel.until - panel.since) * (x - panel.left)) / panel.width;
      const from = clamp(at(down));
      const brush = framed(chart);
      const follow = (event) => lay(brush, panel, Math.min(from, clamp(at(event))), Math.max(from, clamp(at(event))));
      const stop = new AbortController();
      window.addEventListener("pointermove", follow, { signal: stop.signal });
      window.addEventListener("pointercancel", () => { stop.abort(); frame(chart); }, { signal: stop.signal });
      window.addEventListener("pointerup", (up) => {
        stop.abort();
        const to = clamp(at(up));
        if (Math.abs(to - from) >= 4) move(time(from), time(to));
        else frame(chart);
      }, { signal: stop.signal });
    });
    place.addEventListener("dblclick", () => { if (partial()) move(0, whole.end); });
  }

  for (const chart of following) if (chart.follow.axis) drags(chart);
  desim.dressers.push((chart) => { if (chart.follow) frame(chart); });

  // ---- the bar that says which window is shown, and takes one from the keyboard

  const bar = document.createElement("form");
  bar.className = "window tools";
  bar.setAttribute("aria-label", "Time window");
  const fields = ["from", "to"].map((word) => {
    const label = document.createElement("label");
    const field = document.createElement("input");
    Object.assign(field, { type: "number", min: "0", max: String(whole.end), step: "any", name: word });
    label.append(word === "from" ? "Time window from " : "to ", field, word === "to" ? ` ${whole.unit}` : "");
    bar.append(label);
    return field;
  });
  const show_ = button("Show", "submit");
  const reset = button("Whole run", "button");
  const said = document.createElement("output");
  said.setAttribute("aria-live", "polite");
  bar.append(show_, reset, said);
  reset.addEventListener("click", () => move(0, whole.end));
  bar.addEventListener("submit", (event) => {
    event.preventDefault();
    const [since, until] = fields.map((field) => Number(field.value));
    move(since, until);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && partial()) move(0, whole.end);
  });

  function button(text, type) {
    return Object.assign(document.createElement("button"), { textContent: text, type });
  }

  const short = (value) => String(Number(value.toPrecision(4)));

  function say() {
    bar.classList.toggle("partial", partial());
    reset.hidden = !partial();
    [fields[0].value, fields[1].value] = [short(now.since), short(now.until)];
    const counts = following.find((chart) => chart.follow.counts.staleness)?.follow.counts.staleness;
    if (!partial() || !counts) {
      said.textContent = "Drag in any chart over time; a double click shows the whole run again.";
      return;
    }
    const number = sums(counts).reduce((total, row) => total + row[2], 0);
    said.textContent = `About ${number.toLocaleString("en")} updates arrived then.`;
  }

  say();
  document.getElementById("summary").after(bar);
})();
