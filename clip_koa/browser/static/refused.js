// A refusal in the words of the page: its code is a key of texts.yaml, its values fill the blanks.

export class Refused extends Error {
  constructor(code, values = {}) {
    super(code);
    Object.assign(this, { code, values });
  }
}
