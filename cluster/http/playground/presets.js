
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

const counted = (texts) => Promise.all(texts.map(async (text) => (text ? (await ask("/v1/tokenize", { text })).count : 0)));

// A text of the model's data without its middle words: a gap of as many tokens as they have. It fits the canvas.
async function gapped() {
  const words = model.data?.examples.at(-1)?.trim().slice(0, model.length * model.maskWidth).split(" ") ?? [];
  while (words.length > 2) {
    const [from, to] = [Math.floor(words.length * 0.35), Math.ceil(words.length * 0.65)];
    const around = [words.slice(0, from).join(" "), words.slice(to).join(" ")].map((text, after) => text && (after ? ` ${text}` : `${text} `));
    const [count, ...others] = await counted([words.slice(from, to).join(" "), ...around]);
    if (count + others[0] + others[1] <= model.length) return around.join(`{${count}}`);
    words.splice(Math.min(-1, -Math.floor(words.length / 8))); // a word alone may have more tokens than in its place
  }
  return typed.fill;
}

// A text with gaps for any model, which fits the canvas: one gap is all of it where the words leave none.
async function withGaps() {
  const letters = model.maskWidth === 1;
  const pieces = letters ? ["the ", " of the ", " is ", ""] : ["The ", " of the ", " is ", "."];
  const taken = (await counted(pieces)).reduce((sum, count) => sum + count, 0);
  const gap = Math.min(letters ? 14 : 6, Math.floor((model.length - taken) / (pieces.length - 1)));
  return gap > 0 ? pieces.join(`{${gap}}`) : `{${model.length}}`;
}
