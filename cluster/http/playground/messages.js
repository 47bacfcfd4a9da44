// ---------------------------------------------------------------- messages

const MESSAGES = {
  401: () => (key ? ["This key is not known", "The server has no such API key; it may be mistyped, or revoked."] : ["This server asks for an API key", "It is kept in the memory of this page and sent to this server only."]),
  429: (problem) => ["The server is busy", `${problem.message} This run was not started.`],
  503: (problem) => ["The model is not ready", problem.message],
  deadline_exceeded: (problem) => ["Deadline exceeded", `${problem.message} Use fewer steps, candidates or tokens.`],
  lost: () => ["The connection was lost", "The stream ended before it was complete. The tokens received so far are kept; the same seed gives the same text again."],
  unreachable: () => ["The server cannot be reached", "It may be starting or stopped. Run again later."],
};

const FIELDS = { "edlm.steps": "steps", "edlm.candidates": "candidates", "edlm.window": "window-from", "edlm.energy_temperature": "temperature", "edlm.energy": "energy", seed: "seed", max_tokens: "tokens", prompt: "prompt", parts: "prompt", tokens: "prompt", "edlm.constraint": "match", "edlm.constraint.regex": "match" };

// The field of the composer that a refused field of the request comes from.
const fieldOf = (param) => FIELDS[param] ?? FIELDS[param?.split(".")[0]];

// What is wrong, in the words of the label instead of the name of the request's field.
function worded({ message, param }) {
  const field = fieldOf(param);
  if (!field) return message;
  const label = field === "prompt" ? "Text" : ($(field).ariaLabel ?? $(field).labels[0].textContent);
  const about = message.startsWith(`${param}: `) ? message.slice(param.length + 2) : null;
  if (about === null) return message.replaceAll(param, label);
  return about.startsWith("Input ") ? `${label}${about.slice("Input".length)}.` : `${label}: ${about}`;
}

function noticeOf(problem) {
  const refused = ["Invalid settings", worded(problem)];
  const failed = ["The server failed", problem.message];
  const [title, text] = (MESSAGES[problem.code] ?? MESSAGES[problem.status])?.(problem) ?? (problem.status >= 400 && problem.status < 500 ? refused : failed);
  const box = element("div", "notice");
  box.setAttribute("role", "status");
  box.dataset.code = problem.code ?? problem.status;
  box.append(icon("info"), element("strong", "", title), element("p", "", text));
  const actions = element("div", "actions");
  if (problem.status === 401) actions.append(keyForm());
  else if (problem.retryAfter || ["lost", "unreachable"].includes(problem.code)) actions.append(retry(problem.retryAfter ?? 0));
  if (actions.childNodes.length) box.append(actions);
  const field = fieldOf(problem.param);
  if (field) mark($(field), text);
  return box;
}

// Mark a field as refused, with the reason below it, which assistive technology reads with the field.
function mark(field, text) {
  unmark(field);
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-describedby", [field.getAttribute("aria-describedby"), faultId(field)].filter(Boolean).join(" "));
  const fault = element("p", "fault", text);
  fault.id = faultId(field);
  (field.closest(".pair") ?? field).after(fault);
  field.closest("details")?.setAttribute("open", "");
}

function unmark(field) {
  if (!field.hasAttribute("aria-invalid")) return;
  field.removeAttribute("aria-invalid");
  const others = (field.getAttribute("aria-describedby") ?? "").split(" ").filter((id) => id !== faultId(field));
  if (others.join("")) field.setAttribute("aria-describedby", others.join(" "));
  else field.removeAttribute("aria-describedby");
  $(faultId(field))?.remove();
}

const faultId = (field) => `${field.id}-fault`;

function keyForm() {
  const form = element("form", "pair");
  const input = element("input");
  Object.assign(input, { type: "password", autocomplete: "off", id: "key" });
  input.setAttribute("aria-label", "API key");
  const send = element("button", "button", "Use it");
  form.append(input, send);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    key = input.value.trim();
    clearNotice();
    if (!model) await boot();
    else start();
  });
  return form;
}

function retry(seconds) {
  const button = element("button", "button", "Run again");
  button.type = "button";
  button.addEventListener("click", () => start());
  const until = performance.now() + seconds * 1000;
  const count = () => {
    const left = Math.ceil((until - performance.now()) / 1000);
    button.disabled = left > 0;
    button.textContent = left > 0 ? `Run again in ${left} s` : "Run again";
    if (left > 0 && (button.isConnected || left === seconds)) setTimeout(count, 250);
  };
  count();
  return button;
}

function tell(problem) {
  const box = noticeOf(problem instanceof Problem ? problem : new Problem(0, problem.message));
  $("notice").replaceChildren(box);
  $("notice").hidden = false;
}

function clearNotice() {
  $("notice").hidden = true;
  $("notice").replaceChildren();
  for (const field of document.querySelectorAll("[aria-invalid]")) unmark(field);
}

