// ---------------------------------------------------------------- the composer

const OPENING_STEPS = 4; // few enough that the energy has something to repair
let openingFields = {}; // values of all fields as the page opened, by id

function mode() {
  if (chosen("mode") !== shownMode) {
    typed[shownMode] = $("prompt").value;
    shownMode = chosen("mode");
    $("prompt").value = typed[shownMode];
  }
  const fill = shownMode === "fill";
  $("prompt").hidden = fill && edited !== null;
  $("edited").hidden = !$("prompt").hidden;
  $("tokens").disabled = fill;
  const hint = $("hint");
  if (fill && edited) {
    const back = element("button", "button small", "Back to typing");
    back.type = "button";
    back.addEventListener("click", () => edit(null));
    hint.replaceChildren("An edited text: its masked positions are generated again. ", back);
  } else if (fill) {
    hint.replaceChildren("Write a gap as ", element("code", "", "{8}"), ": eight tokens to fill in. Or click tokens of a finished text.");
  } else {
    hint.textContent = "The text is continued. If empty, a text is generated from the beginning.";
  }
}

// On a phone the composer is one line after a run, so that the canvases are on the screen.
function collapse(on) {
  $("composer").classList.toggle("collapsed", on);
  $("change-button").hidden = !on;
}

function reflect() {
  for (const id of ["steps", "candidates"]) $(`${id}-range`).value = $(id).value;
  $("recap").textContent = `${$("steps").value} steps · k ${$("candidates").value} · seed ${$("seed").value}`;
}

// Load the model and its defaults into the fields, and run unless a link was opened; show an error if the server refuses.
async function boot() {
  const first = model === null;
  try {
    const { data } = await ask("/v1/models");
    model = { maskWidth: model?.maskWidth, id: data[0].id, ...data[0].edlm };
    if (!first) return describe();
    const example = model.data?.examples[0];
    if (example && $("prompt").value === typed.continue) typed.continue = $("prompt").value = opening(example);
    const sample = example || SAMPLE;
    const [whole, prompt] = await Promise.all([sample, typed.continue].map((text) => ask("/v1/tokenize", { text })));
    model.maskWidth = Math.min(5, Math.max(1, Math.round(sample.length / whole.count)));
    document.documentElement.style.setProperty("--mask-ch", model.maskWidth);
    typed.fill = await withGaps();
    fill(model.sampler, Math.max(8, Math.min(192, model.length - prompt.count)));
    describe(); // last: from here on, no field is overwritten
  } catch (error) {
    $("model").textContent = "no model";
    return tell(error);
  }
  if (await open()) start({ keepNotice: true });
  else if (!location.hash) start({ opening: true });
}

// The first words of a text of the model's data, which the first run continues.
const opening = (text) => text.trimStart().slice(0, 24).match(/^.*\s/s)?.[0] ?? text.trimStart().slice(0, 4);

function fill({ candidates, window, energy_temperature }, room) {
  $("energy").replaceChildren(...model.energies.map((name) => new Option(name, name)));
  $("energy").value = model.energy ?? model.energies[0] ?? "";
  if (!model.energies.length) choose("view", "plain");
  $("race-button").disabled = !model.energies.length;
  for (const view of ["both", "edlm"]) document.querySelector(`input[name="view"][value="${view}"]`).disabled = !model.energies.length;
  for (const [id, value] of Object.entries({ steps: OPENING_STEPS, candidates, temperature: energy_temperature, "window-from": window[0], "window-to": window[1], tokens: room })) $(id).value = value;
  mode();
  openingFields = Object.fromEntries([...Object.values(SHARED), "prompt", "match"].map((id) => [id, $(id).value]));
  drawPresets();
  reflect();
  preview();
}

// ---------------------------------------------------------------- events

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
$("stop-button").addEventListener("click", halt);
$("change-button").addEventListener("click", () => {
  collapse(false);
  $("prompt").focus();
});
for (const id of ["race-button", "race-again"]) $(id).addEventListener("click", startRace);
$("race-stop").addEventListener("click", stopRace);
$("dice").addEventListener("click", drawSeed);
$("share-button").addEventListener("click", (event) => {
  const shared = link();
  history.replaceState(null, "", shared);
  copy(shared, event.currentTarget, "A link to this run");
});
for (const id of ["steps", "candidates"]) {
  $(`${id}-range`).addEventListener("input", (event) => ($(id).value = event.target.value));
}
$("composer").addEventListener("input", (event) => {
  unmark(event.target);
  reflect();
  preview();
});
for (const input of document.querySelectorAll('input[name="mode"]')) input.addEventListener("change", () => edit(null));
$("theme").addEventListener("click", (event) => {
  const next = { undefined: "light", light: "dark", dark: undefined }[document.documentElement.dataset.theme];
  if (next) document.documentElement.dataset.theme = next;
  else delete document.documentElement.dataset.theme;
  event.currentTarget.setAttribute("aria-label", `Colours: ${next ?? "as the system"}`);
});
addEventListener("hashchange", async () => {
  if (!model) return;
  clearNotice();
  if (await open()) start({ keepNotice: true });
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("sheet").open) {
    hideTip();
    if (plan) return discard();
    stopRace();
    return halt();
  }
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    return start();
  }
  if (event.target.closest("input, select, textarea, button, summary, dialog, [role=option]") || event.ctrlKey || event.metaKey || event.altKey) return;
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!session?.runs.length || (step === undefined && event.key !== " ")) return;
  event.preventDefault();
  for (const run of session.runs) step === undefined ? toggle(run) : move(run, run.head + step);
});

$("settings").open = matchMedia("(min-width: 861px)").matches;
defineTerms();
requestAnimationFrame(tick);
boot();
