// ---------------------------------------------------------------- a run: the state of one stream

class Run {
  constructor(kind, request, lead) {
    Object.assign(this, { kind, request, lead, offset: lead.length });
    this.cells = lead.map((cell) => ({ ...cell, step: 0 }));
    this.reached = 0; // the newest step that arrived
    this.steps = request.body.edlm.steps ?? 1;
    this.seen = new Map(); // step -> {t, passes, scored} where a frame of that step arrived
    this.scorings = new Map(); // step -> {energies, picked, ess, tokens}
    this.head = 0; // the step that is shown
    this.playing = true;
    this.moved = 0;
    this.state = "waiting"; // idle, waiting, running, done, stopped, failed
    this.details = this.problem = this.finish = this.score = null;
  }

  // Whether the server took nothing of it.
  get refused() {
    return this.state === "failed" && this.reached === 0;
  }

  get closed() {
    return ["done", "stopped", "failed"].includes(this.state);
  }

  take(event) {
    if (event.error) throw new Problem(0, event.error.message, event.error);
    for (const choice of event.choices ?? []) if (choice.finish_reason) this.finish = choice.finish_reason;
    if (event.edlm?.state) this.advance(event.edlm.state);
    if (event.edlm?.details) this.details = event.edlm.details;
  }

  advance(state) {
    while (this.cells.length < this.offset + state.positions) this.cells.push({ id: null, text: "", step: -1 });
    for (const [position, id, text, step] of state.unmasked) Object.assign(this.cells[this.offset + position], { id, text, step });
    Object.assign(this, { reached: Math.max(this.reached, state.step), steps: state.steps, block: state.block });
    this.candidates = state.candidates;
    this.seen.set(state.step, { t: state.t, passes: state.denoiser_calls, scored: state.energy_calls });
    if (state.energies && state.scored_step !== null && !this.scorings.has(state.scored_step))
      this.scorings.set(state.scored_step, { energies: state.energies, picked: state.picked, ess: state.ess, tokens: state.candidate_tokens ?? null });
    if (state.step > 0) this.state = "running";
  }

  // The latest entry of a Map at or before the step that is shown.
  latest(map) {
    let found = null;
    for (const [step, value] of map) if (step <= this.head && (found === null || step > found.step)) found = { step, ...value };
    return found;
  }

  masked() {
    return this.cells.filter((cell) => cell.step < 0 || cell.step > this.head).length;
  }

  // Positions that were masked at the start.
  toFill() {
    return this.cells.filter((cell) => cell.step !== 0).length;
  }

  // Positions that the sampler filled: neither prompt nor given.
  filled() {
    return this.cells.filter((cell) => cell.step > 0).length;
  }

  text(from = 0) {
    return this.cells.slice(from).filter((cell) => cell.step >= 0).map((cell) => cell.text).join("");
  }

  tokens() {
    return this.cells.filter((cell) => cell.step >= 0).map((cell) => cell.id);
  }

  get whole() {
    return this.cells.every((cell) => cell.id !== null || cell.step < 0) && !this.lead.shortened;
  }
}

