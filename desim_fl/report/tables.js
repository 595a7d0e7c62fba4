"use strict";
// Every table of numbers can be sorted by a click on a heading, searched, and copied as CSV. Without this script the
// tables stand there as they are.
(() => {
  const collator = new Intl.Collator("en", { numeric: true });
  const dash = "\u2013";

  function value(cell) {
    const text = cell.textContent.trim();
    if (text === dash || text === "") return null;
    const number = Number(text.replace(/[,\u2009\u00a0%]/g, ""));
    return Number.isNaN(number) ? text : number;
  }

  // Numbers before words, what is missing last in either direction.
  function compare(a, b, sign) {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a === "number" && typeof b === "number") return sign * (a - b);
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return sign * collator.compare(a, b);
  }

  function sort(table, column, header) {
    const body = table.tBodies[0];
    const up = header.getAttribute("aria-sort") !== "ascending";
    const keyed = [...body.rows].map((row, at) => [value(row.cells[column]), at, row]);
    keyed.sort((a, b) => compare(a[0], b[0], up ? 1 : -1) || a[1] - b[1]);
    body.append(...keyed.map((entry) => entry[2]));
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
  }

  function csv(table) {
    const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const rows = [table.tHead.rows[0], ...[...table.tBodies[0].rows].filter((row) => !row.hidden)];
    return rows.map((row) => [...row.cells].map((cell) => {
      const text = cell.textContent.trim();
      return quoted(text === dash ? "" : text);
    }).join(",")).join("\r\n") + "\r\n";
  }

  async function copy(table, button) {
    const text = csv(table);
    let done = false;
    try {
      await navigator.clipboard.writeText(text);
      done = true;
    } catch { // a page opened from a file may not have the clipboard: a selection does
      const area = document.createElement("textarea");
      area.value = text;
      area.setAttribute("readonly", "");
      button.after(area);
      area.select();
      done = document.execCommand("copy");
      area.remove();
    }
    button.textContent = done ? "Copied" : "Could not copy";
    button.dataset.copied = String(text.length);
    setTimeout(() => { button.textContent = "Copy as CSV"; }, 2000);
  }

  function search(table, field) {
    const wanted = field.value.trim().toLowerCase();
    for (const row of table.tBodies[0].rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  }

  function equip(table) {
    const region = table.closest(".scroll");
    const name = region.getAttribute("aria-label");
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => sort(table, column, header));
    });
    const tools = document.createElement("div");
    tools.className = "tools";
    if (table.tBodies[0].rows.length > 8) {
      const field = document.createElement("input");
      field.type = "search";
      field.placeholder = "Search rows";
      field.setAttribute("aria-label", `Search rows of ${name}`);
      field.addEventListener("input", () => search(table, field));
      tools.append(field);
    }
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy as CSV";
    button.addEventListener("click", () => copy(table, button));
    tools.append(button);
    region.before(tools);
  }

  for (const table of document.querySelectorAll(".scroll > table:not(.facts)")) equip(table);
})();
