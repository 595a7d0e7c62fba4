// Opens a page in Chromium without a network and prints what happened as one JSON object.
// Usage: node check.mjs CHROMIUM FILE SCHEME WIDTH [SCREENSHOT | act]; with "act" or a screenshot it drags, searches and sorts.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const [executablePath, file, scheme, width, more] = process.argv.slice(2);
const screenshot = more === "act" ? undefined : more;
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
    found.cut = await cut(page);
    found.ready = await page.evaluate(() => Number(document.documentElement.dataset.ready));
    found.texts = await page.$$eval("svg text", (texts) => [...new Set(texts.map((text) => text.textContent))]);
    found.scroll_width = await page.evaluate(() => document.documentElement.scrollWidth);
    found.background = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    found.axis_colour = await page.evaluate(() => getComputedStyle(document.querySelector(".role-axis-label text")).fill);
    if (screenshot) await page.screenshot({ path: screenshot, fullPage: true });
    await tables(page);
    await audit(page);
    if (!more && scheme === "dark") await paper(page);
    if (more) await windows(page);
    if (more) await clients(page);
    await interact(page);
  } else {
    found.picture = await page.evaluate(() => document.querySelector("img.picture")?.naturalWidth ?? 0);
    if (screenshot) await page.screenshot({ path: screenshot, fullPage: true });
  }
} finally {
  await browser.close();
}
process.stdout.write(JSON.stringify(found));

// Texts of charts that reach beyond their chart, where they are cut off.
function cut(page) {
  return page.$$eval(".chart svg text", (texts) => texts.filter((text) => {
    const [inner, outer] = [text.getBoundingClientRect(), text.closest("svg").getBoundingClientRect()];
    return inner.width > 0 && (inner.right > outer.right + 2 || inner.left < outer.left - 2);
  }).map((text) => `${text.closest(".chart").id}: ${text.textContent}`));
}

// As the browser prints: it says so, and lays the page out for paper without waiting for more than what follows at once.
async function paper(page) {
  const before = page.viewportSize();
  const drawn = await page.evaluate(() => {
    window.dispatchEvent(new Event("beforeprint"));
    return Number(document.documentElement.dataset.drawn);
  });
  await page.emulateMedia({ media: "print" });
  await page.setViewportSize({ width: 688, height: 1000 });
  found.paper = await page.evaluate(() => ({
    drawn: Number(document.documentElement.dataset.drawn), scroll_width: document.documentElement.scrollWidth,
    axis_colour: getComputedStyle(document.querySelector(".role-axis-label text")).fill,
    background: getComputedStyle(document.body).backgroundColor,
    charts: [...document.querySelectorAll(".chart")].map((place) => {
      const [svg, box] = [place.querySelector("svg").getBoundingClientRect(), place.getBoundingClientRect()];
      return { id: place.id, left: svg.left - box.left, right: box.right - svg.right, height: svg.height, room: box.height,
        font: 12 * Math.min(svg.width / place.querySelector("svg").viewBox.baseVal.width, svg.height / place.querySelector("svg").viewBox.baseVal.height) };
    }),
  }));
  found.paper.before = drawn;
  found.paper.cut = await cut(page);
  await page.setViewportSize(before);
  await page.emulateMedia({ media: null });
  await page.evaluate(() => window.dispatchEvent(new Event("afterprint")));
  await page.waitForFunction((last) => Number(document.documentElement.dataset.drawn) > last, found.paper.drawn, { timeout: 60_000 });
}

// Points at the upper curve (the lower one must answer), and changes the colour scheme (all must be drawn again).
async function interact(page) {
  const upper = page.locator("#chart-learning-time .concat_0_group > g > path.background").first();
  if (await upper.count()) {
    const box = await place(upper);
    await page.mouse.move(1, 1);
    await page.waitForTimeout(100);
    const before = await shapes(page, "learning-time", ".concat_1_group");
    for (let tries = 0; tries < 40 && !found.linked; tries++) {
      await page.mouse.move(box.x + box.width * (0.5 + 0.01 * (tries % 4)), box.y + box.height / 2, { steps: 4 });
      await page.waitForTimeout(100);
      found.linked = (await shapes(page, "learning-time", ".concat_1_group")) !== before;
    }
    await page.waitForTimeout(200);
    found.tooltip = await page.evaluate(() => document.querySelector("#vg-tooltip-element")?.textContent ?? "");
  }
  const last = await page.evaluate(() => Number(document.documentElement.dataset.drawn));
  await page.emulateMedia({ colorScheme: scheme === "dark" ? "light" : "dark" });
  await page.waitForFunction((last) => Number(document.documentElement.dataset.drawn) > last, last, { timeout: 60_000 });
  found.axis_colour_after = await page.evaluate(() => getComputedStyle(document.querySelector(".role-axis-label text")).fill);
}

function shapes(page, chart, panel = "") {
  return page.$$eval(`#chart-${chart} ${panel} .role-mark :is(path, line)`, (shapes) =>
    shapes.map((shape) => ["d", "transform", "opacity", "fill-opacity"].map((name) => shape.getAttribute(name)).join()).sort().join());
}

// What every chart looks like, by its name.
async function looks(page) {
  const all = {};
  for (const { id } of found.charts) all[id.replace("chart-", "")] = await shapes(page, id.replace("chart-", ""));
  return all;
}

function differing(a, b) {
  return Object.keys(a).filter((name) => a[name] !== b[name]);
}

// Whether two charts look the same but for a pixel or two, by which a layout that is made anew may be narrower.
function alike(a, b) {
  const numbers = /-?\d+(\.\d+)?(e-?\d+)?/g;
  const [left, right] = [a.match(numbers) ?? [], b.match(numbers) ?? []].map((found) => found.map(Number));
  return a.replace(numbers, "#") === b.replace(numbers, "#") && left.every((value, place) => Math.abs(value - right[place]) <= 2);
}

// Drags a window of time out in two charts, goes back to the whole run, and types a window: which charts change?
async function windows(page) {
  if (!(await page.locator("form.window").count())) return;
  const whole = await looks(page);
  const drag = async (chart, panel, from, to) => {
    const box = await place(page.locator(`#chart-${chart} .${panel} > g > path.background`).first());
    await page.mouse.move(box.x + box.width * from, box.y + box.height / 2);
    await page.mouse.down();
    await page.mouse.move(box.x + box.width * to, box.y + box.height / 2, { steps: 6 });
    await page.mouse.up();
    await settled(page);
    return looks(page);
  };
  found.window = { by: {} };
  if (whole.timeline) found.window.by.timeline = differing(whole, await drag("timeline", "concat_0_group", 0.4, 0.6));
  found.window.said = await page.locator("form.window output").textContent();
  found.window.ends = await ends(page);
  found.window.narrow = await page.evaluate(() => document.documentElement.scrollWidth);
  if (screenshot) await page.screenshot({ path: screenshot.replace(".png", "-window.png"), fullPage: true });
  if (whole["learning-time"]) found.window.by.learning = differing(whole, await drag("learning-time", "concat_0_group", 0.1, 0.3));
  await page.keyboard.press("Escape");
  await settled(page);
  const back = await looks(page);
  found.window.after = Object.keys(whole).filter((name) => name !== "learning-time" && !alike(whole[name], back[name]));
  const [low, high] = await ends(page);
  await page.locator('form.window input[name="from"]').fill(String(low + (high - low) * 0.5));
  await page.locator('form.window input[name="to"]').fill(String(low + (high - low) * 0.75));
  await page.locator("form.window").getByRole("button", { name: "Show" }).click();
  await settled(page);
  found.window.by.typed = differing(whole, await looks(page));
  await page.locator("form.window").getByRole("button", { name: "Whole run" }).click();
  await settled(page);
}

function ends(page) {
  return page.locator("form.window input").evaluateAll((fields) => fields.map((field) => Number(field.value)));
}

// Until the page has drawn what was asked for last.
async function settled(page) {
  await page.waitForFunction(() => document.documentElement.dataset.asked === document.documentElement.dataset.shown, null, { timeout: 60_000 });
  await page.waitForTimeout(100);
}

// Until something stays the same for half a second: a machine that is busy draws late.
async function quiet(page, look) {
  for (let last = null, same = 0, tries = 0; same < 5 && tries < 100; tries++) {
    const now = await look();
    same = now === last ? same + 1 : 0;
    last = now;
    await page.waitForTimeout(100);
  }
}

// Orders and searches the clients of the timeline, and picks a leg in its legend.
async function clients(page) {
  const tools = page.locator("#figure-timeline .tools").first();
  if (!(await tools.locator("select").count())) return;
  const shown = async () => (await page.locator("#chart-timeline").getAttribute("data-shown")).split("\n");
  found.clients = { orders: {} };
  for (const name of await tools.locator("option").evaluateAll((options) => options.map((option) => option.value))) {
    await tools.locator("select").selectOption(name);
    await page.waitForTimeout(150);
    found.clients.orders[name] = await shown();
  }
  const wanted = found.clients.orders.number.at(-1);
  await tools.locator('input[type="search"]').fill(wanted);
  await page.waitForTimeout(200);
  found.clients.wanted = wanted;
  found.clients.found = await shown();
  found.clients.rows = await page.$$eval("#chart-timeline .gantt_group .role-axis-label text", (texts) => texts.map((text) => text.textContent));
  await tools.locator('input[type="search"]').fill("nobody is called so");
  await page.waitForTimeout(200);
  found.clients.nobody = await tools.locator("output").textContent();
  await tools.locator('input[type="search"]').fill("");
  await page.waitForFunction((all) => document.querySelector("#chart-timeline").dataset.shown === all, found.clients.orders.first.join("\n"));
  await quiet(page, () => shapes(page, "timeline", ".gantt_group"));
  const entry = page.locator("#chart-timeline .role-legend-symbol path").first();
  const before = await shapes(page, "timeline", ".gantt_group");
  await entry.click({ force: true });
  for (let tries = 0; tries < 40 && !found.clients.picked; tries++) {
    await page.waitForTimeout(100);
    found.clients.picked = (await shapes(page, "timeline", ".gantt_group")) !== before;
  }
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
