// One completion in full, beside the others of its group.

/* The columns of all completions, with what is computed from them once. */
function completionsOf({ vocabulary, ends, groups, rows }) {
  const ending = new Set(ends), texts = [];
  const count = rows.group?.length ?? 0;
  const text = (i) => {
    if (texts[i] === undefined) {
      const stop = rows.tokens[i].findIndex((token) => ending.has(token));
      const own = stop < 0 ? rows.tokens[i] : rows.tokens[i].slice(0, stop);
      texts[i] = rows.text[i] ?? own.map((token) => vocabulary[token]).join("");
    }
    return texts[i];
  };
  const members = groups.map(() => []);
  for (let i = 0; i < count; i++) members[rows.group[i]].push(i);
  return { vocabulary, ending, groups, rows, count, text, members, group: (i) => groups[rows.group[i]] };
}

function verdict(correct) {
  return element("span", { class: correct ? "verdict right" : "verdict wrong" }, correct ? "✓ solved" : "✗ not solved");
}

function completionView(all, i, names, select) {
  const { rows } = all, group = all.group(i), members = all.members[rows.group[i]];
  const place = members.indexOf(i);
  const step = (by) => element(
    "button",
    { type: "button", disabled: members[place + by] === undefined, click: () => select(members[place + by]) },
    by < 0 ? "‹ previous" : "next ›",
  );
  const fact = (name, value) => element("div", {}, element("dt", {}, name), element("dd", {}, value ?? "–"));
  const age = group.step - 1 - rows.policy_version[i];
  const facts = [
    fact("Reward", written(rows.reward[i], "")),
    Object.entries(rows.components[i]).map(([name, value]) => fact(`· ${name}`, written(value, ""))),
    fact("Advantage", written(rows.advantage[i], "")),
    fact("Parsed answer", rows.parsed[i] === null ? element("em", {}, "none") : element("code", {}, rows.parsed[i])),
    fact("Partly right", written(rows.partial[i], "share")),
    fact("Format", rows.formatted[i] ? "as asked" : "not as asked"),
    rows.failure[i] && fact("Check", rows.failure[i]),
    fact("Policy version", `${rows.policy_version[i]}` + (age > 0 ? `, ${age} old` : "")),
    fact("Forward passes", rows.forwards[i]),
    rows.generator[i] != null && rows.generator[i] >= 0 && fact("Generator", rows.generator[i]),
  ];
  const asked = Object.entries(group.fields).map(([name, value]) => fact(name, element("code", {}, value)));
  return [
    element(
      "div",
      { class: "detail-head" },
      element("h3", { tabindex: -1 }, (names.length > 1 ? `${names[group.run]}: ` : "") + `step ${group.step}, group ${group.group}, completion ${rows.rollout[i]}`),
      verdict(rows.correct[i]),
      element("span", { class: "buttons" }, step(-1), step(1)),
    ),
    element("h4", {}, "Prompt"),
    element("pre", { class: "text" }, group.prompt + (group.prefill ? `\n${group.prefill}` : "")),
    element("h4", {}, "Completion"),
    element("pre", { class: "text", id: "completion-text" }, all.text(i) || "(empty)"),
    element("h4", {}, "Denoising"),
    playback({
      tokens: rows.tokens[i].map((token) => all.vocabulary[token]),
      ends: rows.tokens[i].map((token) => all.ending.has(token)),
      steps: rows.steps[i],
      probability: rows.probability[i],
    }),
    element("h4", {}, "Verdict"),
    element("dl", { class: "facts" }, facts),
    asked.length ? [element("h4", {}, "Checked against"), element("dl", { class: "facts long" }, asked)] : [],
    element("h4", {}, `The group's ${members.length} completions`),
    groupTable(all, i, members, select),
  ];
}

function groupTable(all, chosen, members, select) {
  const { rows } = all, components = Object.keys(rows.components[chosen]);
  const several = components.length > 1 ? components : [];
  const head = ["", "Reward", ...several, "Advantage", "Answer", "Forwards", "Completion"];
  return element(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": "Completions of the group" },
    element(
      "table",
      { class: "group" },
      element("thead", {}, element("tr", {}, head.map((name, k) => element("th", { scope: "col", class: k > 0 && k < head.length - 1 && name !== "Answer" ? "number" : "" }, name)))),
      element(
        "tbody",
        {},
        members.map((i) =>
          element(
            "tr",
            { class: i === chosen ? "chosen" : "" },
            element("th", { scope: "row" }, element("button", { type: "button", class: "link", "aria-current": i === chosen ? "true" : null, click: () => select(i) }, `${rows.correct[i] ? "✓" : "✗"} ${rows.rollout[i]}`)),
            element("td", { class: "number" }, written(rows.reward[i], "")),
            several.map((name) => element("td", { class: "number" }, written(rows.components[i][name], ""))),
            element("td", { class: "number" }, written(rows.advantage[i], "")),
            element("td", {}, rows.parsed[i] === null ? element("em", {}, "none") : element("code", {}, rows.parsed[i])),
            element("td", { class: "number" }, rows.forwards[i] ?? "–"),
            element("td", { class: "clipped" }, element("code", {}, all.text(i))),
          ),
        ),
      ),
    ),
  );
}
