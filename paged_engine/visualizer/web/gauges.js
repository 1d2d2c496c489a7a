// Numbers of a run and how they went: a line each for throughput, batch, blocks, latency.

const WINDOW = 20; // frames over which the speed is taken
const SPARK = 160; // frames that a line shows
const SPARK_HEIGHT = 34;
const GAUGES = ["throughput", "batch", "blocks in use / waste / hits", "time to first token",
  "between tokens, p50 / p99"];

// One row of values a frame, gathered as frames come.
class GaugeBook {
  constructor() {
    this.rows = [];
    this.gaps = new SortedGaps();
  }

  // `state` is that after the frame.
  add(frame, state) {
    const rows = this.rows;
    const before = rows.length ? rows[rows.length - 1] : { t: 0, total: 0 };
    const tokens = frame.o.filter(([name]) => name === "k").length;
    const total = before.total + tokens;
    const old = rows[Math.max(0, rows.length - WINDOW)] || { t: 0, total: 0 };
    let running = 0;
    let empty = 0;
    for (const r of state.requests) {
      if (!r || r.status !== "running") continue;
      running += 1;
      empty += r.table.length * state.blockSize - r.computed;
    }
    rows.push({
      t: frame.t, total, running,
      speed: frame.t > old.t ? (total - old.total) / (frame.t - old.t) : 0,
      used: state.used,
      waste: state.used ? Math.max(0, empty) / (state.used * state.blockSize) : 0,
      gap: tokens && rows.length ? frame.t - before.t : null,
    });
  }
}

// All gaps between tokens in order of size.  A run has one a token, so only new ones are sorted.
class SortedGaps {
  constructor() {
    this.clear();
  }

  clear() {
    this.values = new Float64Array(256);
    this.length = 0;
    this.taken = []; // of each request, how many are in already
  }

  // Returns them, for the requests of a state.
  read(requests) {
    const back = this.taken.some((taken, number) => (requests[number]?.gaps.length ?? 0) < taken);
    if (back) this.clear(); // the cursor went back
    const fresh = [];
    for (const r of requests) {
      if (!r) continue;
      for (let i = this.taken[r.number] ?? 0; i < r.gaps.length; i++) fresh.push(r.gaps[i]);
      this.taken[r.number] = r.gaps.length;
    }
    this.merge(Float64Array.from(fresh).sort());
    return this.values.subarray(0, this.length);
  }

  merge(fresh) {
    let old = this.length - 1;
    this.length += fresh.length;
    if (this.length > this.values.length) {
      const longer = new Float64Array(2 * this.length);
      longer.set(this.values);
      this.values = longer;
    }
    // from the end, so that each moves once
    for (let to = this.length - 1, next = fresh.length - 1; next >= 0; to--) {
      this.values[to] = old >= 0 && this.values[old] > fresh[next]
        ? this.values[old--] : fresh[next--];
    }
  }
}

function quantile(sorted, share) {
  if (!sorted.length) return null;
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

// What the gauges say after `count` frames: [value, unit, values of the line, colour].
function readGauges(book, state, count) {
  const rows = book.rows.slice(Math.max(0, count - SPARK), count);
  const now = rows[rows.length - 1] || { speed: 0, running: 0, used: 0, waste: 0 };
  const gaps = book.gaps.read(state.requests);
  const waits = state.requests.filter((r) => r && r.firstAt !== null)
    .map((r) => r.firstAt - r.queuedAt);
  const firsts = Float64Array.from(waits).sort();
  const percent = (value) => `${Math.round(100 * value)} %`;
  const hits = state.promptTokens ? percent(state.hitTokens / state.promptTokens) : "0 %";
  return [
    [now.speed >= 100 ? now.speed.toFixed(0) : now.speed.toFixed(1), "tok/s",
      rows.map((r) => r.speed), 2],
    [String(now.running), `of ${state.maxSeqs} · ${state.preemptions} preempted`,
      rows.map((r) => r.running), 0],
    [state.numUsable ? percent(state.used / state.numUsable) : "0 %",
      `/ ${percent(now.waste)} / ${hits}`, rows.map((r) => r.used), 1],
    [milliseconds(quantile(firsts, 0.5)), "ms, median", waits.length > 1 ? waits : [], 4],
    [milliseconds(quantile(gaps, 0.5)),
      `/ ${milliseconds(quantile(gaps, 0.99))} ms`, rows.map((r) => r.gap ?? 0), 5],
  ];
}

function milliseconds(seconds) {
  if (seconds === null) return "–";
  const value = 1000 * seconds;
  return value >= 100 ? value.toFixed(0) : value.toFixed(1);
}

// The line of a gauge.  Not a canvas: each of those is a layer of the page, and has its price in
// every picture.
function drawSpark(path, values, colour, theme) {
  const top = Math.max(...values, 1e-9);
  const point = (value, i) => {
    const x = (i / (values.length - 1)) * SPARK;
    const y = SPARK_HEIGHT - 2 - (value / top) * (SPARK_HEIGHT - 5);
    return `${x.toFixed(1)} ${y.toFixed(1)}`;
  };
  put(path, "stroke", colourOf(colour, theme));
  put(path, "d", values.length < 2 ? "" : `M${values.map(point).join("L")}`);
}
