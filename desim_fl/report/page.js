"use strict";
// Draws every chart of the page from the block "payload", again whenever the colour scheme or the width changes. What
// other scripts add, they add to `desim`: rows that they make themselves (`made`), and what they do to a chart that
// was drawn (`dressers`).
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

  // Panels above each other cannot follow their container by themselves: they get its width less a margin for axes.
  function sized(spec, width, margin) {
    const copy = structuredClone(spec);
    if (!copy.vconcat) return { ...copy, width, autosize: { type: "fit-x", contains: "padding", resize: true } };
    for (const panel of copy.vconcat) panel.width = Math.max(120, width - margin);
    return copy;
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
    const width = place.clientWidth;
    const narrow = width < 420;
    const theme = structuredClone(payload.themes[dark.matches ? "dark" : "light"]);
    theme.axis.labelLimit = narrow ? 84 : 130;
    theme.axisX.tickCount = narrow ? 4 : 8;
    const margin = guess(chart, theme.axis.labelLimit);
    const drawn = await embed(chart, place, theme, sized(chart.spec, width, margin));
    const excess = drawn - width;
    if (chart.spec.vconcat && (excess > 0 || excess < -24)) {
      await embed(chart, place, theme, sized(chart.spec, width, margin + Math.ceil(excess)));
    }
    for (const dress of page.dressers) dress(chart, page.views.get(chart.id));
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

  async function drawAll() {
    const mine = ++turn;
    for (const chart of payload.charts) {
      if (mine !== turn) return;
      await draw(chart);
    }
    if (mine === turn) document.documentElement.dataset.drawn = String(mine);
  }

  let width = document.documentElement.clientWidth;
  let timer = 0;
  window.addEventListener("resize", () => {
    if (document.documentElement.clientWidth === width) return;
    width = document.documentElement.clientWidth;
    clearTimeout(timer);
    timer = setTimeout(drawAll, 150);
  });
  dark.addEventListener("change", drawAll);
  document.addEventListener("DOMContentLoaded", drawAll);
  return page;
})();
