// What a run's rounds add up to.

/** Counts over the rounds of one answer, and the times that the page measured. */
export class Counts {
  constructor(clock = () => performance.now()) {
    this.clock = clock;
    this.startedMs = clock();
    this.firstMs = null;
    this.lastMs = null;
    this.tokens = 0;
    this.rounds = 0;
    this.drafted = 0;
    this.accepted = 0;
    this.progress = [[0, 0]]; // [seconds since the start, tokens by then]
  }

  add(round) {
    this.lastMs = this.clock();
    this.firstMs ??= this.lastMs;
    this.rounds += 1;
    this.tokens += round.committed.length;
    this.drafted += round.draft.length;
    this.accepted += round.num_accepted;
    this.firstTokens ??= this.tokens;
    this.progress.push([this.elapsedS, this.tokens]);
  }

  /** From the request to the last token so far. */
  get elapsedS() {
    return this.lastMs === null ? 0 : (this.lastMs - this.startedMs) / 1000;
  }

  /** From the request to the first token. */
  get ttftS() {
    return this.firstMs === null ? null : (this.firstMs - this.startedMs) / 1000;
  }

  /** After the first round, so that reading the prompt is out of it. */
  get tokensPerS() {
    const seconds = (this.lastMs - this.firstMs) / 1000;
    return seconds > 0 ? (this.tokens - this.firstTokens) / seconds : null;
  }

  /** Committed tokens per round, the target's own included. */
  get mat() {
    return this.rounds ? this.tokens / this.rounds : null;
  }

  get acceptance() {
    return this.drafted ? this.accepted / this.drafted : null;
  }
}

/** Counts as [name, value, what it is], in the order in which they are shown. */
export function shown(counts) {
  const acceptance = counts.acceptance === null ? "–" : `${Math.round(100 * counts.acceptance)} %`;
  return [
    ["Tokens/s", number(counts.tokensPerS, 1), "after the first round"],
    ["First token", seconds(counts.ttftS), "from the request (TTFT)"],
    ["Tokens/round", number(counts.mat, 2), "committed, the target's own included (MAT)"],
    ["Accepted", acceptance, "of the tokens that were guessed"],
    ["Tokens", String(counts.tokens), "committed so far"],
    ["Rounds", String(counts.rounds), "passes of the target that committed something"],
  ];
}

export function number(value, digits) {
  return value === null || !Number.isFinite(value) ? "–" : value.toFixed(digits);
}

/** A duration that is easy to read: 0.42 s, 38 ms. */
export function seconds(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  return value < 0.1 ? `${(1000 * value).toFixed(value < 0.01 ? 1 : 0)} ms` : `${value.toFixed(2)} s`;
}
