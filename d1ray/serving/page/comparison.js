// Two completions side by side: how many tokens each had after so many forward passes, and what that comes to.

import { counted, drawn, element, written } from "./elements.js";
import { playTogether, speedChoice } from "./player.js";
import { titled } from "./settings.js";

const [WIDE, HIGH, LEFT, BOTTOM, TOP, RIGHT] = [640, 190, 38, 30, 12, 14];

export function comparison(panes, place) {
  const recordings = panes.map((pane) => pane.recording);
  const chart = drawn("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": `Tokens committed against forward passes. ${verdict(recordings)}` });
  place.hidden = false;
  place.replaceChildren(
    element(
      "div",
      { class: "comparison-head" },
      element("h2", { id: "comparison-title" }, "Side by side"),
      element("div", { class: "controls" }, element("button", { type: "button", class: "primary", id: "replay", click: () => playTogether(panes.map((pane) => pane.player)) }, "Replay both"), speedChoice()),
    ),
    element("p", { class: "verdict" }, verdict(recordings)),
    element("figure", {}, chart, element("figcaption", { class: "legend" }, recordings.map((one, index) => element("span", { class: `key run-${index}` }, element("span", { class: "swatch", "aria-hidden": "true" }), named(recordings, index))))),
  );
  draw(chart, recordings);
}

/* "Threshold 0.9 took 21 forward passes, Fixed schedule, 64 steps 64: 3.0 times fewer. ..." */
export function verdict(recordings) {
  const of = recordings.map((one) => one.at(one.steps.length));
  const [few, many] = of[0].forwards <= of[1].forwards ? [0, 1] : [1, 0];
  const ratio = of[many].forwards / of[few].forwards;
  const passes =
    ratio === 1 || !Number.isFinite(ratio)
      ? `Both took ${counted(of[0].forwards, "forward pass").replace("passs", "passes")}.`
      : `${named(recordings, few)} took ${of[few].forwards} forward passes where ${named(recordings, many)} took ${of[many].forwards}: ${ratio.toFixed(1)} times fewer.`;
  const same = recordings[0].answer === recordings[1].answer ? "Their texts are the same." : "Their texts differ.";
  return `${passes} ${same}`;
}

function named(recordings, index) {
  const titles = recordings.map((one) => titled(one.settings)), { model } = recordings[index].settings;
  return recordings[0].settings.model === recordings[1].settings.model ? titles[index] : `${titles[index]} of ${model}`;
}

function draw(chart, recordings) {
  const most = Math.max(1, ...recordings.map((one) => one.steps.at(-1)?.forwards ?? 0));
  const length = Math.max(...recordings.map((one) => one.length));
  const x = (forwards) => LEFT + ((WIDE - LEFT - RIGHT) * forwards) / most;
  const y = (tokens) => HIGH - BOTTOM - ((HIGH - BOTTOM - TOP) * tokens) / length;
  for (const share of [0, 0.5, 1]) {
    chart.append(
      drawn("line", { class: "grid", x1: LEFT, x2: WIDE - RIGHT, y1: y(share * length), y2: y(share * length) }),
      drawn("text", { class: "axis", x: LEFT - 6, y: y(share * length) + 4, "text-anchor": "end" }, String(Math.round(share * length))),
      drawn("text", { class: "axis", x: x(share * most), y: HIGH - BOTTOM + 16, "text-anchor": share === 0 ? "start" : share === 1 ? "end" : "middle" }, written(share * most).replace(/\.0+$/, "")),
    );
  }
  chart.append(drawn("text", { class: "axis", x: (LEFT + WIDE - RIGHT) / 2, y: HIGH - 1, "text-anchor": "middle" }, "forward passes"));
  recordings.forEach((one, index) => {
    let committed = 0;
    const points = [[0, 0], ...one.steps.map((step) => [step.forwards, (committed += step.positions.length)])];
    const at = ([forwards, tokens]) => `${x(forwards).toFixed(1)},${y(tokens).toFixed(1)}`;
    const [lastForwards, lastTokens] = points.at(-1);
    chart.append(
      drawn("g", { class: `run-${index}` },
        drawn("polyline", { class: "line", points: points.map(at).join(" "), "stroke-dasharray": index ? "7 3" : null }),
        drawn("circle", { class: "dot", cx: x(lastForwards), cy: y(lastTokens), r: 4 }),
      ),
    );
  });
}
