// ---------------------------------------------------------------- share, copy

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const curl = ({ path, body }) =>
  [`curl -s ${quoted(location.origin + path)} -H 'content-type: application/json'`, ...(key ? [`-H "authorization: Bearer $EDLM_API_KEY"`] : []), `-d ${quoted(JSON.stringify(body))}`].join(" \\\n  ");

// In the fragment, which no server sees. The text is in it only where the box is ticked.
function link() {
  const shared = new URLSearchParams({ mode: chosen("mode"), view: chosen("view") });
  for (const [name, id] of Object.entries(SHARED)) if ($(id).value !== "") shared.set(name, $(id).value);
  shared.set("model", `${model?.id}@${model?.model_version}`);
  if ($("share-text").checked) {
    if ($("match").value) shared.set("match", $("match").value);
    if (edited) shared.set("canvas", edited.tokens.map((id) => id ?? "_").join("."));
    else shared.set("text", $("prompt").value);
  }
  return `${location.origin}${location.pathname}#${shared}`;
}

const SHARED = { steps: "steps", k: "candidates", energy: "energy", tau: "temperature", from: "window-from", to: "window-to", tokens: "tokens", seed: "seed" };

// Apply the settings of the link; return whether it contains the text, so that it can run.
async function open() {
  const shared = new URLSearchParams(location.hash.slice(1));
  if (!shared.has("seed")) return false;
  for (const [name, id] of Object.entries(SHARED)) if (shared.has(name)) $(id).value = shared.get(name);
  for (const name of ["mode", "view"]) if (shared.has(name)) choose(name, shared.get(name));
  $("match").value = shared.get("match") ?? "";
  edit(null);
  const whole = shared.has("text") || shared.has("canvas");
  if (shared.has("text")) $("prompt").value = shared.get("text");
  if (shared.has("canvas")) {
    const tokens = shared.get("canvas").split(".").map((id) => (id === "_" ? null : Number(id)));
    edit({ tokens, pieces: tokens.map((id) => `\u27e8${id}\u27e9`) }); // until a run returns their text
  }
  $("share-text").checked = whole;
  reflect();
  const now = `${model.id}@${model.model_version}`;
  if (shared.get("model") !== now) say("Another model", `This link was made with ${shared.get("model")}; this server runs ${now}, so the text may differ.`);
  else if (!whole) say("A link without its text", "The link contains the settings and the seed. Enter the text of the original run to get the same result.");
  return whole;
}

function say(title, text) {
  const box = element("div", "notice");
  box.append(icon("info"), element("strong", "", title), element("p", "", text));
  $("notice").replaceChildren(box);
  $("notice").hidden = false;
}

async function copy(text, button, title) {
  const label = button.querySelector("span");
  try {
    await navigator.clipboard.writeText(text);
    const before = label.dataset.name ?? label.textContent;
    label.dataset.name = before;
    label.textContent = "Copied";
    setTimeout(() => (label.textContent = before), 1400);
  } catch {
    // Without a secure context or permission there is no clipboard: show the text, to be copied by hand.
    $("sheet-title").textContent = title;
    $("sheet-text").value = text;
    $("sheet").showModal();
    $("sheet-text").select();
  }
}

