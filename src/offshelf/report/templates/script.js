"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("scripted");

  // Sorting: rows carry their number in data-v; a row without one comes last in both directions.
  const numberIn = (row, column) => {
    const value = row.cells[column].dataset.v;
    return value === undefined ? NaN : Number(value);
  };
  const compareNumbers = (a, b, sign) => {
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return sign * (a - b);
  };
  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const body = table.tBodies[0];
    const original = [...body.rows];
    for (const button of table.tHead.querySelectorAll("button")) {
      button.addEventListener("click", () => {
        const head = button.closest("th");
        const turned = { ascending: "descending", descending: "ascending" };
        const direction = turned[head.getAttribute("aria-sort")] ?? button.dataset.first;
        for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", direction);
        const sign = direction === "ascending" ? 1 : -1;
        const column = head.cellIndex;
        const text = (row) => row.cells[column].textContent.trim();
        const compare = button.dataset.kind === "text"
          ? (a, b) => sign * text(a).localeCompare(text(b), undefined, { numeric: true })
          : (a, b) => compareNumbers(numberIn(a, column), numberIn(b, column), sign);
        body.append(...[...original].sort(compare));
      });
    }
  }

  // Filtering: every word must occur.
  for (const input of document.querySelectorAll("input[data-filters]")) {
    const rows = [...document.getElementById(input.dataset.filters).tBodies[0].rows];
    const status = document.querySelector(`[data-counts="${input.dataset.filters}"]`);
    input.closest(".filter").hidden = false;
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = row.dataset.text.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      status.textContent = `${shown} of ${rows.length} ${status.dataset.noun}`;
    });
  }

  // Copying: a page opened from disk may be refused the clipboard; then the text is at least selected.
  for (const button of document.querySelectorAll("button[data-copies]")) {
    const source = document.getElementById(button.dataset.copies);
    const status = button.parentElement.querySelector("[data-copied]");
    button.hidden = false;
    button.addEventListener("click", async () => {
      getSelection().selectAllChildren(source);
      try {
        await navigator.clipboard.writeText(source.textContent);
        status.textContent = "Copied";
      } catch {
        status.textContent = document.execCommand("copy") ? "Copied" : "Selected: press Ctrl+C";
      }
    });
  }

  // Paper cannot be unfolded: everything is open while printing.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const one of closed) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of closed) one.open = false;
  });
})();
