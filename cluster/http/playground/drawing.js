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

// Spaces and line ends are shown as faint symbols, after which a line may break. Text nodes only: the text of a token is never HTML.
function spell(target, text) {
  const shown = text === "" ? "\u2205" : text;
  target.replaceChildren(...shown.split(/(\s)/).filter(Boolean).flatMap((piece) => {
    if (!/^\s$/.test(piece)) return [document.createTextNode(piece)];
    return [element("span", "ws", piece === "\n" ? "\u21b5" : piece === "\t" ? "\u2192" : "\u00b7"), element("wbr")];
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
    tok.className = `tok ${state}`;
    tok.dataset.state = state.split(" ")[0];
    if (empty) tok.replaceChildren("\u00a0", element("wbr"));
    else spell(tok, cell.text);
    if (run.options) tok.setAttribute("aria-selected", String(state === "cut"));
  });
  canvas.classList.toggle("live", !run.closed && run.state !== "idle" && run.playing);
  canvas.classList.toggle("few", run.cells.length * model.maskWidth <= 100);
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
    if (measured && part === "nelbo" && session?.data) cell.append(element("small", "data", `its data: ${amount(session.data, 2)}`));
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
  drawCandidates(run);
  drawCosts(run);
  const masked = run.masked();
  const t = run.head === 0 ? 1 : run.seen.get(run.head)?.t;
  run.part("status").textContent = statusOf(run);
  run.part("where").textContent = run.refused ? "" : `step ${run.head}${t === undefined ? "" : ` · t ${t.toFixed(2)}`} · ${masked} masked`;
  const done = run.toFill() ? 1 - masked / run.toFill() : Number(run.state === "done");
  run.part("progress").style.setProperty("--done", done.toFixed(4));
  run.card.classList.toggle("refused", run.refused);
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

const STEP_MILLISECONDS = 400; // of one of a few steps, to read what it unmasked
const REPLAY_MILLISECONDS = 4500; // of all steps: of many, several share a frame
const STALL_MILLISECONDS = 100; // after a longer wait no steps are skipped to catch up
const REDUCED_FRAMES = 60; // of a replay without the pace

const pace = (run) => (reduced.matches || $("pace").value === "live" ? 0 : Math.min(STEP_MILLISECONDS, REPLAY_MILLISECONDS / run.steps));

function advance(run, now) {
  const each = pace(run);
  const elapsed = now - run.moved;
  if (elapsed < each) return;
  let steps = 1;
  if (each === 0) steps = run.replay ? Math.ceil(run.steps / REDUCED_FRAMES) : Infinity;
  else steps = Math.max(1, Math.floor(Math.min(elapsed, STALL_MILLISECONDS) / each));
  run.head = Math.min(run.head + steps, run.reached);
  run.moved = elapsed > STALL_MILLISECONDS || each === 0 ? now : run.moved + steps * each;
  if (run.closed && run.head >= run.reached) run.playing = false;
  draw(run);
}

function tick(now) {
  for (const run of session?.runs ?? []) {
    if (!run.playing) continue;
    if (run.head < run.reached) advance(run, now);
    else if (run.closed) {
      run.playing = run.replay = false;
      draw(run);
    }
  }
  const playing = session?.runs.some((run) => run.playing);
  if (session?.runs.length && !session.settled && !playing && session.runs.every((run) => run.closed)) settle();
  if (document.body.dataset.busy !== "true") $("stop-button").disabled = !playing;
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

