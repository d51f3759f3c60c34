// Requests to the server that this page came from.

let token = sessionStorage.getItem("everstep-token");

export function useToken(value) {
  token = value;
  sessionStorage.setItem("everstep-token", value);
}

export class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

async function fetched(path, method, body, signal) {
  const headers = {};
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server does not answer.");
  }
  if (answer.ok) return answer;
  let sentence = `The server answers ${answer.status}.`;
  try {
    sentence = (await answer.json()).error || sentence;
  } catch { /* an answer without a sentence */ }
  throw new Refused(answer.status, sentence);
}

export async function ask(path, body, { method = body === undefined ? "GET" : "POST", signal } = {}) {
  const answer = await fetched(path, method, body, signal);
  return answer.status === 204 ? null : answer.json();
}

// Server-sent events of a POST, as [name, value].
export async function* events(path, body, signal) {
  const answer = await fetched(path, "POST", body, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const name = lines.find((line) => line.startsWith("event: "))?.slice(7) ?? "message";
      yield [name, JSON.parse(lines.find((line) => line.startsWith("data: ")).slice(6))];
    }
  }
}
