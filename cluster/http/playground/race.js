
// ---------------------------------------------------------------- a race over many seeds: plain diffusion against EDLM

const SEEDS = 24;
const AT_ONCE = 8; // texts per request: little enough that the race can be watched, and cancelled
const RACE_DRAWS = 16;
const BINS = 12;
const CLEAR = 2; // standard errors, from which on a difference is called one

let race = null; // {abort, pairs: [{seed, plain, edlm}] in nats per token, skipped, ended}

const raceRequest = (kind, first, count) => {
  const { path, body } = request(kind);
  const edlm = { ...body.edlm, streams: "shared", ...(path === "/v1/completions" && { return: ["token_ids"] }) };
  return { path, body: { ...body, seed: first, n: count, edlm } };
};

async function startRace() {
  halt();
  clearNotice();
  if (number("seed") === undefined) drawSeed();
  const mine = (race = { abort: new AbortController(), pairs: [], skipped: 0, ended: null, steps: number("steps") });
  const signal = mine.abort.signal;
  if (session?.runs.length && session.runs.every((run) => run.refused)) {
    session = null; // else the race would be read as that of a run that was not started
    preview();
  }
  drawRace(mine);
  $("race").scrollIntoView({ behavior: reduced.matches ? "auto" : "smooth", block: "nearest" });
  try {
    const lead = chosen("mode") === "continue" && $("prompt").value ? (await ask("/v1/tokenize", { text: $("prompt").value }, signal)).tokens : [];
    if (chosen("mode") === "continue" && lead.length + number("tokens") > model.length) {
      const most = model.length - lead.length;
      throw new Problem(400, `max_tokens: a race scores whole texts, which share a canvas of ${model.length} tokens with the ${lead.length} of the prompt; at most ${most} fit`, { param: "max_tokens" });
    }
    for (let first = number("seed"); mine.pairs.length + mine.skipped < SEEDS; first += AT_ONCE) {
      const [plain, edlm] = await Promise.all(Object.keys(KINDS).map(async (kind) => {
        const { path, body } = raceRequest(kind, first, AT_ONCE);
        const { choices } = await ask(path, body, signal);
        return choices.map((choice) => choice.tokens ?? [...lead, ...choice.token_ids]);
      }));
      for (let i = 0; i < AT_ONCE; i++) {
        const scores = await Promise.all([plain[i], edlm[i]].map((tokens) => raceScore(tokens, first + i, signal)));
        if (race !== mine) return;
        if (scores.includes(null)) mine.skipped += 1;
        else mine.pairs.push({ seed: first + i, plain: scores[0], edlm: scores[1] });
        drawRace(mine);
      }
    }
    mine.ended = "done";
  } catch (error) {
    mine.ended = error.name === "AbortError" ? "stopped" : "failed";
    if (mine.ended === "failed" && race === mine) tell(error);
  }
  if (race === mine) drawRace(mine);
}

// Nats per token, by the NELBO, with the same noise for both texts of a seed; null for an empty text.
async function raceScore(tokens, seed, signal) {
  if (!tokens.length) return null;
  const { nelbo } = await ask("/v1/score", { tokens, seed, draws: RACE_DRAWS, edlm: { steps: 1, candidates: 1 } }, signal);
  return nelbo.nats / tokens.length;
}

function stopRace() {
  race?.abort.abort();
}

// A run replaces the race before it, as it replaces the run before it.
function forgetRace() {
  stopRace();
  race = null;
  $("race").hidden = true;
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

function outcomeOf({ pairs, skipped, ended }) {
  const gains = pairs.map(({ plain, edlm }) => plain - edlm);
  const wins = gains.filter((gain) => gain > 0).length;
  const ties = gains.filter((gain) => gain === 0).length;
  const gain = mean(gains);
  const error = Math.sqrt(mean(gains.map((each) => (each - gain) ** 2)) / Math.max(gains.length - 1, 1));
  const clear = gains.length > 2 && Math.abs(gain) > CLEAR * error;
  const score = `EDLM lower in ${wins} of ${pairs.length}`;
  const titles = { done: score, stopped: `Stopped: ${score}`, failed: `Ended early: ${score}` };
  const sentences = [];
  if (ended === "done") sentences.push(!clear ? "No clear difference at these settings." : gain > 0 ? "EDLM\u2019s texts are the likelier ones." : "Here plain diffusion\u2019s texts are the likelier ones.");
  sentences.push(`Mean ${amount(mean(pairs.map((pair) => pair.edlm)), 2)} against ${amount(mean(pairs.map((pair) => pair.plain)), 2)} nats per token: a difference of ${amount(-gain, 3)} ± ${amount(error, 3)}.`);
  if (ties) sentences.push(`${ties} ${ties === 1 ? "pair is" : "pairs are"} tied.`);
  if (skipped) sentences.push(`${skipped} ${skipped === 1 ? "pair was" : "pairs were"} left out: an empty text has no score.`);
  return { title: titles[ended] ?? score, text: sentences.join(" ") };
}

function drawRace(mine) {
  const { pairs, ended } = mine;
  $("race").hidden = false;
  $("race-stop").hidden = ended !== null;
  $("race-again").hidden = ended === null;
  const done = pairs.length + mine.skipped;
  const outcome = pairs.length ? outcomeOf(mine) : { title: ended === null ? "Generating the first texts" : "No texts were compared", text: "" };
  $("race-title").textContent = `${outcome.title}${ended === null && pairs.length ? " so far" : ""}`;
  $("race-text").textContent = outcome.text;
  $("race-count").textContent = `T = ${mine.steps} · seed ${Math.min(done + (ended === null ? 1 : 0), SEEDS)} of ${SEEDS}`;
  $("race-progress").style.setProperty("--done", (done / SEEDS).toFixed(3));
  if (ended !== null) $("summary").textContent = `${outcome.title}. ${outcome.text}`;
  drawHistograms(pairs);
}

// Two histograms over one axis, one above the other.
function drawHistograms(pairs) {
  const values = pairs.flatMap(({ plain, edlm }) => [plain, edlm]);
  if (!values.length) return $("histograms").replaceChildren();
  const low = Math.floor(Math.min(...values) * 10) / 10;
  const high = Math.max(Math.ceil(Math.max(...values) * 10) / 10, low + 0.1);
  const counts = Object.keys(KINDS).map((kind) => {
    const bins = new Array(BINS).fill(0);
    for (const pair of pairs) bins[Math.min(BINS - 1, Math.floor(((pair[kind] - low) / (high - low)) * BINS))] += 1;
    return bins;
  });
  const most = Math.max(...counts.flat());
  const rows = Object.keys(KINDS).map((kind, row) => {
    const all = pairs.map((pair) => pair[kind]);
    const name = element("div", "name");
    name.append(element("b", "", KINDS[kind]), element("span", "number", `mean ${amount(mean(all), 2)}`));
    const bars = element("div", `histogram ${kind}`);
    bars.setAttribute("role", "img");
    bars.setAttribute("aria-label", `${KINDS[kind]}: ${all.length} texts of ${amount(Math.min(...all), 2)} to ${amount(Math.max(...all), 2)} nats per token, mean ${amount(mean(all), 2)}`);
    for (const count of counts[row]) {
      const bar = element("i");
      bar.style.setProperty("--height", (count / most).toFixed(3));
      bars.append(bar);
    }
    const at = element("span", "mean");
    at.style.setProperty("--at", ((mean(all) - low) / (high - low)).toFixed(4));
    bars.append(at);
    const line = element("div", "line");
    line.append(name, bars);
    return line;
  });
  const axis = element("div", "axis number");
  axis.append(element("span", "", amount(low, 1)), element("span", "", "nats per token, low is likely"), element("span", "", amount(high, 1)));
  $("histograms").replaceChildren(...rows, axis);
}
