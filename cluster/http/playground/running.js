// ---------------------------------------------------------------- settings and requests

const number = (id) => ($(id).value.trim() === "" ? undefined : Number($(id).value));
const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;
const choose = (name, value) => {
  const input = document.querySelector(`input[name="${name}"][value="${CSS.escape(value)}"]`);
  if (input) input.checked = true;
};

// A text with gaps: {8} is eight masked positions.
const parts = (text) => text.split(/(\{\d+\})/).filter(Boolean).map((piece) => (/^\{\d+\}$/.test(piece) ? Number(piece.slice(1, -1)) : piece));

function request(kind) {
  const window = [number("window-from") ?? 0, number("window-to") ?? 1];
  const resampling = { candidates: number("candidates"), window, energy_temperature: number("temperature"), energy: $("energy").value || undefined };
  const constraint = $("match").value ? { regex: $("match").value } : undefined;
  const edlm = { steps: number("steps"), constraint, ...(kind === "plain" ? { candidates: 1 } : resampling) };
  const common = { model: model.id, seed: number("seed"), edlm };
  if (chosen("mode") === "continue")
    return { path: "/v1/completions", body: { ...common, prompt: $("prompt").value, max_tokens: number("tokens") } };
  return { path: "/v1/infill", body: edited ? { ...common, tokens: edited.tokens } : { ...common, parts: parts($("prompt").value) } };
}

const streamed = ({ kind, request: { path, body } }) => ({ path, body: { ...body, stream: true, stream_options: { denoising: true, candidate_tokens: kind === "edlm" } } });

async function leadOf(signal) {
  const text = chosen("mode") === "continue" ? $("prompt").value : "";
  if (!text) return [];
  const { tokens, pieces } = await ask("/v1/tokenize", { text }, signal);
  const lead = tokens.map((id, index) => ({ id, text: pieces[index] })).slice(-LEAD);
  lead.shortened = tokens.length > LEAD;
  return lead;
}

// ---------------------------------------------------------------- running

function drawSeed() {
  $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % 1000000;
  reflect();
}

async function start({ keepNotice = false, opening = false } = {}) {
  if (!model) return boot();
  halt();
  forgetRace();
  if (number("seed") === undefined) drawSeed(); // one seed for all runs, also part of the link
  if (!keepNotice) clearNotice();
  plan = null;
  const abort = new AbortController();
  const mine = (session = { runs: [], abort, settled: false, energy: $("energy").value, together: chosen("view") === "both" && $("order").value === "together" });
  $("verdict").hidden = true;
  $("summary").textContent = "";
  busy(true);
  try {
    const lead = await leadOf(abort.signal);
    if (session !== mine) return;
    mine.runs = kinds().map((kind) => new Run(kind, request(kind), lead));
    show(mine.runs);
    if (narrow.matches) {
      collapse(true);
      if (!opening) $("runs").scrollIntoView({ behavior: reduced.matches ? "auto" : "smooth" });
    }
    if (mine.together || mine.runs.length === 1) await Promise.all(mine.runs.map((run) => follow(run, abort)));
    else for (const run of mine.runs) await follow(run, abort);
  } catch (error) {
    if (error.name !== "AbortError" && session === mine) tell(error);
  }
  if (session !== mine) return;
  busy(false);
  if (edited && mine.runs[0]) edit({ ...edited, pieces: mine.runs[0].cells.map((cell) => cell.text) });
}

async function follow(run, abort) {
  try {
    abort.signal.throwIfAborted();
    const { path, body } = streamed(run);
    const response = await call(path, body, abort.signal);
    for await (const event of events(response)) run.take(event);
    run.state = "done";
  } catch (error) {
    if (error.name === "AbortError") {
      run.state = "stopped";
    } else {
      run.state = "failed";
      run.problem = error instanceof Problem ? error : new Problem(0, error.message);
      if (run.reached > 0) run.part("notice").replaceChildren(noticeOf(run.problem)), (run.part("notice").hidden = false);
      else tell(run.problem);
    }
  }
  if (run.details && run.details.model_version !== model.model_version) boot();
  draw(run);
}

// Stop the streams, and the replays at their last step.
function halt() {
  session?.abort.abort();
  for (const run of session?.runs ?? []) if (run.playing) move(run, run.reached);
  busy(false);
}

function busy(on) {
  $("stop-button").disabled = !on;
  $("run-button").textContent = on ? "Start over" : "Run";
  document.body.dataset.busy = on;
}

function show(runs) {
  const box = $("runs");
  box.replaceChildren(...runs.map((run) => {
    const card = $("run-template").content.firstElementChild.cloneNode(true);
    card.classList.add(run.kind);
    card.id = `run-${run.kind}`;
    run.card = card;
    run.part = (name) => card.querySelector(`[data-part="${name}"]`);
    run.spans = [];
    card.setAttribute("aria-label", KINDS[run.kind]);
    card.querySelector("h2").textContent = run.part("scoring").dataset.run = KINDS[run.kind];
    const { candidates, energy } = run.request.body.edlm;
    run.part("tag").textContent = run.kind === "plain" ? "k = 1" : `k = ${candidates === 0 ? "0, exact" : (candidates ?? "default")}${energy ? `, energy ${energy}` : ""}`;
    run.part("scrub").setAttribute("aria-label", `Step of ${KINDS[run.kind]}`);
    wire(run, card);
    return card;
  }));
  box.classList.toggle("one", runs.length === 1);
  runs.forEach(draw);
}

// Show the canvases to be filled, all masked, before the first run.
function preview() {
  if (session || !model) return;
  const positions = chosen("mode") === "continue" ? number("tokens") : parts($("prompt").value).reduce((sum, part) => sum + (typeof part === "number" ? part : 0), 0);
  show(kinds().map((kind) => {
    const run = new Run(kind, request(kind), []);
    Object.assign(run, { state: "idle", playing: false, steps: number("steps") ?? 1 });
    run.cells = Array.from({ length: Math.min(positions || 0, LEAD) }, () => ({ id: null, text: "", step: -1 }));
    return run;
  }));
}

const kinds = () => (chosen("view") === "both" ? Object.keys(KINDS) : [chosen("view")]);

function wire(run, card) {
  run.part("play").addEventListener("click", () => toggle(run));
  run.part("scrub").addEventListener("input", (event) => move(run, Number(event.target.value)));
  run.part("copy").addEventListener("click", (event) => copy(run.text(), event.currentTarget, "The text"));
  run.part("curl").addEventListener("click", (event) => copy(curl(run.request), event.currentTarget, "The same run from a terminal"));
  run.part("mask-all").addEventListener("click", () => cutAll(run, true));
  run.part("keep-all").addEventListener("click", () => cutAll(run, false));
  run.part("discard").addEventListener("click", () => discard());
  run.part("again").addEventListener("click", () => runEdited());
}

