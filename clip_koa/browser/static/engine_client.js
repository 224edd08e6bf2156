// The page's side of the worker that grades.

import { Refused } from "./refused.js";

const MOST_THREADS = 4;

export class Engine {
  // `base` is the address of the page's folder.
  constructor(base) {
    this.base = base;
    this.threads = globalThis.crossOriginIsolated ? Math.max(1, Math.min(MOST_THREADS, navigator.hardwareConcurrency)) : 1;
    this.waiting = new Map();
    this.count = 0;
    // A worker made of a blob keeps to the page's content-security-policy; one of an address would have its own.
    const at = (name) => JSON.stringify(new URL(name, base).href);
    const source = `importScripts(${at("vendor/dicomParser.min.js")}); import(${at("page/engine.js")});`;
    this.address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
    this.worker = new Worker(this.address, { name: "clip-koa" });
    this.worker.onmessage = ({ data }) => this.settle(data);
    this.worker.onerror = () => this.settle({ id: 0, refused: { code: "failed_here" } });
    this.listens = new Promise((resolve, reject) => this.waiting.set(0, { resolve, reject }));
    this.listens.catch(() => {}); // told to whoever asks
  }

  settle({ id, answer, refused }) {
    const asked = this.waiting.get(id);
    this.waiting.delete(id);
    if (refused?.cause) console.warn(refused.cause);
    if (refused) asked?.reject(new Refused(refused.code, refused.values));
    else asked?.resolve(answer);
  }

  async ask(task, given, moved = []) {
    await this.listens;
    const id = ++this.count;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.worker.postMessage({ id, task, ...given }, moved);
    });
  }

  // The model's facts, once it is loaded; where that failed, the next question tries again.
  load() {
    this.loading ??= this.ask("load", { base: this.base, threads: this.threads });
    this.loading.catch(() => (this.loading = null));
    return this.loading;
  }
}
