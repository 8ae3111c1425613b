// Replays recordings: a step slider each, and one clock for those that play together.

import { choice, element } from "./elements.js";

export const SPEEDS = [["1", "1 step a second"], ["4", "4 steps a second"], ["8", "8 steps a second"], ["16", "16 steps a second"], ["32", "32 steps a second"], ["real", "as it ran"]];
let speed = "8";
const playing = new Set();

/* The choice of the speed of all players; those that play go on with it. */
export function speedChoice() {
  return choice(SPEEDS, speed, (value) => {
    speed = value;
    playTogether([...playing]);
  }, { "aria-label": "Speed of replays" });
}

/* The number of steps done `ms` after the start of a replay from step `from`. */
function reached(recording, from, ms) {
  if (speed !== "real") return from + Math.floor((ms * Number(speed)) / 1000);
  const begin = from ? recording.steps[from - 1].at : 0;
  return recording.steps.findLastIndex((step) => step.at <= begin + ms) + 1;
}

/* Starts them at the same time, each from where it is, or from the start if it is at the end. */
export function playTogether(players) {
  const now = performance.now();
  players.filter((player) => player.recording?.steps.length).forEach((player) => player.play(now));
}

export class Player {
  #timer = null;
  #onShow;
  shown = 0;
  following = true; // shows the newest step as it comes in
  recording = null;

  /* onShow(n): called when n steps are to be shown. */
  constructor(label, onShow) {
    this.#onShow = onShow;
    this.button = element("button", { type: "button", class: "play", "aria-label": `Play ${label}`, click: () => (this.playing ? this.pause() : this.play(performance.now())) });
    this.slider = element("input", { type: "range", min: 0, max: 0, value: 0, step: 1, "aria-label": `Denoising step of ${label}`, input: () => this.seek(Number(this.slider.value)) });
    this.label = label;
    this.pause();
  }

  get playing() {
    return this.#timer !== null;
  }

  record(recording) {
    this.pause();
    [this.recording, this.following, this.shown] = [recording, true, 0];
    this.update();
  }

  /* After the recording has grown or ended. */
  update() {
    const { steps, running } = this.recording;
    this.slider.max = steps.length;
    this.slider.disabled = this.button.disabled = !steps.length;
    if (running) this.button.disabled = true;
    this.show(this.following ? steps.length : this.shown);
  }

  seek(n) {
    this.pause();
    this.show(n);
    this.following = n >= this.recording.steps.length;
  }

  show(n) {
    this.shown = n;
    this.slider.value = n;
    this.slider.setAttribute("aria-valuetext", `step ${n} of ${this.recording.steps.length}`);
    this.#onShow(n);
  }

  play(start) {
    this.pause();
    if (this.shown >= this.recording.steps.length) this.show(0);
    const from = this.shown;
    const tick = (now) => {
      const n = Math.min(Math.max(reached(this.recording, from, Math.max(now - start, 0)), from), this.recording.steps.length);
      if (n !== this.shown) this.show(n);
      if (n >= this.recording.steps.length) return this.pause();
      this.#timer = requestAnimationFrame(tick);
    };
    this.#timer = requestAnimationFrame(tick);
    playing.add(this);
    this.#name(true);
  }

  pause() {
    cancelAnimationFrame(this.#timer);
    this.#timer = null;
    playing.delete(this);
    this.#name(false);
  }

  #name(playing) {
    this.button.textContent = playing ? "Pause" : "Play";
    this.button.setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${this.label}`);
  }
}
