// Numbers of a run and how they went: a line each for throughput, batch, blocks, latency.

const WINDOW = 20; // frames over which the speed is taken
const SPARK = 160; // frames that a line shows

// One row of values a frame, gathered as frames come.
class GaugeBook {
  constructor() {
    this.rows = [];
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

function quantile(sorted, share) {
  if (!sorted.length) return null;
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

// What the gauges say after `count` frames: [title, value, unit, values of the line, colour].
function readGauges(book, state, count) {
  const rows = book.rows.slice(Math.max(0, count - SPARK), count);
  const now = rows[rows.length - 1] || { speed: 0, running: 0, used: 0, waste: 0 };
  const requests = state.requests.filter(Boolean);
  const gaps = requests.flatMap((r) => r.gaps).sort((a, b) => a - b);
  const firsts = requests.filter((r) => r.firstAt !== null)
    .map((r) => r.firstAt - r.queuedAt).sort((a, b) => a - b);
  const percent = (value) => `${Math.round(100 * value)} %`;
  const hits = state.promptTokens ? percent(state.hitTokens / state.promptTokens) : "0 %";
  return [
    ["throughput", now.speed >= 100 ? now.speed.toFixed(0) : now.speed.toFixed(1), "tok/s",
      rows.map((r) => r.speed), 2],
    ["batch", String(now.running), `of ${state.maxSeqs} · ${state.preemptions} preempted`,
      rows.map((r) => r.running), 0],
    ["blocks in use", state.numUsable ? percent(state.used / state.numUsable) : "0 %",
      `${percent(now.waste)} waste, ${hits} hits`, rows.map((r) => r.used), 1],
    ["time to first token", milliseconds(quantile(firsts, 0.5)), "ms, median",
      firsts.length > 1 ? requests.filter((r) => r.firstAt !== null)
        .map((r) => r.firstAt - r.queuedAt) : [], 4],
    ["between tokens, p50 / p99", milliseconds(quantile(gaps, 0.5)),
      `/ ${milliseconds(quantile(gaps, 0.99))} ms`, rows.map((r) => r.gap ?? 0), 5],
  ];
}

function milliseconds(seconds) {
  if (seconds === null) return "–";
  const value = 1000 * seconds;
  return value >= 100 ? value.toFixed(0) : value.toFixed(1);
}

function drawSpark(canvas, values, colour, width, theme) {
  const height = 34;
  const c = fit(canvas, width, height);
  c.clearRect(0, 0, width, height);
  if (values.length < 2) return;
  const top = Math.max(...values, 1e-9);
  c.strokeStyle = colourOf(colour, theme);
  c.lineWidth = 1.5;
  c.lineJoin = "round";
  c.beginPath();
  values.forEach((value, i) => {
    const x = (i / (values.length - 1)) * (width - 2) + 1;
    const y = height - 2 - (value / top) * (height - 5);
    c[i ? "lineTo" : "moveTo"](x, y);
  });
  c.stroke();
}
