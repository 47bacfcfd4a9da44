// ---------------------------------------------------------------- editing: click tokens to mask them, and run again

function makeEditable(run) {
  const canvas = run.part("canvas");
  run.options = true;
  run.part("say").textContent = CLICK;
  canvas.classList.add("editable");
  canvas.setAttribute("role", "listbox");
  canvas.setAttribute("aria-multiselectable", "true");
  canvas.setAttribute("aria-label", `Tokens of ${KINDS[run.kind]}: selected tokens are masked and generated again`);
  run.spans.forEach((tok, position) => {
    tok.setAttribute("role", "option");
    tok.setAttribute("aria-selected", "false");
    tok.tabIndex = position === 0 ? 0 : -1;
  });
  const positionOf = (event) => {
    const tok = document.elementFromPoint(event.clientX, event.clientY)?.closest?.(".tok");
    return tok && canvas.contains(tok) ? Number(tok.dataset.position) : null;
  };
  let painting = null; // {from, cut}: a drag that masks or keeps a range
  canvas.addEventListener("pointerdown", (event) => {
    const position = positionOf(event);
    if (position === null || event.button !== 0) return;
    painting = { from: position, cut: press(run, position, event.shiftKey) };
    run.spans[position].focus({ preventScroll: true });
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!event.buttons) painting = null;
    const position = painting ? positionOf(event) : null;
    if (position !== null && position !== plan?.anchor) cut(run, painting.from, position, painting.cut);
  });
  canvas.addEventListener("keydown", (event) => keyOnToken(run, event));
}

function begin(run) {
  if (plan?.run === run) return;
  const before = plan?.run;
  // Positions that a stopped run did not unmask stay masked.
  plan = { run, cut: new Set(run.cells.flatMap((cell, position) => (cell.id === null ? [position] : []))), anchor: null };
  if (before) redrawPlan(before);
}

function press(run, position, extend) {
  begin(run);
  const anchor = plan.anchor;
  if (extend && anchor !== null) {
    cut(run, anchor, position, plan.cut.has(anchor));
    return plan.cut.has(anchor);
  }
  const mask = !plan.cut.has(position);
  cut(run, position, position, mask);
  return mask;
}

function cut(run, from, to, mask) {
  for (let position = Math.min(from, to); position <= Math.max(from, to); position++) {
    if (mask) plan.cut.add(position);
    else if (run.cells[position].id !== null) plan.cut.delete(position);
  }
  plan.anchor = to;
  redrawPlan(run);
}

function cutAll(run, mask) {
  begin(run);
  cut(run, 0, run.cells.length - 1, mask);
}

function redrawPlan(run) {
  Object.assign(run, { playing: false, calm: true, head: run.reached });
  draw(run);
  const count = plan?.run === run ? plan.cut.size : null;
  for (const name of ["mask-all", "keep-all", "discard", "again"]) run.part(name).hidden = count === null;
  run.part("again").disabled = count === 0;
  run.part("say").textContent = count === null ? CLICK : `${count} of ${run.cells.length} masked`;
}

function discard() {
  const run = plan?.run;
  plan = null;
  if (run) redrawPlan(run);
}

function runEdited() {
  const { run, cut: masked } = plan;
  edit({ tokens: run.cells.map((cell, position) => (masked.has(position) ? null : cell.id)), pieces: run.cells.map((cell) => cell.text) });
  start();
}

// Make the composer run `text`, or the typed text if it is null.
function edit(text) {
  edited = text;
  if (text) choose("mode", "fill");
  $("edited").replaceChildren(...(text?.tokens ?? []).map((id, position) => (id === null ? element("span", "tok masked", "\u00a0") : document.createTextNode(text.pieces[position]))));
  mode();
  preview();
}

function keyOnToken(run, event) {
  const position = Number(event.target.dataset?.position ?? NaN);
  if (Number.isNaN(position)) return;
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step !== undefined) {
    const next = Math.min(Math.max(position + step, 0), run.spans.length - 1);
    run.spans[position].tabIndex = -1;
    run.spans[next].tabIndex = 0;
    run.spans[next].focus();
    if (event.shiftKey && plan?.run === run && plan.anchor !== null) cut(run, position, next, plan.cut.has(position));
  } else if (event.key === " " || event.key === "Enter") press(run, position, false);
  else return;
  event.preventDefault();
  event.stopPropagation();
}

