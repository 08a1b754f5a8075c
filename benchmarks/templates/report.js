// The page needs no script. This one opens the record that a number links to, and sorts a table by a clicked heading.
"use strict";

function reveal() {
  const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  if (!target) return;
  for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
  target.scrollIntoView();
}
addEventListener("hashchange", reveal);
reveal();

function sort(table, place, heading) {
  const falling = heading.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const key = (row) => {
    const cell = row.cells[place];
    const data = cell.querySelector("data");
    const text = data ? data.value : cell.textContent.trim();
    const number = parseFloat(text.replaceAll(",", ""));
    return [Number.isNaN(number), number, text];
  };
  const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
  const compare = ([a], [b]) =>
    a[0] !== b[0] ? a[0] - b[0] : (a[0] ? a[2].localeCompare(b[2]) : a[1] - b[1]) * (falling ? -1 : 1);
  for (const [, row] of rows.sort(compare)) table.tBodies[0].append(row);
}
for (const table of document.querySelectorAll("table[data-file]")) {
  [...table.tHead.rows[0].cells].forEach((heading, place) => {
    heading.classList.add("sortable");
    heading.title = "sort by this column";
    heading.addEventListener("click", () => sort(table, place, heading));
  });
}
