// A completion as it came out of the masks: which token was committed at which step, and how sure the model was.

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
    const about = { class: `token bin-${binOf(probability[i] / 1000)}` + (ends[i] ? " end" : ""), pointerenter: () => inspect(places.indexOf(i)) };
    return element("span", about, ends[i] ? "⟨end⟩" : inLine(tokens[i]));
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
        const to = arrived(event, at, spans.length);
        if (to !== undefined) inspect(to);
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
    const i = places[k], masked = steps[i] >= frame;
    spans[k].classList.add("at");
    const title = masked ? "masked" : ends[i] ? "end of the completion" : JSON.stringify(tokens[i]);
    tell(tip, strip, spans[k], title, { position: i + 1, step: steps[i] + 1, probability: probability[i] / 1000 });
  }

  stopPlaying = stop;
  show(last);
  const never = tokens.length - places.length;
  return element(
    "div",
    { class: "playback" },
    element("div", { class: "controls" }, play, slider, status, pace),
    strip,
    element("div", { class: "legend" }, element("span", { class: "key" }, element("span", { class: "token masked" }, "mask"), "masked"), binKeys()),
    never > 0 && element("p", { class: "soft" }, `${never} further positions were never denoised: a finished block held the end.`),
  );
}
