// What the page does beyond standing there; every table and figure is complete without it.
"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const kept = {
    // Storage may be refused, as for a file in some browsers.
    get(key) { try { return localStorage.getItem(key); } catch { return null; } },
    set(key, value) {
      try { value ? localStorage.setItem(key, value) : localStorage.removeItem(key); } catch { }
    },
  };
  const say = (words) => { document.getElementById("said").textContent = words; };

  // ---- theme: the system's, unless another was chosen; set before anything is painted
  const THEME = "chimera-bench-theme";
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const chosen = kept.get(THEME);
  if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;
  root.classList.add("scripted");

  function theme() {
    const button = document.getElementById("theme");
    const show = () => button.setAttribute("aria-pressed", String(isDark()));
    button.addEventListener("click", () => {
      const wanted = isDark() ? "light" : "dark";
      const asSystem = wanted === (system.matches ? "dark" : "light");
      if (asSystem) delete root.dataset.theme; else root.dataset.theme = wanted;
      kept.set(THEME, asSystem ? null : wanted);
      show();
    });
    system.addEventListener("change", show);
    show();
  }

  // ---- sorting: a button in every head; rows without a value stay last
  function sortable(table) {
    const body = table.tBodies[0];
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      const name = head.querySelector(".name");
      const button = document.createElement("button");
      button.type = "button";
      button.className = "name";
      button.textContent = name.textContent;
      name.replaceWith(button);
      button.addEventListener("click", () => {
        const numeric = head.classList.contains("number");
        const before = head.getAttribute("aria-sort");
        const down = before ? before === "ascending" : numeric;
        sort(body, column, numeric, down);
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        all(".same", body).forEach((cell) => cell.classList.remove("same"));
        say(`Sorted by ${button.textContent}, ${down ? "descending" : "ascending"}`);
      });
    });
  }

  // What a cell sorts and filters by: its key, or else its text
  function valueOf(cell, numeric) {
    const key = cell.dataset.sort ?? cell.textContent;
    return numeric && !Number.isFinite(Number(key)) ? undefined : key;
  }

  function sort(body, column, numeric, down) {
    const words = new Intl.Collator("en", { numeric: true });
    const value = (row) => valueOf(row.cells[column], numeric);
    const rows = [...body.rows].map((row) => [value(row), row]);
    rows.sort(([a], [b]) => {
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      const order = numeric ? a - b : words.compare(a, b);
      return down ? -order : order;
    });
    body.append(...rows.map(([, row]) => row));
  }

  // ---- filters: hide rows, and whole blocks, of what is not ticked
  const hidden = new Map(); // setting -> values that are not ticked

  function filters() {
    const form = document.getElementById("filters");
    if (!form) return;
    const read = () => {
      hidden.clear();
      for (const set of all("fieldset", form)) {
        const off = all("input:not(:checked)", set).map((box) => box.value);
        if (off.length) hidden.set(set.name, new Set(off));
      }
      apply();
    };
    form.addEventListener("change", read);
    form.addEventListener("reset", (event) => {
      event.preventDefault();
      all("input", form).forEach((box) => { box.checked = true; });
      read();
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    all("fieldset", form).forEach((set) => {
      const only = document.createElement("button");
      only.type = "button";
      only.className = "flip";
      only.textContent = "Invert";
      only.setAttribute("aria-label", `Invert ${set.querySelector("legend").textContent}`);
      only.addEventListener("click", () => {
        all("input", set).forEach((box) => { box.checked = !box.checked; });
        read();
      });
      set.append(only);
    });
    read(); // a browser may have kept the ticks of an earlier visit
  }

  function apply() {
    let shown = 0, total = 0;
    for (const block of all("[data-filtered]")) {
      block.hidden = [...hidden].some(([name, off]) => off.has(block.getAttribute(`data-${name}`)));
    }
    for (const table of all("main table")) {
      const heads = all("thead th", table);
      const columns = heads.flatMap((head, at) => head.dataset.filter ? [[at, head.dataset.filter]] : []);
      const rows = [...table.tBodies[0].rows];
      for (const row of rows) {
        row.hidden = columns.some(([at, name]) => {
          const cell = row.cells[at];
          const value = cell.classList.contains("setting") ? cell.textContent : valueOf(cell);
          return hidden.get(name)?.has(value);
        });
      }
      const left = table.closest("[hidden]") ? 0 : rows.filter((row) => !row.hidden).length;
      total += rows.length;
      shown += left;
      const count = table.closest(".table")?.querySelector(".rows");
      if (count) count.textContent = left === rows.length
        ? `${left} row${left === 1 ? "" : "s"}` : `${left} of ${rows.length} rows`;
    }
    root.classList.toggle("filtered", hidden.size > 0);
    document.getElementById("kept").textContent = `${shown} of ${total} rows shown`;
  }

  // ---- contents: the section being read
  function contents() {
    const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
    const seen = new Set();
    const observer = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (isIntersecting) seen.add(target.id); else seen.delete(target.id);
      }
      const first = [...links.keys()].find((id) => seen.has(id));
      links.forEach((link, id) => {
        if (id === first) link.setAttribute("aria-current", "location");
        else link.removeAttribute("aria-current");
      });
    }, { rootMargin: "-10% 0px -60% 0px" });
    links.forEach((_, id) => observer.observe(document.getElementById(id)));
  }

  // ---- a target inside something folded, and print, open it
  function unfold() {
    const reveal = () => {
      const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
      for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
      if (target) target.scrollIntoView();
    };
    addEventListener("hashchange", reveal);
    if (location.hash) reveal();
    const button = document.getElementById("unfold");
    button.addEventListener("click", () => {
      const open = button.getAttribute("aria-pressed") !== "true";
      all(".foldable > details").forEach((one) => { one.open = open; });
      button.setAttribute("aria-pressed", String(open));
    });
    let opened = [];
    addEventListener("beforeprint", () => {
      opened = all("main details:not([open]), header details:not([open])");
      opened.forEach((one) => { one.open = true; });
    });
    addEventListener("afterprint", () => {
      opened.forEach((one) => { one.open = false; });
    });
  }

  document.addEventListener("DOMContentLoaded", () => {
    all(".controls").forEach((controls) => { controls.hidden = false; });
    if (matchMedia("(min-width: 75rem)").matches) all("details.filters").forEach((f) => { f.open = true; });
    theme();
    all(".table table").forEach(sortable);
    filters();
    contents();
    unfold();
  });
})();
