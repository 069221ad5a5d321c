// Sorting and filtering of the table of experiments. Without it the table keeps its first order.
"use strict";
{
  const table = document.getElementById("experiments");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const find = document.getElementById("find");
  const dataset = document.getElementById("dataset");
  const count = document.getElementById("count");

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value ?? cell.textContent.trim();
  };

  // Numbers by size, text by the alphabet; missing values are last in both orders.
  const compare = (a, b, sign) => {
    const absent = (value) => value === "" || value === "–";
    if (absent(a) || absent(b)) return absent(a) - absent(b);
    const difference = Number(a) - Number(b);
    return sign * (Number.isNaN(difference) ? a.localeCompare(b) : difference);
  };

  const sortBy = (column) => {
    const head = heads[column];
    const descending = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const rows = [...body.rows];
    rows.sort((a, b) => compare(valueOf(a, column), valueOf(b, column), descending ? -1 : 1));
    body.append(...rows);
  };

  const filter = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let visible = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      const wanted = !dataset.value || row.dataset.dataset === dataset.value;
      row.hidden = !(wanted && words.every((word) => text.includes(word)));
      visible += !row.hidden;
    }
    count.textContent = `${visible} of ${body.rows.length} experiments`;
  };

  heads.forEach((head, column) => {
    if (head.classList.contains("unsorted")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.dataset.name = head.textContent.trim();
    head.replaceChildren(button);
    button.addEventListener("click", () => sortBy(column));
  });
  find.addEventListener("input", filter);
  dataset.addEventListener("change", filter);
  document.querySelector(".controls").hidden = false;
  filter();
}
