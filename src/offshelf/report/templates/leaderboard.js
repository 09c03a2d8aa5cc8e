"use strict";
(() => {
  // Narrowing: size, family and name hide rows; the task decides which ranks and which score count.
  for (const bar of document.querySelectorAll("[data-narrows]")) {
    const table = document.getElementById(bar.dataset.narrows);
    const rows = [...table.tBodies[0].rows];
    const heads = [...table.tHead.querySelectorAll("th")];
    const status = bar.querySelector("[role=status]");
    const control = (name) => bar.querySelector(`[data-by="${name}"]`);
    bar.hidden = false;

    const narrow = () => {
      const words = control("text").value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = row.dataset.text.toLowerCase();
        const kept = ["tier", "family"].every((key) => ["", row.dataset[key]].includes(control(key).value));
        row.hidden = !kept || !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      status.textContent = `${shown} of ${rows.length} backbones`;
    };

    const brief = () => {
      table.classList.toggle("brief", control("view").value === "0" && !control("intervals").checked);
    };

    const look = () => {
      const view = control("view").value;
      brief();
      for (const one of table.querySelectorAll("[data-view]")) one.hidden = one.dataset.view !== view;
      for (const one of table.querySelectorAll("[data-task]")) one.hidden = view !== "0" && one.dataset.task !== view;
      for (const row of rows) {
        const cell = row.querySelector(".rank");
        const value = cell.querySelector(`[data-view="${view}"]`).dataset.v;
        if (value === undefined) delete cell.dataset.v;
        else cell.dataset.v = value;
      }
      for (const head of heads) head.removeAttribute("aria-sort");
      const leading = view === "0" ? heads[0] : heads.find((head) => head.dataset.task === view);
      leading.querySelector("button").click();
    };

    for (const key of ["tier", "family"]) control(key).addEventListener("change", narrow);
    control("text").addEventListener("input", narrow);
    control("view").addEventListener("change", look);
    control("intervals").addEventListener("change", brief);
    // A browser that goes back may have kept what was chosen.
    narrow();
    brief();
    if (control("view").value !== "0") look();
  }
})();
