"use strict";
// Elements are looked up by id, always: a global such as `stop` is a property of the window.
const $ = (id) => document.getElementById(id);
const reduced = matchMedia("(prefers-reduced-motion: reduce)");
const narrow = matchMedia("(max-width: 860px)");
const SVG = "http://www.w3.org/2000/svg";
const SAMPLE = "The quick brown fox jumps over the lazy dog, and runs away.";
const LEAD = 512; // last tokens of a prompt that are shown
const SCORE_DRAWS = 32;
const CLICK = "Click tokens to mask them and generate them again.";
const KINDS = { plain: "Plain diffusion", edlm: "EDLM" };

let model = null; // the model in /v1/models
let key = ""; // the API key: in memory only
let edited = null; // a text with masked positions, made by clicking: {tokens: [id | null], pieces: [text]}
let plan = null; // the clicks so far: {run, cut: Set of positions, anchor}
let session = null; // the runs that were started together: {runs, abort, requests, together, settled}
const typed = { continue: "the ", fill: "" }; // content of the text field in each mode
let shownMode = "continue";

// ---------------------------------------------------------------- the server

class Problem extends Error {
  constructor(status, message, { code = null, param = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param, retryAfter });
  }
}

async function call(path, body, signal) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const options = { headers, signal, cache: "no-store" };
  if (body) Object.assign(options, { method: "POST", body: JSON.stringify(body), headers: { ...headers, "content-type": "application/json" } });
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The server cannot be reached.", { code: "unreachable" });
  }
  if (response.ok) return response;
  const error = await response.json().then((answer) => answer.error, () => null);
  const seconds = Number(response.headers.get("retry-after"));
  throw new Problem(response.status, error?.message ?? `HTTP status ${response.status}.`, {
    code: error?.code, param: error?.param, retryAfter: seconds > 0 ? seconds : null,
  });
}

const ask = async (path, body, signal) => (await call(path, body, signal)).json();

// The data of each server-sent event. A stream without a final [DONE] raises a Problem.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let whole = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
        if (data === "[DONE]") whole = true;
        else if (data) yield JSON.parse(data);
      }
    }
  } catch (error) {
    if (whole || error.name === "AbortError") throw error;
    throw new Problem(0, error.message, { code: "lost" });
  }
  if (!whole) throw new Problem(0, "The stream ended early.", { code: "lost" });
}

