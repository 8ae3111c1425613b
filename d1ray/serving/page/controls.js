// The settings of one pane, as controls. What does not fit together cannot be chosen.

import { choice, element, labelled } from "./elements.js";
import { blockLengths, CACHES, DECODINGS, defaultsOf, fittingSteps } from "./settings.js";

export class Controls {
  #models = [];
  #usual = defaultsOf(undefined);
  #onChange;

  /* name: of the pane; preferred: settings that win over the server's defaults; onChange: called after each. */
  constructor(name, preferred, onChange) {
    this.preferred = preferred;
    this.#onChange = onChange;
    this.node = element("fieldset", { class: "settings" }, element("legend", { class: "hidden" }, `Settings of ${name}`));
    this.settings = { model: "", length: 0 };
    this.serve([], this.#usual.gen_length);
  }

  /* The models that there are now, and the length that is chosen for all panes. */
  serve(models, length) {
    this.#models = models;
    const first = models.find((model) => model.id === this.settings.model) ?? models[0];
    this.#usual = defaultsOf(first);
    const { steps, gen_length, decoding, ...usual } = this.#usual;
    const known = DECODINGS[decoding] ? decoding : "low_confidence";
    this.settings = { ...usual, decoding: known, model: first?.id ?? "", length, steps: (steps * length) / gen_length, ...this.preferred(known) };
    this.#fit();
  }

  resize(length) {
    const steps = (this.settings.steps * length) / this.settings.length;
    Object.assign(this.settings, { length, steps });
    this.#fit();
  }

  #set(changed) {
    Object.assign(this.settings, changed);
    this.#fit(true);
  }

  #fit(draw = true) {
    const { settings } = this, blocks = blockLengths(settings.length, this.#usual.block_length);
    settings.block_length = blocks.findLast((block) => block <= settings.block_length) ?? blocks[0];
    settings.steps = fittingSteps(settings.steps, settings.length, settings.block_length);
    if (draw) this.#draw();
    this.#onChange();
  }

  #draw() {
    const focused = this.node.querySelector(":focus")?.dataset.key;
    const { settings } = this, { scheduled, limit } = DECODINGS[settings.decoding];
    const blocks = blockLengths(settings.length, this.#usual.block_length);
    const named = ([value, { name, detail, scheduled: fixed }]) => [value, fixed ? `${name}, ${detail}` : `${name}: ${detail}`];
    const all = Object.entries(DECODINGS);
    const entries = [
      { group: "As many a step as scheduled", options: all.filter(([, one]) => one.scheduled).map(named) },
      { group: "As many a step as the model is sure of", options: all.filter(([, one]) => !one.scheduled).map(named) },
    ];
    const controls = [
      this.#models.length > 1 && labelled("Model", choice(this.#models.map(({ id }) => [id, id]), settings.model, (model) => this.#set({ model }), { "data-key": "model" })),
      labelled("Decoding", choice(entries, settings.decoding, (decoding) => this.#set({ decoding }), { "data-key": "decoding" })),
      scheduled ? this.#stepsSlider() : this.#slider(limit.key, limit.label, limit),
      labelled("Block, tokens", choice(blocks.map((block) => [block, block]), settings.block_length, (block) => this.#set({ block_length: Number(block) }), { "data-key": "block" })),
      this.#slider("temperature", "Temperature", { min: 0, max: 2, step: 0.05 }),
      labelled("Cache", choice(CACHES, settings.cache, (cache) => this.#set({ cache }), { "data-key": "cache" })),
    ];
    const legend = this.node.firstElementChild;
    this.node.replaceChildren(legend, ...controls.filter(Boolean));
    if (focused) this.node.querySelector(`[data-key="${focused}"]`)?.focus();
  }

  #stepsSlider() {
    const { settings } = this, blocks = settings.length / settings.block_length;
    const about = (steps) => {
      const each = settings.length / steps;
      return `${steps}, ${Number(each.toFixed(1))} token${each === 1 ? "" : "s"} each`;
    };
    return this.#range("steps", "Steps", { min: blocks, max: settings.length, step: blocks }, about);
  }

  #slider(key, label, range) {
    return this.#range(key, label, range, (value) => (range.step < 0.05 ? value.toFixed(2) : String(value)));
  }

  /* While it is dragged only its number changes: redrawing would take it from under the pointer. */
  #range(key, label, { min, max, step }, about) {
    const shown = element("span", { class: "value", "aria-hidden": "true" }, about(this.settings[key]));
    const input = element("input", {
      type: "range", min, max, step, value: this.settings[key], "data-key": key,
      "aria-valuetext": about(this.settings[key]),
      input: () => {
        this.settings[key] = Number(input.value);
        shown.textContent = about(this.settings[key]);
        input.setAttribute("aria-valuetext", shown.textContent);
        this.#fit(false);
      },
    });
    return labelled(label, input, shown);
  }
}
