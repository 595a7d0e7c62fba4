// Opens a page in Chromium without a network and prints what happened as one JSON object.
// Usage: node check.mjs CHROMIUM FILE SCHEME WIDTH [SCREENSHOT]
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const [executablePath, file, scheme, width, screenshot] = process.argv.slice(2);
const address = pathToFileURL(file).href;
const found = { requests: [], console: [], errors: [] };
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
try {
  const context = await browser.newContext({
    colorScheme: scheme, offline: true, viewport: { width: Number(width), height: 900 },
    javaScriptEnabled: scheme !== "no-preference",
  });
  const page = await context.newPage();
  page.on("request", (request) => request.url() !== address && found.requests.push(request.url().slice(0, 200)));
  page.on("console", (message) => found.console.push(`${message.type()}: ${message.text()}`));
  page.on("pageerror", (error) => found.errors.push(String(error)));
  page.on("dialog", (dialog) => { found.errors.push(`dialog: ${dialog.message()}`); dialog.dismiss(); });
  const start = Date.now();
  await page.goto(address);
  if (scheme !== "no-preference") {
    await page.waitForFunction(() => document.documentElement.dataset.drawn, null, { timeout: 60_000 });
    found.ready_ms = Date.now() - start;
    found.charts = await page.$$eval(".chart", (places) => places.map((place) => ({
      id: place.id, svgs: place.querySelectorAll("svg").length, height: place.getBoundingClientRect().height,
      marks: place.querySelectorAll("svg path, svg rect, svg line").length, width: place.clientWidth,
      svg_width: place.querySelector("svg")?.getBoundingClientRect().width ?? 0,
      label: place.querySelector("svg")?.getAttribute("aria-label") ?? place.getAttribute("aria-label") ?? "",
    })));
    found.texts = await page.$$eval("svg text", (texts) => [...new Set(texts.map((text) => text.textContent))]);
    found.scroll_width = await page.evaluate(() => document.documentElement.scrollWidth);
    found.background = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    found.axis_colour = await page.evaluate(() => getComputedStyle(document.querySelector(".role-axis-label text")).fill);
    if (screenshot) await page.screenshot({ path: screenshot, fullPage: true });
    await tables(page);
    await audit(page);
    await interact(page);
  } else {
    found.picture = await page.evaluate(() => document.querySelector("img.picture")?.naturalWidth ?? 0);
    if (screenshot) await page.screenshot({ path: screenshot, fullPage: true });
  }
} finally {
  await browser.close();
}
process.stdout.write(JSON.stringify(found));

// Drags over the overview (the timeline below must zoom), points at the upper curve (the lower one must answer), and
// changes the colour scheme (all must be drawn again).
async function interact(page) {
  const shapes = (chart, panel) => page.$$eval(`#chart-${chart} .${panel} .role-mark :is(path, line)`, (shapes) =>
    shapes.map((shape) => ["d", "transform", "opacity"].map((name) => shape.getAttribute(name))).join());
  const overview = page.locator("#chart-timeline .concat_0_group > g > path.background").first();
  if (await overview.count()) {
    const box = await place(overview);
    const before = await shapes("timeline", "gantt_group");
    await page.mouse.move(box.x + box.width * 0.4, box.y + box.height / 2);
    await page.mouse.down();
    await page.mouse.move(box.x + box.width * 0.6, box.y + box.height / 2, { steps: 6 });
    await page.mouse.up();
    await page.waitForTimeout(200);
    found.zoomed = (await shapes("timeline", "gantt_group")) !== before;
  }
  const upper = page.locator("#chart-learning-time .concat_0_group > g > path.background").first();
  if (await upper.count()) {
    const box = await place(upper);
    const before = await shapes("learning-time", "concat_1_group");
    await page.mouse.move(box.x + box.width * 0.5, box.y + box.height / 2, { steps: 4 });
    await page.waitForTimeout(200);
    found.linked = (await shapes("learning-time", "concat_1_group")) !== before;
    found.tooltip = await page.evaluate(() => document.querySelector("#vg-tooltip-element")?.textContent ?? "");
  }
  await page.emulateMedia({ colorScheme: scheme === "dark" ? "light" : "dark" });
  await page.waitForFunction(() => Number(document.documentElement.dataset.drawn) > 1, null, { timeout: 60_000 });
  found.axis_colour_after = await page.evaluate(() => getComputedStyle(document.querySelector(".role-axis-label text")).fill);
}

// Sorts, searches and copies the first table that can be searched, with its own row order for comparison.
async function tables(page) {
  await page.evaluate(() => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
  const search = page.locator('.tools input[type="search"]').first();
  if (!(await search.count())) return;
  const name = (await search.getAttribute("aria-label")).replace("Search rows of ", "");
  const region = page.locator(".scroll", { has: page.locator("table") }).and(page.getByLabel(name, { exact: true })).first();
  const column = () => region.locator("tbody tr:not([hidden])").evaluateAll((rows) => rows.map((row) => row.cells[0].textContent));
  const before = await column();
  const heading = region.locator("thead button").first();
  await heading.click();
  const up = await column();
  await heading.click();
  const down = await column();
  await search.fill(before[0]);
  const left = await region.locator("tbody tr:not([hidden])").evaluateAll((rows) => rows.map((row) => row.textContent));
  await search.fill("");
  await search.locator("..").getByRole("button", { name: "Copy as CSV" }).click();
  await page.waitForTimeout(150);
  found.table = {
    name, before, up, down, wanted: before[0], left, said: (await page.locator(".tools button[data-copied]").first().textContent()),
    copied: Number(await page.locator(".tools button[data-copied]").first().getAttribute("data-copied")),
  };
}

// Accessibility by axe-core: what it finds serious or critical.
async function audit(page) {
  await page.evaluate(readFileSync(new URL("node_modules/axe-core/axe.min.js", import.meta.url), "utf8"));
  const result = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  found.faults = result.violations.filter((fault) => ["serious", "critical"].includes(fault.impact))
    .map((fault) => `${fault.id}: ${fault.nodes.slice(0, 3).map((node) => node.html.slice(0, 160)).join(" | ")}`);
}

async function place(locator) {
  await locator.evaluate((element) => element.scrollIntoView({ block: "center", behavior: "instant" }));
  return locator.boundingBox();
}
