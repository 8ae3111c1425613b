// One pane: settings, the tokens, how fast they come, and a replay.

import { answerView } from "./answer.js";
import { Canvas } from "./canvas.js";
import { Controls } from "./controls.js";
import { drawn, element } from "./elements.js";
import { counted, written } from "./numbers.js";
import { Player } from "./player.js";
import { Recording } from "./recording.js";
import { requestBody, titled } from "./settings.js";
import { completion, ServerError } from "./stream.js";

const sentence = (text) => text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
const STATES = { idle: "ready", waiting: "waiting for the server", denoising: "denoising", done: "done", stopped: "stopped", failed: "failed" };

export class Pane {
  recording = null;
  #abort = null;
  #frame = null;
  #retry = null;
  #bars = 0;

  /* on: {ended(pane), needsKey(), retry(pane)}. */
  constructor(index, preferred, on) {
    this.name = `pane ${"AB"[index]}`;
    this.on = on;
    this.title = element("span", {});
    this.badge = element("span", { class: "state" });
    this.error = element("div", { class: "notice", role: "alert", hidden: true });
    this.meters = Object.fromEntries(["tokens/s", "forwards/token", "forwards", "seconds"].map((label) => [label, element("dd", {}, "–")]));
    this.canvas = new Canvas();
    this.canvas.node.setAttribute("aria-label", `Tokens of ${this.name}; arrow keys go from one to the next`);
    this.player = new Player(this.name, (n) => this.#show(n));
    this.position = element("span", { class: "position soft" });
    this.histogram = drawn("svg", { class: "histogram", preserveAspectRatio: "none", "aria-hidden": "true" });
    this.bar = element("i");
    this.answer = element("div", { class: "final" });
    this.text = element("pre", { class: "text", tabindex: 0, role: "region", "aria-label": `Text of ${this.name}` });
    this.note = element("p", { class: "soft note" });
    this.result = element("div", { class: "result", hidden: true }, this.answer, element("details", {}, element("summary", {}, "Whole text"), this.text), this.note);
    this.controls = new Controls(this.name, preferred, () => this.#settingsChanged());
    this.settings = element("details", { class: "settings-box", open: innerWidth > 860 }, element("summary", {}, "Settings"), this.controls.node);
    this.node = element(
      "article",
      { class: `pane run-${index}`, "aria-label": this.name[0].toUpperCase() + this.name.slice(1) },
      element("h2", {}, element("span", { class: "swatch", "aria-hidden": "true" }), this.title, this.badge),
      this.settings,
      this.error,
      element("dl", { class: "meters" }, Object.entries(this.meters).map(([label, value]) => element("div", {}, element("dt", {}, label), value))),
      element("div", { class: "progress", "aria-hidden": "true" }, this.bar),
      this.canvas.node,
      (this.replay = element("div", { class: "replay" }, this.player.button, element("div", { class: "track" }, this.histogram, this.player.slider), this.position)),
      this.result,
    );
    this.#settingsChanged();
  }

  get running() {
    return this.recording?.running ?? false;
  }

  /* Whether it holds a completion, whole or stopped, that another can be held against. */
  get comparable() {
    return this.recording?.steps.length > 0 && ["done", "stopped"].includes(this.recording.state);
  }

  #settingsChanged() {
    if (!this.controls) return; // they are being made
    if (!this.recording) {
      this.title.textContent = titled(this.controls.settings);
      this.canvas.masks(this.controls.settings.length, this.controls.settings.block_length);
      this.#state("idle");
      this.player.slider.disabled = this.player.button.disabled = true;
    }
  }

  /* Asks for a completion and draws it as it comes. Never throws: what goes wrong is shown. */
  async run(problem, seed, key) {
    this.stop();
    const settings = { ...this.controls.settings }, abort = new AbortController();
    const recording = new Recording(problem, settings, performance.now());
    [this.#abort, this.recording, this.#bars] = [abort, recording, 0];
    this.#forget();
    this.title.textContent = titled(settings);
    this.canvas.record(recording);
    this.histogram.replaceChildren();
    this.player.record(recording);
    this.#state("waiting");
    const clock = setInterval(() => this.#draw(recording), 100);
    let state = "done", trouble = null;
    try {
      for await (const { event, data } of completion(requestBody(problem, settings, seed), key, abort.signal)) {
        if (event === "denoising") recording.denoised(data, performance.now());
        else recording.chunk(data);
        this.#draw(recording);
      }
    } catch (error) {
      [state, trouble] = abort.signal.aborted ? ["stopped", null] : ["failed", error];
    }
    clearInterval(clock);
    recording.ended(state, performance.now());
    if (this.recording !== recording) return; // another run has taken its place
    cancelAnimationFrame(this.#frame);
    this.#frame = null;
    this.player.update();
    this.canvas.finish();
    this.#state(state);
    this.#write();
    if (trouble) this.#complain(trouble);
    this.on.ended(this);
  }

  stop() {
    this.#abort?.abort();
  }

  /* At most once a frame, however fast the steps come. */
  #draw(recording) {
    if (this.recording !== recording) return;
    this.#frame ??= requestAnimationFrame(() => {
      this.#frame = null;
      if (!recording.running) return;
      this.#state(recording.state);
      this.player.update();
    });
  }

  #show(n) {
    const { recording } = this;
    this.canvas.show(n);
    const { tokens, forwards, seconds } = recording.at(n, performance.now());
    this.meters["tokens/s"].textContent = tokens ? written(tokens / seconds) : "–";
    this.meters["forwards/token"].textContent = tokens ? written(forwards / tokens) : "–";
    this.meters.forwards.textContent = forwards.toLocaleString("en");
    this.meters.seconds.textContent = seconds.toFixed(2);
    const done = n === recording.steps.length && recording.state === "done";
    const committed = recording.steps.slice(0, n).reduce((sum, step) => sum + step.positions.length, 0);
    this.bar.style.width = `${done ? 100 : (100 * committed) / recording.length}%`;
    this.position.textContent = recording.steps.length ? `step ${n} of ${recording.steps.length}` : "";
    this.#drawBars(n);
  }

  /* Tokens committed at each step, those shown in colour. */
  #drawBars(n) {
    const { steps } = this.recording, bars = this.histogram.children;
    for (; this.#bars < steps.length; this.#bars++) {
      const height = steps[this.#bars].positions.length;
      this.histogram.append(drawn("rect", { x: this.#bars + 0.08, y: -height, width: 0.84, height }));
    }
    const most = Math.max(8, ...steps.map((step) => step.positions.length));
    this.histogram.setAttribute("viewBox", `0 ${-most} ${Math.max(steps.length, 1)} ${most}`);
    for (let k = 0; k < bars.length; k++) bars[k].classList.toggle("shown", k < n);
  }

  #write() {
    const { answer, finish, frame, problem, running, seed, state, version } = this.recording;
    const never = state === "done" ? frame.filter((at) => !at).length : 0;
    this.result.hidden = running || (!answer && state !== "done");
    if (this.result.hidden) return;
    const final = answerView(problem, answer);
    this.answer.replaceChildren(...(final ? [element("h3", {}, "Answer"), final] : []));
    this.result.querySelector("details").open = final === null;
    this.text.textContent = answer || "(empty)";
    this.note.textContent = [
      never ? `${never} positions were never denoised: the text had ended before them.` : "",
      finish === "length" ? "The text is as long as was allowed." : "",
      version ? `Version ${version}` + (seed === null ? "." : `, seed ${seed}.`) : "",
    ].filter(Boolean).join(" ");
  }

  #state(state) {
    this.badge.textContent = STATES[state];
    this.node.dataset.state = state;
    this.canvas.node.setAttribute("aria-busy", String(state === "waiting" || state === "denoising"));
  }

  #forget() {
    clearInterval(this.#retry);
    this.error.hidden = true;
    this.result.hidden = true;
  }

  #complain(error) {
    const known = error instanceof ServerError, { status = 0, retryAfter } = error;
    const came = this.recording.steps.length ? ` ${counted(this.recording.steps.at(-1).tokens, "token")} had come.` : "";
    const head = status === 401 ? "The server wants an API key."
      : status === 429 ? "Too many requests (429)."
      : status >= 500 ? `The server failed (${status}).`
      : status >= 400 ? `The server refused (${status}).`
      : known ? "" : "The page failed.";
    const again = element("button", { type: "button", click: () => this.on.retry(this) }, "Try again");
    this.error.replaceChildren(element("strong", {}, head), ` ${sentence(error.message)}${came} `, again);
    this.error.hidden = false;
    if (status === 401) this.on.needsKey();
    if (retryAfter) this.#countDown(again, Math.ceil(retryAfter));
    if (!known) console.error(error);
  }

  #countDown(button, seconds) {
    const tick = () => {
      button.disabled = seconds > 0;
      button.textContent = seconds > 0 ? `Try again in ${seconds} s` : "Try again";
      if (seconds-- <= 0) clearInterval(this.#retry);
    };
    clearInterval(this.#retry);
    this.#retry = setInterval(tick, 1000);
    tick();
  }
}
