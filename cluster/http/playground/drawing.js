// ---------------------------------------------------------------- drawing

const element = (tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};

const icon = (name) => {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
};

// Spaces and line ends are shown as faint symbols. Text nodes only: the text of a token is never HTML.
function spell(target, text) {
  const shown = text === "" ? "\u2205" : text;
  target.replaceChildren(...shown.split(/(\s)/).filter(Boolean).map((piece) => {
    if (!/^\s$/.test(piece)) return document.createTextNode(piece);
    return element("span", "ws", piece === "\n" ? "\u21b5" : piece === "\t" ? "\u2192" : "\u00b7");
  }));
  if (text.includes("\n")) target.append(document.createElement("br"));
}

function cellState(run, cell, position) {
  if (plan?.run === run) return plan.cut.has(position) ? "cut" : "given";
  if (cell.step === 0) return "given";
  if (cell.step > 0 && cell.step <= run.head) return `shown age${run.calm ? 3 : Math.min(run.head - cell.step, 3)}`;
  return run.state === "done" && run.head >= run.reached ? "unused" : "masked";
}

function drawCells(run) {
  const canvas = run.part("canvas");
  run.cells.forEach((cell, position) => {
    let tok = run.spans[position];
    if (!tok) {
      tok = run.spans[position] = element("span", "tok");
      tok.dataset.position = position;
      canvas.append(tok);
    }
    const state = cellState(run, cell, position);
    const empty = state === "masked" || state === "unused" || cell.id === null;
    const drawn = `${state}|${empty ? "" : cell.id}`;
    if (tok.drawn === drawn) return;
    tok.drawn = drawn;
    tok.className = `tok ${state}${!empty && cell.text.includes("\n") ? " nl" : ""}`;
    tok.dataset.state = state.split(" ")[0];
    if (empty) tok.textContent = "\u00a0";
    else spell(tok, cell.text);
    if (run.options) tok.setAttribute("aria-selected", String(state === "cut"));
  });
  canvas.classList.toggle("live", !run.closed && run.state !== "idle" && run.playing);
  canvas.classList.toggle("few", run.cells.length * model.maskWidth <= 100);
}

function drawWeighing(run) {
  const panel = run.part("scoring");
  const now = run.latest(run.scorings);
  const name = `${now?.step ?? (run.closed ? "none" : "wait")}`;
  if (panel.drawn === name) return;
  panel.drawn = name;
  if (!now) {
    const say = run.kind === "plain" ? "One candidate per step: no energy is used." : run.request.body.edlm.candidates === 0
      ? "k = 0: drawn exactly from the energy, so there are no candidates to compare."
      : run.closed ? "No step unmasked two tokens of one group, so no candidates were scored." : "The energies of the candidates, as soon as a step scores candidates.";
    panel.replaceChildren(element("p", "hint", say));
    return;
  }
  const temperature = run.request.body.edlm.energy_temperature ?? model.sampler.energy_temperature;
  const k = now.energies.find((row) => row.some((value) => value !== null))?.length ?? run.candidates;
  const head = element("div", "head");
  const left = element("span", "", "Probability of each candidate, ∝ exp(−E/τ): ");
  left.append(element("b", "number", `step ${now.step}`));
  const right = element("span", "number");
  right.append("ESS ", element("b", "", now.ess === null ? "–" : now.ess.toFixed(1)), ` of ${k}`);
  head.append(left, right);
  const groups = element("div", `groups${now.energies.length === 1 ? " whole" : ""}`);
  now.energies.forEach((energies, index) => {
    if (energies.some((value) => value !== null)) groups.append(group(run, energies, now.picked[index], index, now.energies.length, temperature));
  });
  panel.replaceChildren(head, groups);
}

function group(run, energies, picked, index, count, temperature) {
  const known = energies.filter((value) => value !== null);
  const lowest = Math.min(...known);
  const weights = energies.map((value) => (value === null ? 0 : Math.exp((lowest - value) / temperature)));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const ess = total ** 2 / weights.reduce((sum, weight) => sum + weight ** 2, 0);
  const most = Math.max(...weights);
  const box = element("div", "group");
  const bars = element("div", "bars");
  weights.forEach((weight, j) => {
    const bar = element("div", j === picked ? "bar picked" : "bar");
    bar.style.setProperty("--height", (weight / most).toFixed(3));
    if (energies[j] !== null) bar.title = `candidate ${j + 1}${j === picked ? ", chosen" : ""}: E = ${amount(energies[j], 2)}, probability ${(100 * weight / total).toFixed(0)} %`;
    bars.append(bar);
  });
  bars.setAttribute("role", "img");
  bars.setAttribute("aria-label", `${known.length} candidates, number ${picked + 1} chosen`);
  const under = element("div", "under number");
  under.append(element("span", "", count === 1 ? `chosen E ${amount(energies[picked], 2)}` : `block ${index + 1}`), element("span", "", ess.toFixed(1)));
  under.title = `chosen: E = ${amount(energies[picked], 2)}; lowest: ${amount(lowest, 2)}; ESS ${ess.toFixed(1)} of ${known.length}`;
  box.append(bars, under);
  // The positions of a block are known if the text is one canvas, which starts at its first position.
  if (count > 1 && run.block && run.cells.length <= model.length) {
    const show = (on) => run.spans.slice(index * run.block, (index + 1) * run.block).forEach((tok) => tok.classList.toggle("inblock", on));
    box.addEventListener("pointerenter", () => show(true));
    box.addEventListener("pointerleave", () => show(false));
  }
  return box;
}

const amount = (value, digits = 0) => value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits }).replace("-", "\u2212");

function drawCosts(run) {
  const now = run.latest(run.seen);
  const ended = run.details && run.head >= run.reached;
  const passes = ended ? run.details.denoiser_calls : now?.passes;
  const scored = ended ? run.details.energy_calls : now?.scored;
  run.part("passes").textContent = passes === undefined || passes === null ? "–" : amount(passes);
  run.part("scored").textContent = scored === undefined || scored === null ? "–" : amount(scored);
  // The total stays visible while the steps are replayed.
  const whole = run.details && (ended || session?.settled);
  run.part("seconds").textContent = whole ? amount(run.details.seconds, run.details.seconds < 10 ? 2 : 1) : "–";
  run.part("speed").textContent = whole && run.details.seconds > 0 ? amount(run.filled() / run.details.seconds) : "–";
}

function drawScore(run) {
  for (const [part, measured, why] of [["energy", run.score?.energy, run.score?.why], ["nelbo", run.score?.nelbo, run.score?.why]]) {
    const cell = run.part(part);
    cell.replaceChildren(measured ? amount(measured.nats, 2) : "–");
    if (measured) cell.append(element("small", "", `± ${amount(measured.standard_error, 2)}`));
    cell.title = why ?? "";
  }
  const name = run.score?.name;
  run.part("energy-name").textContent = name ? `Final energy (${name})` : "Final energy";
}

function statusOf(run) {
  if (run.state === "failed" && run.reached === 0) return "not started";
  if (run.state === "failed") return run.problem.code === "lost" ? "connection lost" : "ended early";
  if (run.state === "stopped") return `stopped at step ${run.reached}`;
  if (run.state === "idle") return "";
  if (run.state === "waiting") return "queued";
  if (run.closed && run.head >= run.reached) return run.finish === "stop" ? "done, end of text" : "done";
  return `step ${run.head} of ${run.steps}`;
}

function draw(run) {
  drawCells(run);
  drawWeighing(run);
  drawCosts(run);
  const masked = run.masked();
  const t = run.head === 0 ? 1 : run.seen.get(run.head)?.t;
  run.part("status").textContent = statusOf(run);
  run.part("where").textContent = `step ${run.head}${t === undefined ? "" : ` · t ${t.toFixed(2)}`} · ${masked} masked`;
  run.part("progress").style.setProperty("--done", (1 - masked / Math.max(run.toFill(), 1)).toFixed(4));
  const scrub = run.part("scrub");
  scrub.max = run.steps;
  scrub.value = run.head;
  scrub.disabled = run.part("play").disabled = run.reached === 0;
  scrub.setAttribute("aria-valuetext", `step ${run.head} of ${run.steps}, ${masked} masked`);
  const play = run.part("play");
  const name = run.playing ? "pause" : "play";
  if (play.dataset.icon !== name) {
    play.dataset.icon = name;
    play.setAttribute("aria-label", run.playing ? "Pause" : "Play");
    play.replaceChildren(icon(name));
  }
}

// ---------------------------------------------------------------- playback: the shown step follows the received ones

const pace = (run) => (reduced.matches || $("pace").value === "live" ? 0 : Math.min(170, Math.max(35, 4500 / run.steps)));

function tick(now) {
  for (const run of session?.runs ?? []) {
    if (!run.playing || now - run.moved < pace(run)) continue;
    if (run.head < run.reached) {
      run.head = pace(run) === 0 && !run.replay ? run.reached : run.head + 1;
      run.moved = now;
      if (run.closed && run.head >= run.reached) run.playing = false;
      draw(run);
    } else if (run.closed) {
      run.playing = run.replay = false;
      draw(run);
    }
  }
  if (session?.runs.length && !session.settled && session.runs.every((run) => run.closed && !run.playing)) settle();
  requestAnimationFrame(tick);
}

function move(run, step) {
  run.playing = run.replay = run.calm = false;
  run.head = Math.min(Math.max(step, 0), run.reached);
  draw(run);
}

function toggle(run) {
  if (run.reached === 0) return;
  if (!run.playing && run.head >= run.reached && run.closed) Object.assign(run, { head: 0, replay: true });
  run.playing = !run.playing;
  run.calm = false;
  run.moved = performance.now();
  draw(run);
}

