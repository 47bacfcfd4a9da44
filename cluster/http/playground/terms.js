
// ---------------------------------------------------------------- terms: each symbol is explained on focus and hover

const TERMS = {
  steps: "T, the number of steps from all masked to none. Each is a pass of the denoiser. With few steps, many tokens are drawn at once, without regard to one another.",
  candidates: "k, the number of candidates that a step draws and the energy compares. 1 is plain diffusion; 0 draws from the energy itself, where it can be drawn from (k \u2192 \u221e).",
  energy: "E, the energy: a network that scores how well tokens go together. Low is likely.",
  temperature: "\u03c4 divides the energy in the weights exp(\u2212E/\u03c4): below 1 the energy decides more, above 1 less. The model\u2019s bounds hold for 1.",
  window: "t, the time of the canvas: 1 when all is masked, 0 at the end. Steps from a t outside these limits are plain ones, without an energy.",
  seed: "The seed of both runs: the same settings and the same seed give the same text.",
  match: "A regular expression, as Python\u2019s re.fullmatch reads it: the new text matches it as a whole, or for a text with gaps the whole text. Candidates are drawn from the texts that match, so that none is thrown away.",
  tokens: "Positions to fill after the text. More than one canvas holds are filled canvas by canvas.",
  ess: "Effective number of candidates: (\u03a3w)\u00b2 / \u03a3w\u00b2 of the weights w = exp(\u2212E/\u03c4). It is k if all weights are equal, and 1 if one candidate has all the weight.",
  weights: "Each candidate is kept with probability proportional to exp(\u2212E/\u03c4); candidates of the same tokens are one row. Bold: what the step unmasks. Italic: the rest of a whole draft, which stays masked. _: a position that stays masked. \u2026: positions that are left out.",
  scored: "Candidates that the energy compared, over all steps. For exact draws, passes of the energy.",
  passes: "Passes of the denoiser. A step that unmasks nothing needs none.",
  final: "Mean energy of the finished text over noise, \u00b1 its standard error. Low is likely; only differences between texts mean something.",
  bound: "Upper bound of \u2212log p(text) by plain diffusion in many steps (the NELBO), in nats per token: 1 nat is 1.44 bits. Low means that the model finds the text likely. \u00b1 is its standard error.",
  where: "t, the time of the canvas: 1 when all is masked, 0 at the end.",
};

// A term in a text that is drawn: a button, so that it can be focused by keyboard and by touch.
function term(name, text) {
  const button = element("button", "term", text);
  button.type = "button";
  button.dataset.term = name;
  button.setAttribute("aria-describedby", `term-${name}`);
  return button;
}

function defineTerms() {
  $("terms").replaceChildren(...Object.entries(TERMS).map(([name, text]) => {
    const definition = element("p", "", text);
    definition.id = `term-${name}`;
    return definition;
  }));
  const all = [document, $("run-template").content].flatMap((part) => [...part.querySelectorAll("[data-term]")]);
  for (const described of all) described.setAttribute("aria-describedby", `term-${described.dataset.term}`);
}

// The described element at or around this one; in a field, the one that the field is for.
const describedBy = (target) => target.closest?.("[data-term]") ?? target.closest?.(".field")?.querySelector("[data-term]");

let explained = null; // the element whose term is shown

function explain(target) {
  const described = describedBy(target);
  if (!described) return;
  explained = described;
  const tip = $("tip");
  tip.textContent = TERMS[described.dataset.term];
  tip.hidden = false;
  const at = (described.closest(".field") ?? described).getBoundingClientRect();
  const { width, height } = tip.getBoundingClientRect();
  const above = at.top - height - 8 > 0;
  tip.style.setProperty("--left", `${Math.max(8, Math.min(at.left, innerWidth - width - 8))}px`);
  tip.style.setProperty("--top", `${above ? at.top - height - 8 : at.bottom + 8}px`);
}

const hideTip = () => ($("tip").hidden = true);

document.addEventListener("focusin", (event) => (event.target.matches(":focus-visible, .term") ? explain(event.target) : hideTip()));
document.addEventListener("focusout", hideTip);
document.addEventListener("pointerover", (event) => {
  if (event.pointerType === "touch" || $("tip").contains(event.target)) return;
  if (describedBy(event.target)) explain(event.target);
  else if (explained !== describedBy(document.activeElement)) hideTip();
});
addEventListener("scroll", () => {
  if ($("tip").hidden) return;
  const stays = explained === describedBy(document.activeElement) || (explained.closest(".field") ?? explained).matches(":hover");
  if (stays) explain(explained);
  else hideTip();
}, { passive: true, capture: true });
