import { ask, events, Failure, read } from "./stream.js";

const KEY = "isoflop-key";
const STEPS = [0.9, 0.5, 0.2, 0.05]; // probabilities between the colours p0 to p4
const at = (id) => document.getElementById(id);
const [talk, prompt, problem] = [at("talk"), at("prompt"), at("error")];

let key = sessionStorage.getItem(KEY) ?? "";
let models = [];
let messages = []; // of the chat so far
let running = null; // an AbortController while an answer comes

// -- the key and the models --------------------------------------------------------------------------------

async function open() {
  problem.textContent = "";
  try {
    models = (await (await ask("v1/models", key)).json()).data;
  } catch (error) {
    return failed(error);
  }
  at("door").hidden = true;
  at("leave").hidden = !key;
  at("model").replaceChildren(...models.map((model) => new Option(model.id)));
  for (const part of [at("model"), at("model").labels[0]]) part.hidden = false;
  showWorth();
  prompt.focus();
}

function failed(error) {
  if (error.name === "AbortError") return;
  if (!(error instanceof Failure)) throw error;
  const closed = error.status === 401;
  problem.textContent = closed && !key ? "" : error.message; // without a key, asking for one says it
  if (closed) {
    at("door").hidden = false;
    at("key").focus();
  }
}

function showWorth() {
  const model = models.find(({ id }) => id === at("model").value);
  const parts = [];
  if (model?.bits_per_byte != null) parts.push(`${model.bits_per_byte.toFixed(3)} bits per byte of held-out text`);
  if (model?.bytes != null) parts.push(`${(model.bytes / 1e6).toFixed(1)} MB`);
  if (model?.engine) parts.push(model.engine);
  at("worth").textContent = parts.join(" · ");
}

at("door").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value.trim();
  sessionStorage.setItem(KEY, key);
  at("key").value = "";
  open();
});
at("leave").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  location.reload();
});
at("model").addEventListener("change", showWorth);

// -- asking ------------------------------------------------------------------------------------------------

async function send(text) {
  const chat = document.querySelector("[name=mode]:checked").value === "chat";
  const asked = chat ? [...messages, { role: "user", content: text }] : text;
  const turn = newTurn(text, chat);
  const controller = (running = new AbortController());
  busy(turn, true);
  try {
    const body = JSON.stringify(request(asked, chat));
    const began = performance.now();
    const response = await ask(chat ? "v1/chat/completions" : "v1/completions", key, { method: "POST", body, signal: controller.signal });
    turn.id = response.headers.get("x-request-id");
    for await (const event of events(response)) show(turn, read(event), began);
    if (!turn.text) turn.facts.textContent = "The answer is empty.";
  } catch (error) {
    if (error.name === "AbortError") turn.facts.textContent += turn.text ? " · stopped" : "Stopped.";
    else if (!turn.text) {
      turn.article.remove();
      prompt.value ||= text; // to be sent again
    }
    failed(error);
  } finally {
    running = null;
    busy(turn, false);
  }
  if (!turn.text) return;
  if (chat) messages = [...asked, { role: "assistant", content: turn.text }];
  turn.asked = asked;
  turn.rate.hidden = !turn.id;
  follow();
}

function request(asked, chat) {
  const coloured = at("colour").checked;
  return {
    model: at("model").value,
    ...(chat ? { messages: asked } : { prompt: asked }),
    stream: true,
    stream_options: { include_usage: true },
    temperature: at("temperature").valueAsNumber,
    max_tokens: at("most").valueAsNumber,
    ...(coloured && (chat ? { logprobs: true, top_logprobs: 5 } : { logprobs: 5 })),
  };
}

function busy(turn, is) {
  turn.article.setAttribute("aria-busy", is); // read aloud when it is whole
  const [from, to] = is ? [at("send"), at("stop")] : [at("stop"), prompt];
  at("stop").disabled = false;
  if (document.activeElement === from) to.focus(); // before it is disabled, or the focus would be lost
  at("stop").disabled = !is;
  at("send").disabled = is;
  at("anew").disabled = is;
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const fields = [at("temperature"), at("most")];
  const wrong = fields.find((field) => !field.checkValidity());
  if (wrong) {
    at("settings").open = true;
    return wrong.reportValidity();
  }
  const text = prompt.value;
  if (running || !text.trim()) return;
  problem.textContent = "";
  prompt.value = "";
  send(text);
});
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("ask").requestSubmit();
});
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
at("stop").addEventListener("click", () => running?.abort());
at("anew").addEventListener("click", () => {
  messages = [];
  talk.replaceChildren();
  problem.textContent = "";
  prompt.focus();
});

// -- showing -----------------------------------------------------------------------------------------------

function newTurn(text, chat) {
  at("empty")?.remove();
  const article = at("turn").content.cloneNode(true).firstElementChild;
  const part = (name) => article.querySelector(`.${name}`);
  const turn = { article, answer: part("answer"), detail: part("detail"), facts: part("facts"), rate: part("rate"), text: "", pieces: 0 };
  article.classList.toggle("continued", !chat);
  part("asked").textContent = text;
  listenToTokens(turn);
  listenToRatings(turn);
  talk.append(article);
  document.scrollingElement.scrollTop = document.scrollingElement.scrollHeight;
  return turn;
}

function show(turn, { text, tokens, counted }, began) {
  if (text || tokens.length) {
    const now = performance.now();
    turn.first ??= now;
    turn.last = now;
    turn.pieces += Math.max(tokens.length, 1);
    turn.text += text;
    turn.answer.append(...(tokens.length ? tokens.map(coloured) : [text]));
    if (tokens.length && turn.answer.tabIndex < 0) {
      turn.answer.tabIndex = 0;
      turn.answer.setAttribute("role", "group");
      turn.answer.setAttribute("aria-label", "Answer; arrow keys go from token to token");
    }
  }
  if (turn.first === undefined) return;
  const size = counted ?? turn.pieces;
  const seconds = (turn.last - turn.first) / 1000;
  const pace = size > 1 && seconds > 0 ? ` · ${((size - 1) / seconds).toPrecision(3) * 1} tokens/s` : "";
  turn.facts.textContent = `${size} ${size === 1 ? "token" : "tokens"}${pace} · first token after ${(turn.first - began).toFixed(0)} ms`;
  follow();
}

let following = false;

/** Keep the end in sight, once a frame, unless the reader has scrolled up. */
function follow() {
  const page = document.scrollingElement;
  if (following || page.scrollHeight - page.scrollTop - page.clientHeight > 400) return;
  following = true;
  requestAnimationFrame(() => {
    following = false;
    page.scrollTop = page.scrollHeight;
  });
}

function coloured([token, logprob, alternatives]) {
  const span = document.createElement("span");
  const step = STEPS.findIndex((least) => Math.exp(logprob) >= least);
  span.className = `t p${step < 0 ? STEPS.length : step}`;
  span.tabIndex = -1;
  span.textContent = token;
  span.told = [logprob, alternatives];
  return span;
}

function listenToTokens({ answer, detail }) {
  const tell = ({ target }) => target.told && describe(detail, target);
  answer.addEventListener("pointerover", tell);
  answer.addEventListener("focusin", tell);
  answer.addEventListener("keydown", (event) => {
    const from = document.activeElement;
    const to = {
      ArrowRight: from === answer ? answer.firstElementChild : from.nextElementSibling,
      ArrowLeft: from === answer ? answer.lastElementChild : from.previousElementSibling,
      Home: answer.firstElementChild,
      End: answer.lastElementChild,
    }[event.key];
    if (!to) return;
    event.preventDefault();
    to.focus();
  });
}

function describe(detail, span) {
  const [logprob, alternatives] = span.told;
  detail.hidden = false;
  const others = alternatives.filter(([token]) => token !== span.textContent);
  const named = (token, value) => {
    const code = document.createElement("code");
    code.textContent = `“${token.replaceAll("\n", "↵")}”`;
    return [code, ` ${percent(value)}`];
  };
  detail.replaceChildren(
    ...named(span.textContent, logprob),
    others.length ? "; else " : "; nothing else was told",
    ...others.flatMap(([token, value], i) => [...(i ? [", "] : []), ...named(token, value)]),
  );
}

function percent(logprob) {
  const value = 100 * Math.exp(logprob);
  return value < 0.1 ? "below 0.1%" : `${value.toFixed(value < 10 ? 1 : 0)}%`;
}

// -- rating ------------------------------------------------------------------------------------------------

function listenToRatings(turn) {
  const form = turn.rate.querySelector("form");
  const kept = turn.rate.querySelector(".kept");
  let rating = "";
  const tell = async (more) => {
    try {
      const body = JSON.stringify({ request_id: turn.id, rating, prompt: turn.asked, answer: turn.text, ...more });
      const { edited } = await (await ask("v1/feedback", key, { method: "POST", body })).json();
      if (more) kept.textContent = "Thank you; your comment is kept.";
      else if (edited) kept.textContent = "Thank you; it is kept. The answer was not whole, so no model learns from it.";
      else kept.textContent = "Thank you; it is kept with its prompt and answer.";
    } catch (error) {
      failed(error);
    }
  };
  for (const button of turn.rate.querySelectorAll("button[value]")) {
    button.addEventListener("click", () => {
      rating = button.value;
      for (const other of turn.rate.querySelectorAll("button[value]")) other.setAttribute("aria-pressed", other === button);
      form.hidden = false;
      follow();
      tell();
    });
  }
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    tell({ comment: form.querySelector("input").value });
  });
}

at("settings").open = matchMedia("(min-width: 64rem)").matches;
open();
