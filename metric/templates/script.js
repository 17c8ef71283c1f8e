"use strict";
(() => {
  // Tables: a click on a heading sorts in descending order, the next one in ascending order. Text
  // sorts alphabetically; undefined numbers sort last.
  const number = (text) => parseFloat(text.replace("−", "-"));
  const value = (row, column) => row.cells[column].textContent.trim();
  function sort(table, column) {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const text = (r) => Number.isNaN(number(value(r, column)));
    const words = column === 0 ? rows.some(text) : rows.every(text);
    const before = heads[column].getAttribute("aria-sort");
    const up = before === "none" ? words || column === 0 : before === "descending";
    const sign = up ? 1 : -1;
    const keyed = rows.map((r) => [words ? value(r, column) : number(value(r, column)), r]);
    keyed.sort(([a], [b]) => {
      if (words) { return sign * a.localeCompare(b, undefined, { numeric: true }); }
      if (Number.isNaN(a) || Number.isNaN(b)) { return Number.isNaN(a) - Number.isNaN(b); }
      return sign * (a - b);
    });
    body.append(...keyed.map(([, r]) => r));
    heads.forEach((h) => h.setAttribute("aria-sort", "none"));
    heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, i) => head.addEventListener("click", () => sort(table, i)));
  }
  for (const input of document.querySelectorAll("[data-filter]")) {
    const rows = [...document.getElementById(input.dataset.filter).tBodies[0].rows];
    const shown = document.querySelector(`[data-shown="${input.dataset.filter}"]`);
    input.addEventListener("input", () => {
      const text = input.value.trim().toLowerCase();
      rows.forEach((r) => { r.hidden = !value(r, 0).toLowerCase().includes(text); });
      shown.textContent = text ? `${rows.filter((r) => !r.hidden).length} of ${rows.length}` : "";
    });
  }

  // Precision-recall curves of a class: new points for the same lines. Each point is two base-64
  // digits, 4,096 steps of precision.
  const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  const data = document.getElementById("recall-data").textContent;
  const { frame: [low, high], curves } = JSON.parse(data);
  const select = document.getElementById("recall-class");
  const lines = [...document.querySelectorAll("#recall .series")];
  const mean = lines.map((l) => l.getAttribute("points"));
  function points(text) {
    const out = [];
    for (let i = 0; 2 * i < text.length; i += 1) {
      const y = (digits.indexOf(text[2 * i]) * 64 + digits.indexOf(text[2 * i + 1])) / 4095;
      const at = (axis, v) => Math.round(low[axis] + (high[axis] - low[axis]) * v);
      out.push(`${at(0, i / 100)},${at(1, y)}`);
    }
    return out.join(" ");
  }
  const text = (i) => (select.value === "" ? mean[i] : points(curves[select.value][i]));
  const draw = () => lines.forEach((l, i) => l.setAttribute("points", text(i)));
  select.addEventListener("change", draw);
  // Browsers keep the selection when the page is reloaded.
  draw();

  // Layers of boxes over the images.
  for (const box of document.querySelectorAll("[data-layer]")) {
    const images = document.getElementById("images").classList;
    const show = () => images.toggle(`hide-${box.dataset.layer}`, !box.checked);
    box.addEventListener("change", show);
    show();
  }
})();
