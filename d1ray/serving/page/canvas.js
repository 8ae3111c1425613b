// The tokens in their places: masks that turn into text, coloured by confidence.

import { arrived, element } from "./elements.js";
import { binOf, inLine, tell } from "./tokens.js";

const END = "∎";

export class Canvas {
  #cells = [];
  #recording = null;
  #shown = 0; // steps
  #fresh = [];
  #at = null; // the position that is looked at

  constructor() {
    this.tip = element("div", { class: "tip", hidden: true, "aria-live": "polite" });
    this.node = element("div", {
      class: "canvas",
      tabindex: 0,
      role: "group",
      pointerover: (event) => event.target.dataset?.p !== undefined && this.#inspect(Number(event.target.dataset.p)),
      pointerleave: () => this.#inspect(null),
      blur: () => this.#inspect(null),
      keydown: (event) => this.#key(event),
    });
  }

  /* Nothing but masks: what a completion of `length` tokens in blocks begins with. */
  masks(length, block) {
    this.#recording = null;
    this.#draw(length, block);
  }

  record(recording) {
    this.#recording = recording;
    this.#draw(recording.length, recording.settings.block_length);
  }

  #draw(length, block) {
    this.#inspect(null);
    [this.#shown, this.#fresh, this.#at] = [0, [], null];
    this.#cells = Array.from({ length }, (_, p) =>
      element("span", { class: "token masked" + (p && p % block === 0 ? " opens" : ""), "aria-hidden": "true", "data-p": p }),
    );
    this.node.replaceChildren(...this.#cells, this.tip);
    this.node.dataset.blocks = Math.ceil(length / block);
  }

  /* Shows the recording after its first n steps; only what differs from what is shown is touched. */
  show(n) {
    const { steps, running, length } = this.#recording;
    if (length !== this.#cells.length) this.record(this.#recording);
    for (let k = this.#shown; k < n; k++) steps[k].positions.forEach((p) => this.#unmask(p));
    for (let k = this.#shown; k > n; k--) steps[k - 1].positions.forEach((p) => this.#cells[p].classList.add("masked"));
    this.#shown = n;
    this.#fresh.forEach((p) => this.#cells[p].classList.remove("fresh"));
    this.#fresh = n && (running || n < steps.length) ? steps[n - 1].positions : [];
    this.#fresh.forEach((p) => this.#cells[p].classList.add("fresh"));
    this.#activeBlock(n);
    if (this.#at !== null) this.#inspect(this.#at);
  }

  /* Masks that are left when it is done were never denoised: the completion had ended before them. */
  finish() {
    const { frame, state } = this.#recording;
    this.#cells.forEach((cell, p) => cell.classList.toggle("unused", state === "done" && !frame[p]));
    this.show(this.#shown);
  }

  #unmask(p) {
    const cell = this.#cells[p], token = this.#recording.tokens[p];
    cell.classList.remove("masked");
    if (cell.dataset.bin !== undefined) return; // written when it was first shown
    cell.dataset.bin = binOf(token.confidence);
    cell.classList.add(`bin-${cell.dataset.bin}`);
    cell.classList.toggle("end", token.end);
    cell.textContent = token.end ? END : inLine(token.text);
    if (token.end || !token.text.includes("\n")) return;
    if (/^\n+[^\n]/.test(token.text)) cell.before(element("br"));
    else cell.after(element("br"));
  }

  #activeBlock(n) {
    const { steps, frame, running, settings, length } = this.#recording;
    const active = running || n < steps.length;
    const next = active ? this.#cells.findIndex((_, p) => !frame[p] || frame[p] > n) : -1;
    const block = next < 0 ? -1 : Math.floor(next / settings.block_length);
    const [from, to] = [block * settings.block_length, (block + 1) * settings.block_length];
    for (let p = 0; p < length; p++) this.#cells[p].classList.toggle("active", block >= 0 && p >= from && p < to);
  }

  #key(event) {
    const to = arrived(event, this.#at, this.#cells.length);
    if (to !== undefined) this.#inspect(to);
  }

  #inspect(p) {
    this.#cells[this.#at]?.classList.remove("at");
    this.#at = p;
    this.tip.hidden = p === null;
    if (p === null) return;
    const cell = this.#cells[p], token = this.#recording?.tokens[p], step = this.#recording?.frame[p] ?? 0;
    const masked = !token || step > this.#shown;
    cell.classList.add("at");
    const title = cell.classList.contains("unused") ? "never denoised" : masked ? "masked" : token.end ? "end of the completion" : JSON.stringify(token.text);
    tell(this.tip, this.node, cell, title, { position: p + 1, step: token ? step : null, probability: masked ? null : token.confidence });
  }
}
