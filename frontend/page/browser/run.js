// One run over some rows: a few requests at a time, their progress, and an end. A row that fails does not end it.

import { fit } from "./shrink.js";

const CONCURRENCY = 4; // a browser opens six connections to a host
const TRIES = 8; // long enough for a replica to restart
const SAY_S = 15; // how often a screen reader hears of the progress
const of = (selector) => document.querySelector(selector);

export class Run {
  #jobs;
  #on;
  #active = new Set();
  #began = performance.now();
  #said = performance.now();
  #total;
  #done = 0;
  #failed = 0;
  #stopped = false;
  #last = "";

  // `jobs` are of { item, parameters, settings }. `on` has write, before, changed, ended and say.
  constructor(jobs, on) {
    [this.#jobs, this.#on, this.#total] = [[...jobs], on, jobs.length];
    for (const job of jobs) job.text = job.item.text;
    this.#show();
    this.finished = Promise.all(Array.from({ length: CONCURRENCY }, () => this.#work())).then(() => this.#end());
  }

  // Puts jobs in front of those that wait.
  first(jobs) {
    const items = new Set(jobs.map(({ item }) => item));
    const others = this.#jobs.filter(({ item }) => !items.has(item));
    for (const job of jobs) job.text = job.item.text;
    this.#total += jobs.length + others.length - this.#jobs.length;
    this.#jobs = [...jobs, ...others];
    this.#show();
  }

  stop() {
    this.#stopped = true;
    this.#jobs = [];
    for (const item of this.#active) item.writing.abort();
  }

  async #work() {
    for (let job; (job = this.#jobs.shift()); this.#show()) {
      if (job.item.text === job.text) await this.#write(job); // otherwise it was edited while it waited
      else this.#total--;
    }
  }

  async #write({ item, parameters, settings }) {
    const mine = (item.writing = new AbortController());
    this.#active.add(item);
    this.#on.changed(item);
    try {
      const fitted = await fit(new File([await item.open()], item.path.split("/").pop()));
      let text = "";
      const details = await this.#on.write(fitted, parameters, {
        signal: mine.signal,
        tries: TRIES,
        onText: (all) => {
          if (mine.signal.aborted) return;
          item.draft = text = all;
          this.#on.changed(item);
        },
      });
      mine.signal.throwIfAborted();
      this.#on.before(item);
      Object.assign(item, { text, details, settings, byHand: false, error: null });
      this.#done++;
      this.#last = `Caption of ${item.path}: ${text}`;
    } catch (error) {
      if (mine.signal.aborted) this.#total--;
      else {
        item.error = { code: error.code || "IMAGE_BROKEN", message: error.message };
        this.#failed++;
      }
    }
    [item.writing, item.draft] = [null, null];
    this.#active.delete(item);
    this.#on.changed(item);
    this.#on.ended(item);
  }

  #end() {
    const text = this.#show(this.#stopped ? "stopped" : "done");
    this.#on.say(this.#total === 1 && this.#last ? this.#last : text);
  }

  #show(ended = "") {
    const finished = this.#done + this.#failed;
    const rate = finished / ((performance.now() - this.#began) / 1000);
    const left = finished && !ended ? `${duration((this.#total - finished) / rate)} left` : "";
    const text = [
      `${finished} of ${this.#total}`,
      finished ? `${rate.toFixed(1)} images/s` : "",
      this.#failed ? `${this.#failed} failed` : "",
      left,
      ended,
    ].filter(Boolean).join(" · ");
    of("#progress").max = Math.max(1, this.#total);
    of("#progress").value = finished;
    of("#progress-text").textContent = text;
    if (performance.now() - this.#said > SAY_S * 1000) {
      this.#said = performance.now();
      this.#on.say(text);
    }
    return text;
  }
}

function duration(seconds) {
  const whole = Math.ceil(seconds);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}
