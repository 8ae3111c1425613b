// Two completions side by side: how many tokens each had after so many forward passes, and what that comes to.

import { drawn, element } from "./elements.js";
import { written } from "./numbers.js";
import { titled } from "./settings.js";

const [HIGH, LEFT, BOTTOM, TOP, RIGHT] = [190, 40, 34, 12, 8];

export function comparison(recordings, place) {
  const { ratio, few, text } = outcome(recordings), shown = ratio > 1;
  const chart = drawn("svg", { height: HIGH, role: "img", "aria-label": "Tokens committed against forward passes" });
  const figure = element("figure", {}, chart);
  place.hidden = false;
  place.replaceChildren(
    element(
      "div",
      { class: "outcome" },
      element("h2", { id: "comparison-title" }, "Side by side"),
      element("p", { class: "verdict" }, shown && element("strong", { class: `ratio run-${few}` }, `${ratio.toFixed(1)}×`), shown && " ", text),
      element("p", { class: "legend" }, recordings.map((one, index) => element("span", { class: `key run-${index}` }, line(index), named(recordings, index)))),
    ),
    figure,
  );
  new ResizeObserver(() => draw(chart, recordings, figure.clientWidth)).observe(figure);
}

/* How many times fewer forward passes the cheaper one took, which it is, and a text that goes on from that number. */
export function outcome(recordings) {
  const passes = recordings.map((one) => one.at(one.steps.length).forwards);
  const few = passes[0] <= passes[1] ? 0 : 1, many = 1 - few;
  const ratio = passes[few] ? passes[many] / passes[few] : 1;
  const said = ratio > 1
    ? `fewer forward passes: ${passes[few]} by “${named(recordings, few)}”, ${passes[many]} by “${named(recordings, many)}”.`
    : `Both took ${passes[0]} forward passes.`;
  const whole = recordings.every((one) => one.state === "done");
  const same = recordings[0].answer === recordings[1].answer ? "The texts are the same." : "The texts differ.";
  return { ratio, few, text: `${said} ${whole ? same : "Not both were done."}` };
}

function named(recordings, index) {
  const { settings } = recordings[index];
  return recordings[0].settings.model === recordings[1].settings.model ? titled(settings) : `${titled(settings)}, ${settings.model}`;
}

function line(index) {
  return drawn("svg", { width: 26, height: 10, "aria-hidden": "true" }, drawn("line", { class: "line", x1: 1, x2: 25, y1: 5, y2: 5, "stroke-dasharray": index ? "7 3" : null }));
}

function draw(chart, recordings, wide) {
  const most = Math.max(1, ...recordings.map((one) => one.steps.at(-1)?.forwards ?? 0));
  const length = Math.max(...recordings.map((one) => one.length));
  const x = (forwards) => LEFT + ((wide - LEFT - RIGHT) * forwards) / most;
  const y = (tokens) => HIGH - BOTTOM - ((HIGH - BOTTOM - TOP) * tokens) / length;
  chart.setAttribute("viewBox", `0 0 ${wide} ${HIGH}`);
  chart.replaceChildren(
    ...[0, 0.5, 1].flatMap((share) => [
      drawn("line", { class: "grid", x1: LEFT, x2: wide - RIGHT, y1: y(share * length), y2: y(share * length) }),
      drawn("text", { class: "axis", x: LEFT - 6, y: y(share * length) + 4, "text-anchor": "end" }, Math.round(share * length)),
      drawn("text", { class: "axis", x: x(share * most), y: HIGH - BOTTOM + 15, "text-anchor": ["start", "middle", "end"][2 * share] }, written(share * most).replace(/\.0+$/, "")),
    ]),
    drawn("text", { class: "axis", x: (LEFT + wide - RIGHT) / 2, y: HIGH - 4, "text-anchor": "middle" }, "tokens committed after so many forward passes"),
    ...recordings.map((one, index) => curve(one, index, x, y)),
  );
}

function curve({ steps }, index, x, y) {
  let committed = 0;
  const points = [[0, 0], ...steps.map((step) => [step.forwards, (committed += step.positions.length)])];
  const [forwards, tokens] = points.at(-1);
  return drawn(
    "g",
    { class: `run-${index}` },
    drawn("polyline", { class: "line", points: points.map(([f, t]) => `${x(f).toFixed(1)},${y(t).toFixed(1)}`).join(" "), "stroke-dasharray": index ? "7 3" : null }),
    drawn("circle", { class: "dot", cx: x(forwards), cy: y(tokens), r: 4.5 }),
  );
}
