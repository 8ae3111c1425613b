// Elements, numbers and small pieces. Text only ever becomes a text node or an attribute's value, so nothing that a
// model wrote can turn into markup.

const RUN_COLOURS = 8;
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "1 2", "5 2 1 2 1 2", "14 3 3 3"]; // so that colour is not all

function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function drawn(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return node;
}

function labelled(label, control) {
  return element("label", { class: "field" }, element("span", {}, label), control);
}

function choice(options, chosen, onChange, attributes = {}) {
  return element(
    "select",
    { ...attributes, change: (event) => onChange(event.target.value) },
    options.map(([value, text]) => element("option", { value, selected: value === chosen }, text)),
  );
}

function written(value, unit) {
  if (value == null) return "–";
  if (unit === "share") return (100 * value).toFixed(1) + " %";
  const size = Math.abs(value);
  const text =
    size >= 1000 ? Math.round(value).toLocaleString("en")
    : size >= 100 ? value.toFixed(0)
    : size >= 1 || size === 0 ? String(Number(value.toFixed(2)))
    : size >= 0.001 ? String(Number(value.toPrecision(3)))
    : value.toExponential(1);
  return unit === "s" ? text + " s" : text;
}

function swatch(run) {
  return element("span", { class: `swatch run-${run % RUN_COLOURS}`, "aria-hidden": "true" });
}
