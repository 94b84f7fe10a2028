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

// A band of a curve is shown or hidden by its method in the legend.
for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", shown);
    const line = button.dataset.line;
    button.closest("figure").querySelector(`.band[data-line="${line}"]`).toggleAttribute("hidden", !shown);
  });
}

// A drawing is enlarged by a click or Enter, a map beside the whole image.
const dialog = document.querySelector("dialog");
for (const frame of document.querySelectorAll(".frame-of[role=button]")) {
  const enlarge = () => {
    const whole = frame.closest(".row").querySelector(".whole .frame-of");
    const shown = [...new Set([whole, frame])].map((one) => {
      const part = document.createElement("div");
      part.append(one.cloneNode(true), one.parentElement.querySelector("figcaption").cloneNode(true));
      part.firstChild.removeAttribute("tabindex");
      return part;
    });
    dialog.querySelector("figure").replaceChildren(...shown);
    dialog.showModal();
  };
  frame.addEventListener("click", enlarge);
  frame.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // else the same key closes the dialog, whose button has the focus now
    enlarge();
  });
}
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

// Tables with more columns than fit say so at their edge.
const tellMore = (table) => {
  const left = table.scrollWidth - table.clientWidth - table.scrollLeft;
  table.parentElement.classList.toggle("more", left > 4);
};
for (const table of document.querySelectorAll(".scroll")) {
  table.addEventListener("scroll", () => tellMore(table));
  new ResizeObserver(() => tellMore(table)).observe(table);
}
