// Elements and numbers. Text only ever becomes a text node or an attribute's value, so nothing that a model wrote can
// turn into markup.

export function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function drawn(name, attributes = {}, ...children) {
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

let labels = 0;

/* A control below its label and, at the label's right, what else is to be said. */
export function labelled(label, control, ...more) {
  control.id ||= `control-${labels++}`;
  return element("div", { class: "field" }, element("div", { class: "head" }, element("label", { for: control.id }, label), more), control);
}

export function choice(options, chosen, onChange, attributes = {}) {
  const entry = ([value, text]) => element("option", { value, selected: String(value) === String(chosen) }, text);
  return element(
    "select",
    { ...attributes, change: (event) => onChange(event.target.value) },
    options.map((one) => (one.group ? element("optgroup", { label: one.group }, one.options.map(entry)) : entry(one))),
  );
}

export const byId = (id) => document.getElementById(id);

/* A number in three digits or so; "–" where there is none. */
export function written(value) {
  if (value == null || !Number.isFinite(value)) return "–";
  if (value >= 1000) return Math.round(value).toLocaleString("en");
  if (value >= 100) return value.toFixed(0);
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

export function counted(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
