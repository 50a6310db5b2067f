// Answers, step by step: the step under the pointer, or under the arrow keys, in words.
"use strict";
(() => {
  const PHASES = ["draft", "verify", "accept", "other"];
  const starts = new WeakMap(); // answer -> where each of its blocks starts, in characters

  const words = (block) => {
    if (block.title) {
      block.dataset.words = block.title; // or the browser would show it too
      block.removeAttribute("title");
    }
    return block.dataset.words || "";
  };

  // "step 3: 4 tokens, 63 nodes, depth 5, 120 + 450 + 20 + 3 µs" in a sentence with a bar
  function describe(answer, block) {
    const out = answer.closest(".turn").querySelector(".readout");
    const said = words(block);
    const times = (said.match(/([\d+ ]+) µs$/) || ["", ""])[1].split("+").map(Number);
    const [head, ...rest] = said.replace(/, [\d+ ]+ µs$/, "").split(", ");
    const name = document.createElement("b");
    name.textContent = answer.parentElement.querySelector("h5 > span").textContent.trim();
    out.replaceChildren(name, `: ${head}`);
    if (times.length !== PHASES.length) {
      out.append(rest.map((part) => `, ${part}`).join(""));
      return;
    }
    const total = times.reduce((sum, time) => sum + time, 0);
    const ms = (time) => (time / 1000).toFixed(time < 10_000 ? 2 : 1);
    const parts = PHASES.map((phase, at) => `${phase} ${ms(times[at])}`).join(", ");
    out.append(`${rest.map((part) => `, ${part}`).join("")}. ${ms(total)} ms: ${parts}.`);
    out.append(bar(times, total));
  }

  function bar(times, total) {
    const space = "http://www.w3.org/2000/svg";
    const drawn = document.createElementNS(space, "svg");
    drawn.setAttribute("aria-hidden", "true");
    const keys = new Map([...document.querySelectorAll(".scale li")].map((item) =>
      [item.textContent.trim(), item.querySelector("rect")?.getAttribute("fill")]));
    let left = 0;
    times.forEach((time, at) => {
      const part = document.createElementNS(space, "rect");
      const share = total ? 100 * time / total : 0;
      part.setAttribute("x", `${left}%`);
      part.setAttribute("width", `${share}%`);
      part.setAttribute("height", "100%");
      part.setAttribute("fill", keys.get(PHASES[at]) || "currentColor");
      left += share;
      drawn.append(part);
    });
    return drawn;
  }

  function places(answer) {
    if (!starts.has(answer)) {
      let at = 0;
      starts.set(answer, [...answer.children].map((block) => {
        const start = at;
        at += block.textContent.length;
        return start;
      }));
    }
    return starts.get(answer);
  }

  // The block of an answer in which a character stands
  function holding(answer, character) {
    const found = places(answer);
    let low = 0, high = found.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (found[middle] <= character) low = middle; else high = middle - 1;
    }
    return answer.children[low];
  }

  // Up to where an answer has the reference's text
  function shared(answer) {
    const at = [...answer.children].findIndex((block) => block.classList.contains("differs"));
    return at < 0 ? Infinity : places(answer)[at];
  }

  function show(answer, block) {
    const all = answer.closest(".columns");
    all.querySelectorAll(".now, .twin").forEach((old) => old.classList.remove("now", "twin"));
    block.classList.add("now");
    describe(answer, block);
    const at = places(answer)[[...answer.children].indexOf(block)];
    all.querySelectorAll(".blocks").forEach((other) => {
      if (other === answer || other.children.length < 2) return;
      if (at <= Math.min(shared(answer), shared(other))) holding(other, at).classList.add("twin");
    });
  }

  document.addEventListener("mouseover", (event) => {
    const block = event.target.closest?.(".blocks > bdi");
    if (block && (block.title || block.dataset.words)) show(block.parentElement, block);
  });

  document.addEventListener("focusin", (event) => {
    const answer = event.target;
    if (!answer.matches?.(".blocks") || !answer.matches(":focus-visible")) return;
    const block = answer.querySelector(".now") || answer.querySelector("bdi[title], bdi[data-words]");
    if (block) show(answer, block);
  });

  document.addEventListener("keydown", (event) => {
    const answer = event.target;
    if (!answer.matches?.(".blocks") || event.ctrlKey || event.metaKey || event.altKey) return;
    const now = answer.querySelector(".now");
    if (!now) return;
    const back = answer.dir === "rtl" ? "ArrowRight" : "ArrowLeft";
    const on = answer.dir === "rtl" ? "ArrowLeft" : "ArrowRight";
    const next = {
      [on]: now.nextElementSibling, [back]: now.previousElementSibling,
      Home: answer.firstElementChild, End: answer.lastElementChild,
    }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    if (!next) return;
    show(answer, next);
    next.scrollIntoView({ block: "nearest", behavior: "instant" });
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".legend .numbers");
    if (!button) return;
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(on));
    button.closest("section").classList.toggle("numbered", on);
  });

  // On paper: the turns that are open, whatever else is unfolded for it.
  addEventListener("beforeprint", () => {
    document.querySelectorAll(".turn:not([open])").forEach((turn) => { turn.dataset.shut = ""; });
  });
  addEventListener("afterprint", () => {
    document.querySelectorAll(".turn[data-shut]").forEach((turn) => { delete turn.dataset.shut; });
  });
})();
