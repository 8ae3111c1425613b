// A completion as it came out of the masks: which token was committed at which step, and how sure the model was.

const BINS = [
  [0.5, "below 0.5"],
  [0.8, "0.5 – 0.8"],
  [0.95, "0.8 – 0.95"],
  [0.99, "0.95 – 0.99"],
  [Infinity, "0.99 and above"],
];
const SPEEDS = ["1", "2", "4", "8", "16", "32"];

let stopPlaying = () => {}; // of the playback that is on the page
let speed = "4";

/* completion: tokens as text, ends (whether each ends the completion), the step of each (-1: never) and its
   probability in thousandths. */
function playback({ tokens, ends, steps, probability }) {
  stopPlaying();
  const places = tokens.map((_, i) => i).filter((i) => steps[i] >= 0);
  if (!places.length) return element("p", { class: "empty" }, "The steps of this completion are not recorded.");
  const last = Math.max(...places.map((i) => steps[i])) + 1;
  let frame = last, timer = null, at = null;

  const spans = places.map((i) => {
    const bin = BINS.findIndex(([below]) => probability[i] / 1000 < below);
    const text = ends[i] ? "⟨end⟩" : tokens[i].replaceAll("\n", "↵").replaceAll("\t", "⇥");
    return element("span", { class: `token bin-${bin}` + (ends[i] ? " end" : ""), pointerenter: () => inspect(places.indexOf(i)) }, text);
  });
  const tip = element("div", { class: "tip", hidden: true, "aria-live": "polite" });
  const strip = element(
    "div",
    {
      class: "strip",
      tabindex: 0,
      role: "group",
      "aria-label": "Tokens; arrow keys go from one to the next",
      pointerleave: () => inspect(null),
      blur: () => inspect(null),
      keydown: (event) => {
        const from = at ?? (event.key === "ArrowLeft" ? spans.length : -1);
        const to = { ArrowRight: from + 1, ArrowLeft: from - 1, Home: 0, End: spans.length - 1 }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        inspect(Math.min(Math.max(to, 0), spans.length - 1));
      },
    },
    places.flatMap((i, k) => [spans[k], ...(tokens[i].includes("\n") && !ends[i] ? [element("br")] : [])]),
    tip,
  );
  const play = element("button", { type: "button", class: "primary", click: toggle }, "Play");
  const slider = element("input", { type: "range", min: 0, max: last, value: last, step: 1, "aria-label": "Denoising step", input: () => { stop(); show(Number(slider.value)); } });
  const status = element("output", { class: "status" });
  const pace = choice(SPEEDS.map((s) => [s, `${s} steps a second`]), speed, (value) => {
    speed = value;
    if (timer !== null) { stop(); start(); }
  }, { "aria-label": "Speed" });

  function show(to) {
    frame = to;
    slider.value = to;
    let committed = 0;
    spans.forEach((span, k) => {
      const step = steps[places[k]];
      span.classList.toggle("masked", step >= to);
      span.classList.toggle("fresh", to < last && step === to - 1);
      committed += step < to;
    });
    status.textContent = `step ${to} of ${last}, ${committed} of ${spans.length} tokens`;
    slider.setAttribute("aria-valuetext", status.textContent);
    if (at !== null) inspect(at);
  }

  function start() {
    if (frame >= last) show(0);
    timer = setInterval(() => {
      if (!strip.isConnected) return stop();
      show(frame + 1);
      if (frame >= last) stop();
    }, 1000 / Number(speed));
    play.textContent = "Pause";
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  }

  function toggle() {
    if (timer === null) start();
    else stop();
  }

  function inspect(k) {
    spans[at]?.classList.remove("at");
    at = k;
    tip.hidden = k === null;
    if (k === null) return;
    const span = spans[k], i = places[k], masked = steps[i] >= frame;
    span.classList.add("at");
    tip.replaceChildren(
      element("strong", {}, masked ? "masked" : ends[i] ? "end of the completion" : JSON.stringify(tokens[i])),
      element("div", {}, `position ${i + 1}, committed at step ${steps[i] + 1}`),
      element("div", {}, "probability ", element("b", {}, (probability[i] / 1000).toFixed(3))),
    );
    const wide = strip.clientWidth, left = span.offsetLeft;
    tip.style.top = `${span.offsetTop + span.offsetHeight + 6}px`;
    tip.style.left = left > wide / 2 ? "auto" : `${left}px`;
    tip.style.right = left > wide / 2 ? `${wide - left - span.offsetWidth}px` : "auto";
  }

  stopPlaying = stop;
  show(last);
  const never = tokens.length - places.length;
  return element(
    "div",
    { class: "playback" },
    element("div", { class: "controls" }, play, slider, status, pace),
    strip,
    element("div", { class: "legend" }, element("span", { class: "key" }, element("span", { class: "token masked" }, "mask"), "masked"), BINS.map(([, name], bin) => element("span", { class: "key" }, element("span", { class: `token bin-${bin}` }, "p"), name))),
    never > 0 && element("p", { class: "soft" }, `${never} further positions were never denoised: a finished block held the end.`),
  );
}
