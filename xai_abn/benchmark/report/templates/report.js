"use strict";
// Sort a table by a column: click or press Enter on its heading; again to turn the order. Baselines stay apart.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = heading.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach((h) => h.hasAttribute("aria-sort") && h.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      for (const body of table.tBodies) {
        const rows = [...body.rows].filter((row) => !row.classList.contains("divider"));
        rows.sort((a, b) => compare(a.cells[column], b.cells[column], up));
        body.append(...rows);
      }
    });
  });
}

function compare(a, b, up) {
  const [x, y] = [a, b].map((cell) => cell.dataset.value ?? cell.textContent.trim());
  if (x === "" || y === "") return (x === "") - (y === "");
  const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
  return up ? order : -order;
}
