// Which settings a pane has, which of their values fit together, and how they are asked for.

// Scheduled decodings commit as many tokens a step as the schedule says; the others as many as their limit allows.
export const DECODINGS = {
  low_confidence: { name: "Fixed schedule", detail: "surest first", scheduled: true },
  maskgit_plus: { name: "Fixed schedule", detail: "surest at the temperature first", scheduled: true },
  topk_margin: { name: "Fixed schedule", detail: "largest margin first", scheduled: true },
  entropy: { name: "Fixed schedule", detail: "least entropy first", scheduled: true },
  random: { name: "Fixed schedule", detail: "random order", scheduled: true },
  threshold: { name: "Threshold", detail: "all that are sure enough", limit: { key: "threshold", label: "Least confidence", min: 0.3, max: 1, step: 0.01 } },
  factor: { name: "Factor", detail: "sure together", limit: { key: "factor", label: "Factor", min: 0.05, max: 4, step: 0.05 } },
  entropy_bound: { name: "Entropy bound", detail: "uncertain together", limit: { key: "entropy_bound", label: "Nats at risk", min: 0.01, max: 2, step: 0.01 } },
};

export const CACHES = [["none", "none, exact"], ["prefix", "prefix"], ["dual", "prefix and suffix"]];

const BUILT_IN = { gen_length: 128, steps: 64, block_length: 32, temperature: 0, decoding: "low_confidence", threshold: 0.9, factor: 1, entropy_bound: 0.1, cache: "none" };
const LENGTHS = [16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024];
const BLOCKS = [4, 8, 16, 32, 64, 128, 256];

export function defaultsOf(model) {
  const said = { ...model?.defaults };
  const gen_length = said.gen_length ?? said.max_tokens ?? BUILT_IN.gen_length;
  const block_length = said.block_length ?? Math.min(BUILT_IN.block_length, gen_length);
  return { ...BUILT_IN, steps: Math.ceil(gen_length / 2), ...said, gen_length, block_length };
}

/* Completion lengths to choose from: round ones and the server's default, as far as its limits allow. */
export function lengths(model) {
  const { max_tokens = Infinity, context = Infinity } = model?.limits ?? {};
  const found = [...LENGTHS, defaultsOf(model).gen_length].filter((length) => length <= max_tokens && length < context);
  return [...new Set(found)].sort((a, b) => a - b);
}

/* Block lengths that divide `length`, the server's default among them if it does. */
export function blockLengths(length, usual) {
  const found = [...BLOCKS, usual, length].filter((block) => block > 0 && block <= length && length % block === 0);
  return [...new Set(found)].sort((a, b) => a - b);
}

/* The nearest number of steps that a fixed schedule can have: a multiple of the blocks, at most a token a step less. */
export function fittingSteps(steps, length, block) {
  const blocks = length / block;
  return Math.min(Math.max(Math.round(steps / blocks), 1) * blocks, length);
}

export function requestBody(problem, settings, seed) {
  const { scheduled, limit } = DECODINGS[settings.decoding];
  const diffusion = { events: true, block_length: settings.block_length, decoding: settings.decoding, cache: settings.cache };
  if (scheduled) diffusion.steps = settings.steps;
  if (limit) diffusion[limit.key] = settings[limit.key];
  return {
    model: settings.model,
    messages: [{ role: "user", content: problem }],
    stream: true,
    stream_options: { include_usage: true },
    max_tokens: settings.length,
    temperature: settings.temperature,
    ...(seed === null ? {} : { seed }),
    diffusion,
  };
}

/* "Fixed schedule, 64 steps" */
export function titled(settings) {
  const { name, scheduled, limit } = DECODINGS[settings.decoding];
  return scheduled ? `${name}, ${settings.steps} steps` : `${name} ${settings[limit.key]}`;
}
