// What the server says: its events as they come, and its errors in words.

/** A failure that a reader is told. */
export class Failure extends Error {
  constructor(words, status = 0) {
    super(words);
    this.status = status;
  }
}

/** Ask the server; every answer that is not good is thrown as a Failure. */
export async function ask(path, key, options = {}) {
  const headers = { ...(options.body && { "content-type": "application/json" }), ...(key && { authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit" }); // the key alone opens
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server cannot be reached. Is it running, and are you connected?");
  }
  if (response.ok) return response;
  throw new Failure(await inWords(response), response.status);
}

async function inWords(response) {
  const body = await response.json().catch(() => null);
  const said = body?.error?.message ?? "";
  const wait = response.headers.get("retry-after");
  const again = wait ? ` Try again in ${wait} s.` : "";
  switch (response.status) {
    case 401: return `The server does not know this key${said ? `: ${said}` : ""}.`;
    case 403: return `This key may not do that${said ? `: ${said}` : ""}.`;
    case 413: return "The prompt is too long for this server.";
    case 429: return `Too many requests or tokens for this key.${again}`;
    case 503: return `The server is busy, or its engine is gone.${again || " Try again soon."}`;
  }
  if (body?.error?.param?.includes("logprobs")) return `${said}. Untick “Colour tokens by probability”.`;
  return said ? `${said[0].toUpperCase()}${said.slice(1)}.` : `The server answered with an error (${response.status}).`;
}

/** The events of a stream, parsed, until [DONE]. A stream that ends otherwise has broken off. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { done: true };
    });
    if (done) throw new Failure("The answer broke off: the server or the connection is gone.");
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Failure(`The answer broke off: ${event.error.message}.`);
      yield event;
    }
  }
}

/** Of an event its text, its tokens with their log-probabilities, and the tokens counted at the end. */
export function read(event) {
  const choice = event.choices?.[0];
  const text = choice?.delta?.content ?? choice?.text ?? "";
  const told = choice?.logprobs;
  const tokens = told?.content
    ? told.content.map((t) => [t.token, t.logprob, t.top_logprobs.map((a) => [a.token, a.logprob])])
    : (told?.tokens ?? []).map((token, i) => [token, told.token_logprobs[i], Object.entries(told.top_logprobs?.[i] ?? {})]);
  return { text, tokens, counted: event.usage?.completion_tokens };
}
