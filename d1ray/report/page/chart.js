// A line chart: a curve a run, its band, and the values under the pointer or, with the arrow keys, at a cursor.

const MARGIN = { top: 8, right: 12, bottom: 24, left: 50 };
const CHART_HEIGHT = 190;

/* Round numbers that divide [low, high] into about `count` parts. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const scale = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * scale).find((s) => s >= rough * 0.99);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

/* The mean of each value and up to window - 1 before it, with the interval of that mean: errors of steps add up
   as those of independent values do. Where a value is of several steps, from their lowest to their highest. */
function smoothed(curve, window) {
  if (window === 1) return curve;
  const mean = (from, to, of) => {
    let sum = 0;
    for (let i = from; i <= to; i++) sum += of(i);
    return sum / (to - from + 1);
  };
  const result = { steps: curve.steps, values: [] };
  if (curve.low) Object.assign(result, { low: [], high: [] });
  curve.steps.forEach((_, i) => {
    const from = Math.max(0, i - window + 1);
    const value = mean(from, i, (j) => curve.values[j]);
    result.values.push(value);
    if (!curve.low) return;
    if (curve.extremes) {
      result.low.push(Math.min(...curve.low.slice(from, i + 1)));
      result.high.push(Math.max(...curve.high.slice(from, i + 1)));
      return;
    }
    let known = true;
    for (let j = from; j <= i; j++) known &&= curve.low[j] != null;
    const spread = (bound) => Math.sqrt(mean(from, i, (j) => (bound[j] - curve.values[j]) ** 2) / (i - from + 1));
    result.low.push(known ? value - spread(curve.low) : null);
    result.high.push(known ? value + spread(curve.high) : null);
  });
  return result;
}

/* options: title, unit, curves (one a run, or null), names of the runs; state: hidden runs and smoothing window. */
function lineChart({ title, unit, curves, names }, state) {
  const tip = element("div", { class: "tip", hidden: true });
  const spoken = element("div", { class: "hidden", "aria-live": "polite" });
  const picture = drawn("svg", { "aria-hidden": "true", height: CHART_HEIGHT });
  const box = element(
    "div",
    {
      class: "chart",
      tabindex: 0,
      role: "group",
      "aria-label": `${title}: a curve over steps; arrow keys read its values`,
      pointermove: (event) => point(nearest(event.clientX - box.getBoundingClientRect().left)),
      pointerleave: () => point(null),
      blur: () => point(null),
      keydown: moved,
    },
    picture,
    tip,
    spoken,
  );
  let shown = [], steps = [], x = null, y = null, cursor = null, at = null, width = 0;

  function draw() {
    width = box.clientWidth || 320;
    shown = curves.flatMap((curve, run) => (curve && !state.hidden.has(run) ? [{ run, ...smoothed(curve, state.window) }] : []));
    steps = [...new Set(shown.flatMap((curve) => curve.steps))].sort((a, b) => a - b);
    picture.replaceChildren();
    picture.setAttribute("width", width);
    if (!steps.length) {
      picture.append(drawn("text", { x: width / 2, y: CHART_HEIGHT / 2, "text-anchor": "middle", class: "axis" }, "no run is shown"));
      return;
    }
    const [low, high] = extent();
    const first = steps[0], last = steps.at(-1);
    const inner = width - MARGIN.left - MARGIN.right, tall = CHART_HEIGHT - MARGIN.top - MARGIN.bottom;
    x = (step) => MARGIN.left + (last > first ? (inner * (step - first)) / (last - first) : inner / 2);
    y = (value) => MARGIN.top + tall * (1 - (value - low) / (high - low));
    for (const value of ticks(low, high, 4)) {
      picture.append(
        drawn("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value), class: "grid" }),
        drawn("text", { x: MARGIN.left - 6, y: y(value) + 3.5, "text-anchor": "end", class: "axis" }, tickText(value)),
      );
    }
    for (const step of ticks(first, last, Math.max(2, Math.floor(inner / 70))).filter(Number.isInteger)) {
      picture.append(drawn("text", { x: x(step), y: CHART_HEIGHT - 7, "text-anchor": "middle", class: "axis" }, step));
    }
    for (const curve of shown) picture.append(...bandAndLine(curve));
    cursor = drawn("g", { class: "cursor" });
    picture.append(cursor);
    if (at !== null) point(Math.min(at, steps.length - 1));
  }

  function tickText(value) {
    return unit === "share" ? `${Number((100 * value).toFixed(1))} %` : written(value, "");
  }

  function extent() {
    const values = shown.flatMap((c) => [...c.values, ...(c.low ?? []), ...(c.high ?? [])]).filter((v) => v != null);
    let low = Math.min(...values), high = Math.max(...values);
    const rounding = 1e-9 * Math.max(Math.abs(low), Math.abs(high)); // a mean of equal numbers may differ by it
    if (high - low <= rounding) [low, high] = low === 0 ? [0, 1] : [Math.min(0, low), Math.max(0, high)];
    if (low > 0 && low < 0.4 * high) low = 0;
    const room = 0.05 * (high - low);
    const bounded = unit === "share";
    return [low === 0 ? 0 : bounded ? Math.max(0, low - room) : low - room, bounded ? Math.min(1, high + room) : high + room];
  }

  function bandAndLine(curve) {
    const colour = `run-${curve.run % RUN_COLOURS}`, parts = [];
    const place = (i, values) => `${x(curve.steps[i]).toFixed(1)},${y(values[i]).toFixed(1)}`;
    const every = curve.steps.map((_, i) => i);
    const banded = curve.low ? every.filter((i) => curve.low[i] != null) : [];
    if (banded.length > 1) {
      const outline = [...banded.map((i) => place(i, curve.high)), ...banded.reverse().map((i) => place(i, curve.low))];
      parts.push(drawn("polygon", { points: outline.join(" "), class: `band ${colour}` }));
    }
    const dashes = DASHES[curve.run % DASHES.length];
    parts.push(drawn("polyline", { points: every.map((i) => place(i, curve.values)).join(" "), class: `line ${colour}`, "stroke-dasharray": dashes }));
    if (every.length <= 12) {
      for (const i of every) {
        const [cx, cy] = place(i, curve.values).split(",");
        if (every.length <= 3 && curve.low?.[i] != null) parts.push(drawn("line", { x1: cx, x2: cx, y1: y(curve.low[i]), y2: y(curve.high[i]), class: `line ${colour}` }));
        parts.push(drawn("circle", { cx, cy, r: 2.5, class: `dot ${colour}` }));
      }
    }
    return parts;
  }

  function nearest(left) {
    if (!steps.length) return null;
    let best = 0;
    steps.forEach((step, i) => {
      if (Math.abs(x(step) - left) < Math.abs(x(steps[best]) - left)) best = i;
    });
    return best;
  }

  function point(index) {
    at = index;
    tip.hidden = index === null || !steps.length;
    cursor?.replaceChildren();
    if (tip.hidden) return "";
    const step = steps[index];
    cursor.append(drawn("line", { x1: x(step), x2: x(step), y1: MARGIN.top, y2: CHART_HEIGHT - MARGIN.bottom }));
    const lines = [];
    for (const curve of shown) {
      const i = curve.steps.indexOf(step);
      if (i < 0) continue;
      cursor.append(drawn("circle", { cx: x(step), cy: y(curve.values[i]), r: 3.5, class: `dot run-${curve.run % RUN_COLOURS}` }));
      const band = curve.low?.[i] == null ? "" : ` (${written(curve.low[i], unit)} – ${written(curve.high[i], unit)})`;
      lines.push([curve.run, names.length > 1 ? names[curve.run] + " " : "", written(curve.values[i], unit), band]);
    }
    tip.replaceChildren(
      element("strong", {}, `step ${step}`),
      ...lines.map(([run, name, value, band]) => element("div", {}, swatch(run), name, element("b", {}, value), element("span", { class: "soft" }, band))),
    );
    const right = x(step) > width / 2;
    tip.style.left = right ? "auto" : `${x(step) + 10}px`;
    tip.style.right = right ? `${width - x(step) + 10}px` : "auto";
    return `step ${step}: ` + lines.map(([, name, value, band]) => name + value + band).join(", ");
  }

  function moved(event) {
    const to = arrived(event, at, steps.length);
    if (event.key === "Escape") point(null);
    if (to !== undefined) spoken.textContent = point(to);
  }

  new ResizeObserver(() => box.clientWidth !== width && draw()).observe(box);
  return { node: box, draw };
}
