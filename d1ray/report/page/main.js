// Unpacks the data, and fills the sections.

async function unpack(text) {
  if (typeof DecompressionStream === "undefined") throw new Error("this browser cannot decompress data (DecompressionStream); use a newer one");
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(plain).text());
}

function put(id, content) {
  if (content) byId(id).replaceChildren(...content.flat(Infinity).filter(Boolean));
}

async function main() {
  switchTheme();
  try {
    const data = await unpack(byId("data").textContent.trim());
    const state = { hidden: new Set(), window: 1, charts: [] };
    if (data.curves.length) put("curves-body", curvesSection(data, state));
    if (data.phases.some(Boolean)) put("time-body", phasesSection(data));
    if (data.signs[0].runs.some(Boolean)) put("signs-body", signsSection(data, state));
    put("completions-body", browserSection(data));
    state.charts.forEach((chart) => chart.draw());
    document.documentElement.dataset.ready = "true";
  } catch (error) {
    const trouble = byId("trouble");
    trouble.hidden = false;
    trouble.textContent = `The curves and completions cannot be shown: ${error.message}.`;
    throw error;
  }
}

main();
