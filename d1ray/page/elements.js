// Elements. Text only ever becomes a text node or an attribute's value, so nothing that a model wrote can turn into
// markup.

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

export const byId = (id) => document.getElementById(id);

let labels = 0;

/* A control below its label and, at the label's right, what else is to be said. */
export function labelled(label, control, ...more) {
  control.id ||= `control-${labels++}`;
  return element("div", { class: "field" }, element("div", { class: "head" }, element("label", { for: control.id }, label), more), control);
}

/* options: [value, text], or {group, options} of those. */
export function choice(options, chosen, onChange, attributes = {}) {
  const entry = ([value, text]) => element("option", { value, selected: String(value) === String(chosen) }, text);
  return element(
    "select",
    { ...attributes, change: (event) => onChange(event.target.value) },
    options.map((one) => (one.group ? element("optgroup", { label: one.group }, one.options.map(entry)) : entry(one))),
  );
}

/* Where an arrow key, Home or End leads from place `at` (null: none yet) of `count`; undefined for any other key. */
export function arrived(event, at, count) {
  const from = at ?? (event.key === "ArrowLeft" ? count : -1);
  const to = { ArrowRight: from + 1, ArrowLeft: from - 1, Home: 0, End: count - 1 }[event.key];
  if (to === undefined || !count) return undefined;
  event.preventDefault();
  return Math.min(Math.max(to, 0), count - 1);
}
