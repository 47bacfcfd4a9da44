// ---------------------------------------------------------------- the end of a run: its text, score and cost

function settle() {
  const mine = session;
  mine.settled = true;
  for (const run of mine.runs) {
    draw(run);
    const reading = run.part("reading");
    if (run.refused) {
      reading.replaceChildren(element("span", "lead", "This run was not started."));
      continue;
    }
    run.part("copy").disabled = false;
    reading.replaceChildren(element("span", "lead", run.cells.slice(0, run.offset).map((cell) => cell.text).join("")), run.text(run.offset));
    if (run.cells.length && run.whole && run.cells.length <= model.length) makeEditable(run);
  }
  setTimeout(() => mine.runs.forEach(rest), reduced.matches ? 0 : 900);
  summarise(mine);
  if (mine.runs.some((run) => run.state === "done")) score(mine);
}

// Fade the tokens unmasked last, unless the user steps through.
function rest(run) {
  if (run.playing || run.head < run.reached || !run.closed) return;
  run.calm = true;
  draw(run);
}

async function score(mine) {
  // The same seed for both texts: the same noise, which lowers the variance of their difference.
  for (const run of mine.runs.filter((one) => one.state === "done")) {
    const tokens = run.tokens();
    const name = mine.energy;
    if (!run.whole || tokens.length > model.length) {
      run.score = { why: `Only texts of up to ${model.length} tokens can be scored.` };
    } else {
      try {
        const found = await ask("/v1/score", { tokens, seed: run.request.body.seed ?? 1, draws: SCORE_DRAWS, edlm: { steps: 1, candidates: 1 } }, mine.abort.signal);
        const each = ({ nats, standard_error }) => ({ nats: nats / tokens.length, standard_error: standard_error / tokens.length });
        run.score = { energy: found.energies[name], nelbo: each(found.nelbo), name: found.energies[name] && name };
      } catch (error) {
        if (error.name === "AbortError") return;
        run.score = { why: `The text could not be scored: ${error.message}` };
      }
    }
    drawScore(run);
  }
  if (session !== mine) return;
  compare(mine);
  try {
    mine.data = await scoreData(mine.abort.signal);
  } catch {
    return; // the runs are compared without it
  }
  if (session === mine && mine.data) {
    mine.runs.forEach(drawScore);
    compare(mine);
  }
}

const times = (ratio) => `${amount(ratio, 1)} times`;

function compare(mine) {
  const [plain, edlm] = ["plain", "edlm"].map((kind) => mine.runs.find((run) => run.kind === kind && run.details));
  if (!plain || !edlm) return;
  const ratio = edlm.details.seconds / plain.details.seconds;
  const calls = amount(edlm.details.energy_calls);
  const more = edlm.details.candidates === 0 ? `called the energy ${calls} times, to draw from it exactly` : `scored ${calls} candidates`;
  let title = `EDLM took ${times(ratio)} the seconds of plain diffusion`;
  if (ratio < 0.9) title = "EDLM took fewer seconds this time";
  else if (ratio <= 1.1) title = "Both took about the same seconds";
  const same = edlm.details.denoiser_calls === plain.details.denoiser_calls;
  const sentences = [`${same ? `Besides the same ${amount(plain.details.denoiser_calls)} passes of the denoiser` : `With ${amount(edlm.details.denoiser_calls)} passes of the denoiser against ${amount(plain.details.denoiser_calls)}`}, EDLM ${more}: ${amount(edlm.details.seconds, 2)} s against ${amount(plain.details.seconds, 2)} s.`];
  if (mine.together) sentences.push("Both ran at the same time and shared the server; for comparable seconds, run them one after the other.");
  else sentences.push("They ran one after the other; the seconds include other work of the server.");
  const [a, b] = [plain.score?.energy, edlm.score?.energy];
  if (a && b) {
    const error = Math.hypot(a.standard_error, b.standard_error);
    const gain = a.nats - b.nats;
    if (gain > 2 * error) title += ", and its text has the lower energy";
    else if (gain < -2 * error) title += ", and its text has the higher energy";
    else title += "; their energies do not differ significantly";
    sentences.push(`Energy ${amount(b.nats, 2)} against ${amount(a.nats, 2)} (low is likely; standard error of the difference ${amount(error, 2)}). A single text each is no evidence; the reports compare many.`);
  }
  $("verdict-title").textContent = `${title}.`;
  $("verdict-text").textContent = sentences.join(" ");
  const pair = (name, of, digits) => levels(name, { plain: of(plain), edlm: of(edlm) }, digits);
  $("chart").replaceChildren(
    ...(plain.score?.nelbo && edlm.score?.nelbo ? levels("Nats per token, bound", { plain: plain.score.nelbo.nats, edlm: edlm.score.nelbo.nats, ...(mine.data && { data: mine.data }) }, 2) : []),
    ...pair("Seconds", (run) => run.details.seconds, 2),
    ...pair("Denoiser passes", (run) => run.details.denoiser_calls, 0),
    ...pair("Candidates scored", (run) => run.details.energy_calls, 0),
  );
  $("verdict").hidden = false;
}

const LEVELS = { plain: "plain", edlm: "EDLM", data: "its data" };

function levels(name, values, digits) {
  const most = Math.max(...Object.values(values), Number.MIN_VALUE);
  const bars = element("dd");
  for (const [kind, value] of Object.entries(values)) {
    const bar = element("span", `level ${kind}`);
    const fill = element("i");
    fill.style.setProperty("--share", (value / most).toFixed(3));
    bar.append(element("span", "", LEVELS[kind]), fill, element("span", "number", amount(value, digits)));
    bars.append(bar);
  }
  return [element("dt", "", name), bars];
}

function summarise(mine) {
  $("summary").textContent = mine.runs.map((run) => {
    if (run.state === "done" && run.details) return `${KINDS[run.kind]} finished: ${run.filled()} tokens, ${run.details.denoiser_calls} passes, ${amount(run.details.seconds, 2)} seconds.`;
    return `${KINDS[run.kind]}: ${statusOf(run)}.`;
  }).join(" ");
}

