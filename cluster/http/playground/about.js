
// ---------------------------------------------------------------- what model this is, and how its own data scores

const CORPORA = { embedded: "Python\u2019s language reference", files: "text files", huggingface: "a data set of the Hugging Face hub", mixture: "a mixture of corpora" };
const TOY = 5e6; // weights: below that, texts are not to be expected to make sense
const DATA_DRAWS = 8; // per excerpt

const rounded = (count) => new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 2 }).format(count);

function describe() {
  const digest = element("code", "", model.digest.slice(0, 12));
  digest.title = `digest ${model.digest}`;
  $("model").replaceChildren(element("strong", "", model.id), element("span", "", `version ${model.model_version}`), digest, element("span", "", `canvas of ${model.length}`));
  const size = model.layers === null ? `${rounded(model.weights)} weights` : `${model.layers} layer${model.layers === 1 ? "" : "s"} of width ${model.width}, ${rounded(model.weights)} weights`;
  const sentences = [`${model.weights < TOY ? "A toy model" : "The model"}: ${amount(model.vocabulary)} tokens, ${size}`];
  if (model.data) sentences[0] += `; trained for ${amount(model.data.steps)} steps on ${rounded(model.data.tokens)} tokens of ${CORPORA[model.data.corpus] ?? `a ${model.data.corpus} source`}`;
  if (model.weights < TOY) sentences.push("Expect the look of its language rather than sense");
  $("about").replaceChildren(`${sentences.join(". ")}.`);
  const example = model.data?.examples.at(-1);
  if (!example) return;
  const quote = element("q", "", example.trim().slice(0, 100));
  $("about").append(" Text that it was not trained on: ", quote, element("span", "", "\u2026"));
}

// Nats per token of the excerpts of the model's validation text: what a text of the data scores. Null if there are none.
async function scoreData(signal) {
  if (!model.data?.examples.length) return null;
  if (model.dataScore) return model.dataScore;
  let nats = 0;
  for (const text of model.data.examples) {
    const { nelbo, tokens } = await ask("/v1/score", { text, seed: 1, draws: DATA_DRAWS, edlm: { steps: 1, candidates: 1 } }, signal);
    nats += nelbo.nats / tokens / model.data.examples.length;
  }
  return (model.dataScore = nats);
}
