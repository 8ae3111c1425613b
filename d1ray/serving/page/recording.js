// What a completion did, step by step: enough to draw it at any step, while it comes in and afterwards.

const END = /^<\|(?:endoftext|eot_id|im_end|end_of_text)\|>$/; // as LLaDA and Dream write it

/* problem: as it was asked; settings: of the pane, as they were; now: milliseconds, when the request was sent.

   A step is {at, positions, forwards, block, tokens}: milliseconds since sending, the positions that it committed,
   forward passes so far, and tokens so far. `frame[p]` is 1 + the step that committed position p, 0 while masked:
   with n steps shown, p is unmasked where 0 < frame[p] <= n. */
export class Recording {
  constructor(problem, settings, now) {
    this.problem = problem;
    this.settings = settings;
    this.sent = now;
    this.steps = [];
    this.answer = "";
    this.state = "waiting"; // denoising, done, stopped, failed
    this.usage = null;
    this.version = null;
    this.seed = null;
    this.finish = null;
    this.over = null; // milliseconds from sending until it was over
    this.#resize(settings.length);
  }

  #resize(length) {
    this.length = length;
    this.tokens = Array(length).fill(null);
    this.frame = new Uint32Array(length);
  }

  /* An `event: denoising`. */
  denoised(data, now) {
    this.state = "denoising";
    if (!this.steps.length && data.gen_length > 0 && data.gen_length !== this.length) this.#resize(data.gen_length);
    const positions = data.positions.filter((p) => p >= 0 && p < this.length);
    this.steps.push({ at: now - this.sent, positions, forwards: data.forwards ?? this.steps.length + 1, block: data.block ?? 0 });
    data.positions.forEach((p, k) => {
      if (p < 0 || p >= this.length) return;
      const text = data.tokens[k] ?? "";
      this.tokens[p] = { text, confidence: data.confidences[k] ?? 0, end: data.ends?.[k] ?? END.test(text) };
      this.frame[p] = this.steps.length;
    });
    this.steps.at(-1).tokens = this.#counted();
  }

  /* A chunk of chat completion. */
  chunk(data) {
    const choice = data.choices?.[0];
    this.answer += choice?.delta?.content ?? "";
    this.finish = choice?.finish_reason ?? this.finish;
    this.usage = data.usage ?? this.usage;
    this.version = data.system_fingerprint ?? this.version;
    this.seed = data.d1ray?.seed ?? this.seed;
  }

  ended(state, now) {
    this.state = state;
    this.over = now - this.sent;
  }

  get running() {
    return this.over === null;
  }

  /* Tokens of the completion so far: those that neither end it nor come after the end. */
  #counted() {
    let count = 0;
    for (const token of this.tokens) {
      if (token?.end) break;
      count += token !== null;
    }
    return count;
  }

  /* {tokens, forwards, seconds} with n steps shown; the last step of an ended one counts until it was over. */
  at(n, now) {
    const step = this.steps[n - 1], last = n === this.steps.length;
    const ms = last ? (this.over ?? now - this.sent) : (step?.at ?? 0);
    const done = last && this.state === "done" && this.usage;
    return {
      tokens: (done && this.usage.completion_tokens) || (step?.tokens ?? 0),
      forwards: (done && this.usage.forwards) || (step?.forwards ?? 0),
      seconds: ms / 1000,
    };
  }
}
