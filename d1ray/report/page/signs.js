// How often completions show a sign of self-correction, over training.

function signsSection(data, state) {
  const names = data.runs.map((run) => run.name);
  const place = element("div", { class: "charts one" });
  let chart = null;
  function show(name) {
    const sign = data.signs.find((one) => one.name === name);
    state.charts = state.charts.filter((one) => one !== chart);
    chart = lineChart({ title: `Completions with ${name}`, unit: "share", curves: sign.runs, names }, state);
    state.charts.push(chart);
    place.replaceChildren(element("figure", {}, element("figcaption", {}, element("h3", {}, `Completions with ${name}`)), chart.node, element("p", { class: "band-note" }, `Band: ${data.share_band}.`)));
    chart.draw();
  }
  const picker = choice(data.signs.map(({ name }) => [name, name]), data.signs[0].name, show, { id: "sign" });
  const head = element(
    "tr",
    {},
    element("th", { scope: "col" }, "Sign"),
    names.map((name, i) => [
      element("th", { scope: "col", class: "number" }, names.length > 1 ? swatch(i) : null, names.length > 1 ? name : "Completions with it"),
      element("th", { scope: "col", class: "number" }, "Solved of these"),
    ]),
  );
  const rows = data.signs.map(({ name, counts, totals }) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, name, element("span", { class: "soft note" }, counts)),
      totals.map((of) => [
        element("td", { class: "number" }, of.completions ? `${of.with.toLocaleString("en")} (${written(of.with / of.completions, "share")})` : "–"),
        element("td", { class: "number" }, of.with ? written(of.solved / of.with, "share") : "–"),
      ]),
    ),
  );
  show(data.signs[0].name);
  return [
    element("div", { class: "controls" }, legendOnly(names), labelled("Sign", picker)),
    place,
    element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Signs counted" }, element("table", {}, element("thead", {}, head), element("tbody", {}, rows))),
  ];
}

function legendOnly(names) {
  return element("div", { class: "legend" }, names.map((name, run) => element("span", { class: "key" }, swatch(run), name)));
}
