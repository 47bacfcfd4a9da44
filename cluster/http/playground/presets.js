
// ---------------------------------------------------------------- presets: a click sets all fields, and runs

const FRAME = "the [a-z]+ of the [a-z]+ is [a-z ]+";

const PRESETS = [
  { name: "Fill the gap", apply: async () => ({ mode: "fill", prompt: await gapped() }) },
  { name: "One step: plain against exact", needs: () => model.exact.length, apply: () => ({ steps: 1, candidates: 0, energy: model.exact[0] }) },
  { name: `Must match: ${FRAME}`, apply: () => ({ prompt: "", match: FRAME, tokens: Math.min(64, model.length) }) },
];

function drawPresets() {
  const offered = PRESETS.filter(({ needs }) => model.energies.length && (needs?.() ?? true));
  $("presets").replaceChildren(...offered.map(({ name, apply }) => {
    const button = element("button", "button small", name);
    button.type = "button";
    button.addEventListener("click", async () => {
      try {
        preset(await apply());
      } catch (error) {
        return tell(error);
      }
      start();
    });
    return button;
  }));
}

// Set the fields to the opening ones, but for those that are given.
function preset({ mode: how = "continue", ...fields }) {
  choose("mode", how);
  choose("view", "both");
  edit(null);
  const opened = how === "fill" ? { ...openingFields, prompt: typed.fill } : openingFields;
  for (const [id, value] of Object.entries({ ...opened, ...fields })) $(id).value = value;
  reflect();
}

// A text of the model's data without its middle words: a gap of as many tokens as they have.
async function gapped() {
  const example = model.data?.examples.at(-1);
  if (!example) return typed.fill;
  const words = example.trim().slice(0, model.length * model.maskWidth).split(" ");
  const [from, to] = [Math.floor(words.length * 0.35), Math.ceil(words.length * 0.65)];
  const { count } = await ask("/v1/tokenize", { text: words.slice(from, to).join(" ") });
  return `${[...words.slice(0, from), `{${count}}`, ...words.slice(to)].join(" ")}`;
}
