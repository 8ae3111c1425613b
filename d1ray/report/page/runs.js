// How runs are told apart: a colour each, and a dash, so that colour is not all.

const RUN_COLOURS = 8;
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "1 2", "5 2 1 2 1 2", "14 3 3 3"];

function swatch(run) {
  return element("span", { class: `swatch run-${run % RUN_COLOURS}`, "aria-hidden": "true" });
}
