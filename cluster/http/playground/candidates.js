
// ---------------------------------------------------------------- the candidates of a step, as words with their weights

const ROWS = { blocks: 5, whole: 8 }; // candidates that are listed per group, the likeliest first
const CONTEXT = 3; // tokens that are shown around those of a candidate

function drawCandidates(run) {
  const panel = run.part("scoring");
  const now = run.latest(run.scorings);
  const name = `${now?.step ?? (run.closed ? "none" : "wait")}`;
  if (panel.drawn === name) return;
  panel.drawn = name;
  if (!now) {
    panel.replaceChildren(element("p", "hint", withoutCandidates(run)));
    return;
  }
  const groups = weighed(run, now);
  if (!groups.length) {
    panel.replaceChildren(element("p", "hint", `Step ${now.step} compared candidates beyond the end of this text only.`));
    return;
  }
  const head = element("div", "head");
  const left = element("span", "");
  left.append(element("b", "number", `Step ${now.step}`), `: ${groups[0].energies.length} candidates per ${groups.length > 1 ? "block" : "step"}, each kept with `, term("weights", "probability ∝ exp(−E/τ)"));
  const right = element("span", "number");
  right.append(term("ess", "ESS"), " ", element("b", "", now.ess === null ? "–" : now.ess.toFixed(1)), ` of ${groups[0].energies.length}`);
  head.append(left, right);
  const box = element("div", `groups${groups.length === 1 ? " whole" : ""}`);
  box.tabIndex = 0; // it may scroll
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", `Candidates of step ${now.step}`);
  box.append(...groups.map((group) => drawGroup(run, now, group, groups.length)));
  panel.replaceChildren(head, box);
}

function withoutCandidates(run) {
  if (run.refused) return "–";
  if (run.kind === "plain") return "One draw per position, each without regard to the others: nothing is compared.";
  if (run.request.body.edlm.candidates === 0) return "k = 0: drawn exactly from the energy, so there are no candidates to compare.";
  return run.closed ? "No step unmasked two tokens of one group, so no candidates were scored." : "The candidates and their weights, as soon as a step compares some.";
}

// The groups of positions of a step, each with the energies of its candidates and the number of the one that was kept.
// A canvas may extend beyond the end of the text: those groups are left out. Under a constraint the groups are weighed
// together, as what is unmasked must come from one text.
function weighed(run, { energies, picked, tokens }) {
  const groups = energies.map((values, index) => ({ index, energies: values, kept: picked[index] })).filter((group) => group.energies.some((value) => value !== null));
  if (!run.request.body.edlm.constraint) return groups.filter(({ index }) => !tokens || tokens.groups.includes(index));
  const sum = groups[0].energies.map((_, j) => groups.reduce((total, group) => (total === null || group.energies[j] === null ? null : total + group.energies[j]), 0));
  return [{ index: null, energies: sum, kept: groups[0].kept }];
}

function drawGroup(run, now, group, count) {
  const temperature = run.request.body.edlm.energy_temperature ?? model.sampler.energy_temperature;
  const lowest = Math.min(...group.energies.filter((value) => value !== null));
  const weights = group.energies.map((value) => (value === null ? 0 : Math.exp((lowest - value) / temperature)));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const rows = distinct(run, now, group, weights.map((weight) => weight / total));
  const most = count === 1 ? ROWS.whole : ROWS.blocks;
  const shown = rows.filter((row, rank) => rank < most || row.kept);
  const box = element("div", "group");
  const list = element("ol", "candidates");
  list.append(...shown.map(drawCandidate));
  box.append(list);
  const rest = rows.filter((row) => !shown.includes(row));
  if (rest.length) box.append(element("p", "rest number", `${rest.length} more, ${percent(rest.reduce((sum, row) => sum + row.probability, 0))} together`));
  const positions = rows[0].positions;
  const mark = (on) => positions.forEach((position) => run.spans[position]?.classList.toggle("inblock", on));
  box.addEventListener("pointerenter", () => mark(true));
  box.addEventListener("pointerleave", () => mark(false));
  return box;
}

const percent = (share) => (share > 0 && share < 0.005 ? "<1 %" : `${(100 * share).toFixed(0)} %`);

// The distinct candidates of a group, the likeliest first: candidates of the same tokens are one, drawn several times.
function distinct(run, now, group, probabilities) {
  const { tokens } = now;
  const at = tokens ? tokens.groups.flatMap((of, i) => (group.index === null || of === group.index ? [i] : [])) : [];
  const rows = new Map();
  probabilities.forEach((probability, j) => {
    const name = tokens ? at.map((i) => tokens.tokens[j][i]).join() : j;
    const row = rows.get(name) ?? { probability: 0, drawn: 0, kept: false, energy: group.energies[j] };
    row.probability += probability;
    row.drawn += 1;
    row.kept ||= j === group.kept;
    row.positions = at.map((i) => run.offset + tokens.positions[i]);
    row.texts = at.map((i) => tokens.texts[j][i]);
    row.pieces = tokens ? phrase(run, now.step, row) : [{ text: `candidate ${j + 1}`, state: "known" }];
    rows.set(name, row);
  });
  return [...rows.values()].sort((a, b) => b.probability - a.probability);
}

// A candidate in its place: its tokens, among those that were known before the step and the masks that stay.
function phrase(run, step, { positions, texts }) {
  const mine = new Map(positions.map((position, i) => [position, texts[i]]));
  const isNear = (position) => positions.some((other) => Math.abs(other - position) <= CONTEXT);
  const pieces = [];
  let last = null;
  for (let position = Math.max(0, positions[0] - CONTEXT); position <= positions.at(-1) + CONTEXT && position < run.cells.length; position++) {
    if (!isNear(position)) continue;
    if (last !== null && position > last + 1) pieces.push({ text: "…", state: "gap" });
    last = position;
    const cell = run.cells[position];
    if (mine.has(position)) pieces.push({ text: mine.get(position), state: cell.step === step ? "new" : "draft" });
    else if (cell.step >= 0 && cell.step < step) pieces.push({ text: cell.text, state: "known" });
    else pieces.push({ text: "_".repeat(Math.min(model.maskWidth, 2)), state: "open" });
  }
  return pieces;
}

function drawCandidate({ pieces, probability, drawn, kept, energy }) {
  const row = element("li", kept ? "candidate kept" : "candidate");
  row.style.setProperty("--share", probability.toFixed(4));
  row.title = `E = ${amount(energy, 2)}${drawn > 1 ? `, drawn ${drawn} times` : ""}`;
  const words = element("span", "words");
  // Neighbours of one state are one element: a word stays whole.
  for (const { text, state } of pieces) {
    if (words.lastChild?.className === state) words.lastChild.append(text.replaceAll("\n", "↵"));
    else words.append(element("span", state, text.replaceAll("\n", "↵")));
  }
  row.append(words);
  if (drawn > 1) row.append(element("span", "times number", `×${drawn}`));
  row.append(element("span", "weight number", percent(probability)));
  if (kept) row.append(element("span", "mark", "kept"));
  return row;
}
