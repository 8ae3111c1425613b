// The page: a problem, two panes that run it, and what they share.

import { comparison, outcome } from "./comparison.js";
import { byId, element } from "./elements.js";
import { examplesFor } from "./examples.js";
import { counted } from "./numbers.js";
import { Pane } from "./pane.js";
import { playTogether, speedChoice } from "./player.js";
import { DECODINGS, defaultsOf, lengths, titled } from "./settings.js";
import { models } from "./stream.js";
import { switchTheme } from "./theme.js";
import { binKeys } from "./tokens.js";

const KEY = "d1ray-key";
let served = [];
let key = kept();

const PREFERRED = [
  (usual) => ({ decoding: DECODINGS[usual].scheduled ? usual : "low_confidence" }),
  (usual) => ({ decoding: DECODINGS[usual].scheduled ? "threshold" : usual }),
];
const panes = PREFERRED.map((preferred, index) => new Pane(index, preferred, { ended, needsKey: () => showKeyForm(true), retry }));

function shownPanes() {
  return byId("compare").checked ? panes : panes.slice(0, 1);
}

function seed() {
  const text = byId("seed").value.trim();
  return text === "" ? null : Math.min(Math.max(Math.trunc(Number(text)), 0), 2 ** 32 - 1);
}

async function run(event) {
  event?.preventDefault();
  const problem = byId("problem").value;
  if (!problem.trim()) return byId("problem").focus();
  if (!served.length && !(await loadModels())) return;
  byId("comparison").replaceChildren();
  byId("comparison").hidden = true;
  say(shownPanes().length > 1 ? "Both panes run." : "Running.");
  scrollToTokens();
  const runs = shownPanes().map((pane) => pane.run(problem, seed(), key));
  busy();
  await Promise.all(runs);
}

/* On a phone to the first pane; elsewhere as little as shows the tokens. */
function scrollToTokens() {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches, behavior = calm ? "auto" : "smooth";
  if (innerWidth <= 860) byId("panes").scrollIntoView({ behavior });
  else panes[0].replay.scrollIntoView({ behavior, block: "nearest" });
}

async function retry(pane) {
  if (!served.length && !(await loadModels())) return;
  const going = pane.run(byId("problem").value, seed(), key);
  busy();
  await going;
}

function busy() {
  const shown = shownPanes(), running = shown.some((pane) => pane.running);
  byId("stop").disabled = !running;
  byId("replay").disabled = running || !shown.some((pane) => pane.recording?.steps.length);
}

function ended(pane) {
  busy();
  say(summary(pane));
  const shown = shownPanes();
  if (shown.length > 1 && shown.every((one) => one.comparable)) {
    const recordings = shown.map((one) => one.recording);
    comparison(recordings, byId("comparison"));
    const { ratio, text } = outcome(recordings);
    say(`${summary(pane)} ${ratio > 1 ? `${ratio.toFixed(1)} times ` : ""}${text}`);
  }
}

function summary({ recording }) {
  const { tokens, forwards, seconds } = recording.at(recording.steps.length);
  const how = { done: "is done", stopped: "was stopped", failed: "failed" }[recording.state];
  return `${titled(recording.settings)} ${how}: ${counted(tokens, "token")}, ${forwards} forward passes, ${seconds.toFixed(1)} seconds.`;
}

function say(text) {
  byId("said").textContent = text;
}

function complain(text) {
  byId("trouble").textContent = text;
  byId("trouble").hidden = false;
}

async function loadModels() {
  try {
    served = await models(key);
    byId("trouble").hidden = true;
  } catch (error) {
    served = [];
    complain((error.status === 401 ? "The server wants an API key. " : "") + error.message);
    if (error.status === 401) showKeyForm(true);
    return false;
  }
  const choices = lengths(served[0]), { gen_length } = defaultsOf(served[0]);
  const length = choices.findLast((one) => one <= gen_length) ?? choices[0];
  byId("length").replaceChildren(...choices.map((value) => element("option", { value, selected: value === length }, String(value))));
  panes.forEach((pane) => pane.controls.serve(served, length));
  offerExamples(served[0]);
  const version = served[0].version === null ? "" : `, version ${served[0].version}`;
  byId("served").textContent = served.map(({ id }) => id).join(", ") + version;
  return true;
}

function offerExamples(model) {
  const examples = examplesFor(model), problem = byId("problem");
  const offer = (text) => {
    problem.value = text;
    problem.focus();
  };
  byId("examples").replaceChildren(...examples.map(({ name, problem: text }) => element("button", { type: "button", class: "chip", click: () => offer(text) }, name)));
  problem.value ||= examples[0].problem;
}

function kept() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // a browser that keeps nothing
  }
}

function useKey(value) {
  key = value;
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch { /* as above */ }
}

function showKeyForm(open) {
  byId("key-form").hidden = !open;
  byId("key-button").setAttribute("aria-expanded", String(open));
  if (open) byId("key").focus();
}

function compare() {
  const two = byId("compare").checked;
  panes[1].node.hidden = !two;
  byId("panes").classList.toggle("one", !two);
  if (!two) panes[1].stop();
  byId("comparison").hidden = !two || !byId("comparison").hasChildNodes();
  busy();
}

function main() {
  switchTheme();
  byId("panes").append(...panes.map((pane) => pane.node));
  byId("legend").append(
    element("span", { class: "key" }, element("span", { class: "token masked", "aria-hidden": "true" }), "masked"),
    ...binKeys(),
    element("span", { class: "key" }, element("span", { class: "token end", "aria-hidden": "true" }, "∎"), "end of the text"),
  );
  if (/Mac|iPhone|iPad/.test(navigator.platform)) byId("shortcut").textContent = "⌘ ↵";
  byId("composer").addEventListener("submit", run);
  byId("stop").addEventListener("click", () => panes.forEach((pane) => pane.stop()));
  byId("compare").addEventListener("change", compare);
  byId("replay").addEventListener("click", () => playTogether(shownPanes().map((pane) => pane.player)));
  byId("replays").append(speedChoice());
  byId("length").addEventListener("change", () => panes.forEach((pane) => pane.controls.resize(Number(byId("length").value))));
  byId("new-seed").addEventListener("click", () => { byId("seed").value = crypto.getRandomValues(new Uint16Array(1))[0]; });
  byId("key-button").addEventListener("click", () => showKeyForm(byId("key-form").hidden));
  byId("key-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const typed = byId("key").value.trim();
    if (/[^\x21-\x7e]/.test(typed)) return complain("A key holds nothing but ASCII letters, digits and signs.");
    useKey(typed);
    if (await loadModels()) { showKeyForm(false); byId("problem").focus(); }
  });
  byId("forget").addEventListener("click", () => { byId("key").value = ""; useKey(""); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run(event);
  });
  loadModels().finally(() => { document.documentElement.dataset.ready = "true"; });
}

main();
