// Every metric as a chart of its own, all runs in each; which metrics, which runs and how smooth is a choice.

const WINDOWS = [1, 3, 5, 10, 25];

function curvesSection(data, state) {
  const names = data.runs.map((run) => run.name);
  const grid = element("div", { class: "charts" });
  const figures = data.curves.map((curve) => {
    const chart = lineChart({ title: curve.title, unit: curve.unit, curves: curve.runs, names }, state);
    state.charts.push(chart);
    const figure = element(
      "figure",
      { hidden: !curve.shown },
      element("figcaption", {}, element("h3", {}, curve.title), element("span", { class: "soft" }, about(curve))),
      chart.node,
      element("p", { class: "band-note" }, curve.band && `Band: ${curve.band}.`),
    );
    grid.append(figure);
    return figure;
  });
  const sections = [...new Set(data.curves.map((curve) => curve.section))];
  const chooser = element(
    "details",
    { class: "chooser" },
    element("summary", {}, "Choose metrics"),
    sections.map((section) =>
      element(
        "fieldset",
        {},
        element("legend", {}, section),
        data.curves.map((curve, i) =>
          curve.section === section &&
          element(
            "label",
            { class: "chip" },
            element("input", {
              type: "checkbox",
              checked: curve.shown,
              "data-metric": curve.key,
              change: (event) => {
                figures[i].hidden = !event.target.checked;
                state.charts.forEach((chart) => chart.draw());
              },
            }),
            curve.title,
          ),
        ),
      ),
    ),
  );
  const smoothing = choice(
    WINDOWS.map((w) => [String(w), w === 1 ? "each step" : `mean of ${w} steps`]),
    "1",
    (value) => {
      state.window = Number(value);
      state.charts.forEach((chart) => chart.draw());
    },
    { id: "smoothing" },
  );
  return [element("div", { class: "controls" }, legend(names, state), labelled("Show", smoothing)), chooser, grid];
}

/* What a metric means, with its unit where the numbers do not carry it. */
function about({ about: meaning, unit }) {
  return ["", "share", "s"].includes(unit) ? meaning : `${unit}; ${meaning}`;
}

/* Which colour and dash is which run; a click hides a run from all charts. */
function legend(names, state) {
  return element(
    "div",
    { class: "legend", role: "group", "aria-label": "Runs" },
    names.map((name, run) => {
      const dashes = DASHES[run % DASHES.length];
      const sample = drawn(
        "svg",
        { width: 30, height: 10, "aria-hidden": "true" },
        drawn("line", { x1: 0, x2: 30, y1: 5, y2: 5, class: `line run-${run % RUN_COLOURS}`, "stroke-dasharray": dashes }),
      );
      if (names.length === 1) return element("span", { class: "key" }, sample, name);
      return element(
        "label",
        { class: "key" },
        element("input", {
          type: "checkbox",
          checked: true,
          change: (event) => {
            if (event.target.checked) state.hidden.delete(run);
            else state.hidden.add(run);
            state.charts.forEach((chart) => chart.draw());
          },
        }),
        sample,
        name,
      );
    }),
  );
}
