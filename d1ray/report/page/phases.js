// Where the actors' time went: stacked bars a step, and the whole run as one bar and a table.

const PHASE_NAMES = {
  load: "load weights",
  generate: "generate",
  logprob: "log-probs",
  score: "score",
  learn: "learn",
  publish: "publish",
};
const MOST_BARS = 120;
const BARS_HEIGHT = 170;

function phasesSection(data) {
  const peak = Math.max(...data.phases.flatMap((run) => (run ? binned(run).map((bar) => bar.total) : [])), 1e-9);
  const key = element(
    "div",
    { class: "legend" },
    Object.entries(PHASE_NAMES).map(([phase, name]) => element("span", { class: "key" }, element("span", { class: `swatch phase-${phase}` }), name)),
  );
  return [
    key,
    data.phases.map((run, i) => run && element("div", { class: "phases" }, data.runs.length > 1 && element("h3", {}, swatch(i), data.runs[i].name), phaseBars(run, peak, data.runs[i].name), phaseTable(run))),
  ];
}

/* At most MOST_BARS bars: each the mean of as many places of the columns as that takes. */
function binned(run) {
  const size = Math.ceil(run.steps.length / MOST_BARS), bars = [];
  for (let from = 0; from < run.steps.length; from += size) {
    const to = Math.min(from + size, run.steps.length);
    const mean = (values) => values.slice(from, to).reduce((sum, v) => sum + v, 0) / (to - from);
    const phases = Object.keys(PHASE_NAMES).map((phase) => [phase, mean(run.phases[phase])]);
    bars.push({ first: run.steps[from], last: run.last[to - 1], phases, total: phases.reduce((sum, [, v]) => sum + v, 0), wall: mean(run.wall) });
  }
  return bars;
}

function phaseBars(run, peak, name) {
  const bars = binned(run);
  const tip = element("div", { class: "tip", hidden: true });
  const spoken = element("div", { class: "hidden", "aria-live": "polite" });
  const picture = drawn("svg", { height: BARS_HEIGHT, "aria-hidden": "true" });
  let width = 0, at = null;
  const box = element(
    "div",
    {
      class: "chart",
      tabindex: 0,
      role: "group",
      "aria-label": `${name}: seconds by phase in each step; arrow keys read them`,
      pointermove: (event) => point(Math.floor(((event.clientX - box.getBoundingClientRect().left - MARGIN.left) / inner()) * bars.length)),
      pointerleave: () => point(null),
      blur: () => point(null),
      keydown: (event) => {
        const to = arrived(event, at, bars.length);
        if (to !== undefined) spoken.textContent = point(to);
      },
    },
    picture,
    tip,
    spoken,
  );
  const inner = () => width - MARGIN.left - MARGIN.right;
  const y = (value) => BARS_HEIGHT - MARGIN.bottom - ((BARS_HEIGHT - MARGIN.top - MARGIN.bottom) * value) / peak;

  function draw() {
    width = box.clientWidth || 320;
    picture.setAttribute("width", width);
    picture.replaceChildren();
    for (const value of ticks(0, peak, 4)) {
      picture.append(
        drawn("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value), class: "grid" }),
        drawn("text", { x: MARGIN.left - 6, y: y(value) + 3.5, "text-anchor": "end", class: "axis" }, written(value, "s")),
      );
    }
    const each = inner() / bars.length;
    bars.forEach((bar, i) => {
      let bottom = 0;
      for (const [phase, seconds] of bar.phases) {
        const height = y(bottom) - y(bottom + seconds);
        if (height > 0.05) picture.append(drawn("rect", { x: MARGIN.left + i * each, width: Math.max(each - (each > 3 ? 1 : 0), 0.5), y: y(bottom + seconds), height, class: `phase-${phase}` }));
        bottom += seconds;
      }
    });
    const labels = Math.max(2, Math.floor(inner() / 60)), apart = Math.ceil(bars.length / labels);
    bars.forEach((bar, i) => {
      if (i % apart === 0) picture.append(drawn("text", { x: MARGIN.left + (i + 0.5) * each, y: BARS_HEIGHT - 7, "text-anchor": "middle", class: "axis" }, bar.first));
    });
  }

  function point(index) {
    const bar = bars[index];
    at = bar ? index : null;
    tip.hidden = !bar;
    if (!bar) return "";
    const title = bar.first === bar.last ? `step ${bar.first}` : `steps ${bar.first} – ${bar.last}, mean`;
    tip.replaceChildren(
      element("strong", {}, title),
      ...bar.phases.map(([phase, seconds]) => element("div", {}, element("span", { class: `swatch phase-${phase}` }), PHASE_NAMES[phase] + " ", element("b", {}, written(seconds, "s")))),
      element("div", { class: "soft" }, `wall time ${written(bar.wall, "s")}`),
    );
    const centre = MARGIN.left + ((index + 0.5) * inner()) / bars.length, right = centre > width / 2;
    tip.style.left = right ? "auto" : `${centre + 12}px`;
    tip.style.right = right ? `${width - centre + 12}px` : "auto";
    return `${title}: ` + bar.phases.map(([phase, seconds]) => `${PHASE_NAMES[phase]} ${written(seconds, "s")}`).join(", ");
  }

  new ResizeObserver(() => box.clientWidth !== width && draw()).observe(box);
  return box;
}

function phaseTable(run) {
  const totals = Object.keys(PHASE_NAMES).map((phase) => [phase, run.sums[phase]]);
  const whole = totals.reduce((total, [, seconds]) => total + seconds, 0) || 1;
  return element(
    "div",
    { class: "phase-totals" },
    element("div", { class: "stack", "aria-hidden": "true" }, totals.map(([phase, seconds]) => {
      const part = element("i", { class: `phase-${phase}` });
      part.style.width = `${(100 * seconds) / whole}%`;
      return part;
    })),
    element(
      "table",
      {},
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Phase"), element("th", { scope: "col", class: "number" }, "Total"), element("th", { scope: "col", class: "number" }, "Share"))),
      element("tbody", {}, totals.map(([phase, seconds]) => element("tr", {}, element("th", { scope: "row" }, element("span", { class: `swatch phase-${phase}` }), PHASE_NAMES[phase]), element("td", { class: "number" }, written(seconds, "s")), element("td", { class: "number" }, written(seconds / whole, "share"))))),
    ),
    element("p", { class: "soft" }, `Wall time of all steps ${written(run.sums.step, "s")}` + (run.validate ? `, and ${written(run.validate, "s")} of validation.` : ".")),
  );
}
