"use strict";
// Draws every chart of the page from the block "payload", those in view first, and again whenever the colour scheme or the
// width changes and for print. What other scripts add, they add to `desim`: rows that they make themselves (`made`), and
// what they do to a chart that was drawn (`dressers`). `data-ready` on the root: all in view are drawn; `data-drawn`: all are.
const desim = (() => {
  const payload = JSON.parse(document.getElementById("payload").textContent);
  const dark = window.matchMedia("screen and (prefers-color-scheme: dark)");
  const rows = {};
  for (const [name, table] of Object.entries(payload.tables)) {
    rows[name] = table.rows.map((row) => Object.fromEntries(table.columns.map((column, at) => [column, row[at]])));
  }
  const page = { payload, rows, views: new Map(), made: {}, signals: {}, dressers: [], chart: null };
  page.chart = (id) => payload.charts.find((chart) => chart.id === id);
  page.place = (id) => document.getElementById(`chart-${id}`);
  let turn = 0;

  const columns = new Map(); // how many entries of its legend fit beside each other, where not all do, by chart and width
  let printing = false;
  const paper = { wide: 660, narrow: 310 }; // pixels on A4 or Letter, whose width the screen does not know

  // Panels above each other cannot follow their container by themselves: they get its width less a margin for axes.
  function sized(spec, width, margin) {
    const copy = limited(structuredClone(spec), { axis: Math.round(width * 0.42), legend: width - 60 });
    const padding = { left: 5, right: 16, top: 5, bottom: 5 }; // the last number of an axis reaches beyond its end
    if (!copy.vconcat) return { ...copy, width, padding, autosize: { type: "fit-x", contains: "padding", resize: true } };
    for (const panel of copy.vconcat) panel.width = Math.max(120, width - margin);
    return copy;
  }

  // Names beside an axis must leave room for what they name, those of a legend must not reach beyond the chart.
  function limited(part, limits) {
    for (const [key, value] of Object.entries(part)) {
      if (value?.labelLimit > limits[key]) value.labelLimit = limits[key];
      if (value && typeof value === "object") limited(value, limits);
    }
    return part;
  }

  // Room for the client names left of the timeline, or for the numbers of an axis.
  function guess(chart, limit) {
    if (!chart.material?.roster) return 46;
    const pen = document.createElement("canvas").getContext("2d");
    pen.font = "12px system-ui, sans-serif";
    const widths = chart.material.roster.map((row) => pen.measureText(row[0]).width);
    return Math.min(Math.max(...widths), limit) + 20;
  }

  async function draw(chart) {
    const place = page.place(chart.id);
    const width = printing ? paper[place.parentNode.classList.contains("wide") ? "wide" : "narrow"] : place.clientWidth;
    const narrow = width < 420;
    const theme = structuredClone(payload.themes[dark.matches && !printing ? "dark" : "light"]);
    theme.axis.labelLimit = narrow ? 96 : 170;
    theme.axisX.tickCount = narrow ? 4 : 8;
    if (narrow) theme.axisX.titleAnchor = "end"; // a long title then reaches left, below the names, and is not cut
    const key = `${chart.id} ${width}`;
    for (const fit of columns.has(key) ? [columns.get(key)] : [0, 3, 2, 1]) {
      if (fit) theme.legend.columns = fit;
      await fitted(chart, place, theme, width);
      columns.set(key, fit);
      if (!overhangs(place)) break;
    }
    place.style.minHeight = "";
    for (const dress of page.dressers) dress(chart, page.views.get(chart.id));
  }

  async function fitted(chart, place, theme, width) {
    const margin = guess(chart, theme.axis.labelLimit);
    const excess = (await embed(chart, place, theme, sized(chart.spec, width, margin))) - width;
    if (chart.spec.vconcat && (excess > 0 || excess < -24)) {
      await embed(chart, place, theme, sized(chart.spec, width, margin + Math.ceil(excess)));
    }
  }

  // Whether a legend reaches beyond its chart, where it would be cut off.
  function overhangs(place) {
    const edge = place.querySelector("svg").getBoundingClientRect().right + 1;
    return [...place.querySelectorAll(".role-legend-label text")].some((text) => text.getBoundingClientRect().right > edge);
  }

  async function embed(chart, place, theme, spec) {
    spec.datasets = Object.fromEntries(chart.data.map((name) => [name, (page.made[name] ?? (() => rows[name]))()]));
    for (const parameter of spec.params ?? []) {
      if (parameter.name in page.signals) parameter.value = page.signals[parameter.name]();
    }
    page.views.get(chart.id)?.finalize();
    const { view } = await vegaEmbed(place, spec, {
      actions: false, ast: true, config: theme, defaultStyle: false, mode: "vega-lite", renderer: "svg",
      tooltip: { disableDefaultStyle: true },
    });
    page.views.set(chart.id, view);
    page.tidy(chart.id);
    return Number(place.querySelector("svg").getAttribute("width"));
  }

  // Vega gives the role of a symbol to groups that have no name of their own; the chart has one, and a table of numbers.
  page.tidy = (id) => {
    for (const group of page.place(id).querySelectorAll('svg [role="graphics-symbol"]:not([aria-label])')) {
      group.removeAttribute("role");
      group.removeAttribute("aria-roledescription");
    }
  };

  // How far a chart is from what the reader sees; 0 = in view.
  function distance(chart) {
    const box = page.place(chart.id).getBoundingClientRect();
    return Math.max(0, box.top - window.innerHeight, -box.bottom);
  }

  // Those in view first, the rest from the nearest on, and the reader may act in between. On paper all of them at once: the
  // browser does not wait for anything but what follows without a pause.
  async function drawAll() {
    const mine = ++turn;
    const left = [...payload.charts];
    while (left.length) {
      const near = printing ? 0 : left.map(distance).reduce((best, far, at, all) => (far < all[best] ? at : best), 0);
      if (!printing && distance(left[near]) > 0) {
        document.documentElement.dataset.ready = String(mine);
        await new Promise((resume) => setTimeout(resume));
      }
      if (mine !== turn) return;
      await draw(left.splice(near, 1)[0]);
      if (mine !== turn) return;
    }
    document.documentElement.dataset.ready = String(mine);
    document.documentElement.dataset.drawn = String(mine);
  }

  // What a chart says, and about how high it will be, until it is there.
  function announce(chart) {
    const place = page.place(chart.id);
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", chart.spec.description);
    const heights = (chart.spec.vconcat ?? [chart.spec]).map((panel) => Number(panel.height) || 200);
    place.style.minHeight = `${heights.reduce((sum, height) => sum + height + 40, 20)}px`;
  }

  function print(begun) {
    printing = begun;
    drawAll();
  }

  let width = document.documentElement.clientWidth;
  let timer = 0;
  window.addEventListener("resize", () => {
    if (printing || document.documentElement.clientWidth === width) return;
    width = document.documentElement.clientWidth;
    clearTimeout(timer);
    timer = setTimeout(drawAll, 150);
  });
  dark.addEventListener("change", () => { if (!printing) drawAll(); });
  window.addEventListener("beforeprint", () => print(true));
  window.addEventListener("afterprint", () => print(false));
  document.addEventListener("DOMContentLoaded", () => {
    payload.charts.forEach(announce);
    drawAll();
  });
  return page;
})();
