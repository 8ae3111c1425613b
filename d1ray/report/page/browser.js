// All completions of the page: filters, a list that the arrow keys walk, and the chosen completion in full.

const PAGE = 50;
const ORDERS = {
  time: ["by step", () => 0],
  best: ["highest reward first", (rows, a, b) => rows.reward[b] - rows.reward[a]],
  worst: ["lowest reward first", (rows, a, b) => rows.reward[a] - rows.reward[b]],
  surprising: ["largest advantage first", (rows, a, b) => Math.abs(rows.advantage[b]) - Math.abs(rows.advantage[a])],
};

function browserSection(data) {
  const all = completionsOf(data.completions);
  if (!all.count) return null;
  const names = data.runs.map((run) => run.name), { rows } = all;
  const tasks = [...new Set(all.groups.map((group) => group.task))];
  const steps = all.groups.map((group) => group.step);
  const filter = { run: "", task: "", solved: "", sign: "", text: "", rewardFrom: -Infinity, rewardTo: Infinity, stepFrom: -Infinity, stepTo: Infinity, order: "time" };
  let found = [], page = 0, chosen = null;

  const set = (name) => (value) => { filter[name] = value; search(); };
  const number = (name, empty, text, attributes = {}) =>
    element("input", { type: "number", step: "any", placeholder: text, id: name, ...attributes, input: (event) => set(name)(event.target.value === "" ? empty : Number(event.target.value)) });
  const range = (title, from, to) => element("div", { class: "field", role: "group", "aria-label": title }, element("span", {}, title), element("span", { class: "pair" }, from, "–", to));
  const form = element(
    "form",
    { class: "filters", submit: (event) => event.preventDefault(), "aria-label": "Filters" },
    labelled("Text", element("input", { type: "search", id: "search", placeholder: "in prompt or completion", input: (event) => set("text")(event.target.value.toLowerCase()) })),
    labelled("Verdict", choice([["", "any"], ["yes", "solved"], ["no", "not solved"]], "", set("solved"), { id: "solved" })),
    range("Reward", number("rewardFrom", -Infinity, "from", { "aria-label": "Reward from" }), number("rewardTo", Infinity, "to", { "aria-label": "Reward to" })),
    range("Step", number("stepFrom", -Infinity, String(Math.min(...steps)), { "aria-label": "Step from" }), number("stepTo", Infinity, String(Math.max(...steps)), { "aria-label": "Step to" })),
    names.length > 1 && labelled("Run", choice([["", "all"], ...names.map((name, i) => [String(i), name])], "", set("run"), { id: "run" })),
    labelled("Task", choice([["", "all"], ...tasks.map((task) => [task, task])], "", set("task"), { id: "task" })),
    labelled("Self-correction", choice([["", "any"], ["yes", "with a sign"]], "", set("sign"), { id: "with-sign" })),
    labelled("Order", choice(Object.entries(ORDERS).map(([key, [name]]) => [key, name]), "time", set("order"), { id: "order" })),
  );

  const list = element("div", { class: "list", role: "listbox", tabindex: 0, id: "list", "aria-label": "Completions; arrow keys choose one", keydown: walked });
  const count = element("output", { class: "soft", id: "count" });
  const before = element("button", { type: "button", "aria-label": "Previous page", click: () => turn(-1) }, "‹");
  const after = element("button", { type: "button", "aria-label": "Next page", click: () => turn(1) }, "›");
  const detail = element("div", { class: "detail", id: "detail", role: "region", "aria-label": "The chosen completion" });

  function matches(i) {
    const group = all.group(i);
    return (
      (filter.run === "" || group.run === Number(filter.run)) &&
      (filter.task === "" || group.task === filter.task) &&
      (filter.solved === "" || rows.correct[i] === (filter.solved === "yes")) &&
      (filter.sign === "" || rows.signs[i].length > 0) &&
      rows.reward[i] >= filter.rewardFrom && rows.reward[i] <= filter.rewardTo &&
      group.step >= filter.stepFrom && group.step <= filter.stepTo &&
      (filter.text === "" || all.text(i).toLowerCase().includes(filter.text) || group.prompt.toLowerCase().includes(filter.text))
    );
  }

  function search() {
    found = [];
    for (let i = 0; i < all.count; i++) if (matches(i)) found.push(i);
    const order = ORDERS[filter.order][1];
    if (filter.order !== "time") found.sort((a, b) => order(rows, a, b));
    page = 0;
    drawList();
    if (!found.includes(chosen)) choose(found[0] ?? null);
  }

  function turn(by) {
    page += by;
    drawList();
    list.scrollTop = 0;
  }

  function drawList() {
    const first = page * PAGE, part = found.slice(first, first + PAGE);
    count.textContent = found.length ? `${first + 1} – ${first + part.length} of ${found.length.toLocaleString("en")}` : "no completion matches";
    before.disabled = page === 0;
    after.disabled = first + PAGE >= found.length;
    list.replaceChildren(
      ...part.map((i) => {
        const group = all.group(i);
        return element(
          "div",
          { role: "option", id: `option-${i}`, "aria-selected": i === chosen ? "true" : "false", class: "option", click: () => choose(i) },
          element("span", { class: rows.correct[i] ? "mark right" : "mark wrong" }, rows.correct[i] ? "✓" : "✗", element("span", { class: "hidden" }, rows.correct[i] ? "solved" : "not solved")),
          names.length > 1 && swatch(group.run),
          element("span", { class: "where" }, `step ${group.step} · group ${group.group} · #${rows.rollout[i]}`),
          element("span", { class: "reward" }, written(rows.reward[i], "")),
          element("code", { class: "snippet" }, all.text(i).slice(0, 160) || "(empty)"),
        );
      }),
    );
    mark();
  }

  function mark() {
    for (const option of list.children) option.setAttribute("aria-selected", option.id === `option-${chosen}` ? "true" : "false");
    if (byId(`option-${chosen}`)) list.setAttribute("aria-activedescendant", `option-${chosen}`);
    else list.removeAttribute("aria-activedescendant");
  }

  function choose(i) {
    chosen = i;
    mark();
    if (i === null) detail.replaceChildren(element("p", { class: "empty" }, "Nothing is chosen."));
    else detail.replaceChildren(...completionView(all, i, names, (other) => { choose(other); detail.querySelector("h3").focus(); }).flat(Infinity));
  }

  function walked(event) {
    const from = found.indexOf(chosen), last = found.length - 1;
    const to = { ArrowDown: from + 1, ArrowUp: from - 1, PageDown: from + 10, PageUp: from - 10, Home: 0, End: last }[event.key];
    if (to === undefined || last < 0) return;
    event.preventDefault();
    const next = Math.min(Math.max(to, 0), last);
    if (Math.floor(next / PAGE) !== page) {
      page = Math.floor(next / PAGE);
      drawList();
    }
    choose(found[next]);
    byId(`option-${chosen}`).scrollIntoView({ block: "nearest" });
  }

  search();
  return [form, element("div", { class: "browser" }, element("div", { class: "found" }, element("div", { class: "pager" }, before, count, after), list), detail)];
}
