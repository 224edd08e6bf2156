// What is sent to the server, and why it refuses.

import { t } from "./dom.js";

const RETRY_AFTER = { too_many_at_once: 1000, too_fast: 5000 }; // ms, until there is room again

// A refusal in the words of the page; its code is a key of texts.yaml.
export class Refused extends Error {
  constructor({ refused, values = {} }) {
    super(t(refused, values));
    this.code = refused;
  }
}

// Sends again where there will be room in a moment.
export async function post(url, body) {
  for (;;) {
    const answer = await fetch(url, { method: "POST", body });
    if (answer.ok) return answer.json();
    const refused = new Refused(await answer.json().catch(() => ({ refused: "failed" })));
    if (!(refused.code in RETRY_AFTER)) throw refused;
    await new Promise((resolve) => setTimeout(resolve, RETRY_AFTER[refused.code]));
  }
}
