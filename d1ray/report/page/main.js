// Unpacks the data, fills the sections, and switches between light and dark.

async function unpack(text) {
  if (typeof DecompressionStream === "undefined") throw new Error("this browser cannot decompress data (DecompressionStream); use a newer one");
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(plain).text());
}

function switchTheme() {
  const root = document.documentElement, button = document.getElementById("theme");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  const name = () => { button.textContent = dark() ? "Light" : "Dark"; };
  try {
    const kept = localStorage.getItem("d1ray-theme");
    if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  } catch { /* a page opened from a file may not keep anything */ }
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    name();
    try { localStorage.setItem("d1ray-theme", root.dataset.theme); } catch { /* as above */ }
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
  name();
}

function put(id, content) {
  if (content) document.getElementById(id).replaceChildren(...content.flat(Infinity).filter(Boolean));
}

async function main() {
  switchTheme();
  try {
    const data = await unpack(document.getElementById("data").textContent.trim());
    const state = { hidden: new Set(), window: 1, charts: [] };
    if (data.curves.length) put("curves-body", curvesSection(data, state));
    if (data.phases.some(Boolean)) put("time-body", phasesSection(data));
    if (data.signs[0].runs.some(Boolean)) put("signs-body", signsSection(data, state));
    put("completions-body", browserSection(data));
    state.charts.forEach((chart) => chart.draw());
    document.documentElement.dataset.ready = "true";
  } catch (error) {
    const trouble = document.getElementById("trouble");
    trouble.hidden = false;
    trouble.textContent = `The curves and completions cannot be shown: ${error.message}.`;
    throw error;
  }
}

main();
