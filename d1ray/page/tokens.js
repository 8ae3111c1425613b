// How a committed token looks and what its tip says.

import { element } from "./elements.js";

const BINS = [
  [0.5, "below 0.5"],
  [0.8, "0.5 – 0.8"],
  [0.95, "0.8 – 0.95"],
  [0.99, "0.95 – 0.99"],
  [Infinity, "0.99 and above"],
];

/* The number of the colour of a token that was committed at this probability. */
export function binOf(probability) {
  return BINS.findIndex(([below]) => probability < below);
}

/* What the colours mean, as parts of a legend. */
export function binKeys() {
  return BINS.map(([, name], bin) => element("span", { class: "key" }, element("span", { class: `token bin-${bin}`, "aria-hidden": "true" }, "p"), name));
}

/* A token's text in one line. */
export function inLine(text) {
  return text.replaceAll("\n", "↵").replaceAll("\t", "⇥");
}

/* Fills the tip of a token of `box` and puts it below the token, on the side that has room. step, probability: null
   where they are not to be told. */
export function tell(tip, box, token, title, { position, step = null, probability = null }) {
  tip.replaceChildren(
    element("strong", {}, title),
    element("div", {}, `position ${position}` + (step === null ? "" : `, committed at step ${step}`)),
    ...(probability === null ? [] : [element("div", {}, "probability ", element("b", {}, probability.toFixed(3)))]),
  );
  const wide = box.clientWidth, left = token.offsetLeft, leftwards = left > wide / 2;
  tip.style.top = `${token.offsetTop + token.offsetHeight + 6}px`;
  tip.style.left = leftwards ? "auto" : `${left}px`;
  tip.style.right = leftwards ? `${wide - left - token.offsetWidth}px` : "auto";
}
