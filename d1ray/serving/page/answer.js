// The final answer within a text, and a Sudoku's as a grid.

import { element } from "./elements.js";

/* What the last <answer> holds, without \boxed; null where there is none. */
export function finalAnswer(text) {
  const found = [...text.matchAll(/<answer>((?:(?!<answer>)[^])*?)<\/answer>/g)].at(-1)?.[1].trim();
  return found ? (/^\\boxed\{([^]*)\}$/.exec(found)?.[1] ?? found) : null;
}

/* The answer as an element; a 4x4 grid where the problem holds one and the answer is one. */
export function answerView(problem, text) {
  const answer = finalAnswer(text), puzzle = /(?<!\d)[0-4]{16}(?!\d)/.exec(problem)?.[0];
  if (answer === null) return null;
  if (puzzle && /^[1-4]{16}$/.test(answer)) return grid(puzzle, answer);
  return element("p", { class: "answer" }, answer);
}

function grid(puzzle, answer) {
  const right = solves(puzzle, answer);
  const cell = (at) => element("td", { class: puzzle[at] === "0" ? "filled" : puzzle[at] === answer[at] ? "given" : "changed" }, answer[at]);
  const row = (r) => element("tr", {}, [0, 1, 2, 3].map((c) => cell(4 * r + c)));
  return element(
    "div",
    { class: "solved" },
    element("table", { class: "sudoku", "aria-label": "Completed grid" }, element("tbody", {}, [0, 1, 2, 3].map(row))),
    element("p", { class: right ? "right" : "wrong" }, right ? "✓ solved" : "✗ not a solution"),
  );
}

export function solves(puzzle, answer) {
  const four = [0, 1, 2, 3];
  const units = four.flatMap((u) => [
    four.map((k) => 4 * u + k),
    four.map((k) => 4 * k + u),
    four.map((k) => 8 * (u >> 1) + 2 * (u & 1) + 4 * (k >> 1) + (k & 1)),
  ]);
  return units.every((unit) => new Set(unit.map((at) => answer[at])).size === 4) && [...puzzle].every((digit, at) => digit === "0" || digit === answer[at]);
}
