// The batch: a lane a request over the steps, and how each step's budget was spent.

const ROW = 19;
const GUTTER = 40;
const BUDGET_HEIGHT = 38;
const MOST_ROWS = 24;
const ROUNDED = 13; // pixels that a step needs for round corners to be seen

// What the lanes show, gathered frame by frame.
class LaneBook {
  constructor() {
    this.lanes = [];
    this.steps = []; // {step, budget, prefill, decode, frame}
  }

  // Lanes of requests that the key frame has already.
  begin(state) {
    for (const r of state.requests) {
      if (r) this.lanes[r.number] = newLane(r.number, state.step, r.tokens.length);
    }
  }

  add(frame, number) {
    const scheduled = [];
    let step = null;
    if (frame.b) {
      step = { step: frame.s, budget: frame.b, prefill: 0, decode: 0, frame: number };
      this.steps.push(step);
    }
    for (const [name, r, ...values] of frame.o) {
      const lane = this.lanes[r];
      if (name === "q") this.lanes[r] = newLane(r, frame.b ? frame.s - 1 : frame.s, 0);
      else if (name === "r") closeWait(lane, frame.s - 1);
      else if (name === "d") scheduled.push([lane, values[1], lane.numTokens]);
      else if (name === "k") {
        lane.tokens.push([frame.s, values[0], values[1]]);
        lane.numTokens += 1;
      } else if (name === "w") {
        if (values[0] === "preempted" && !frame.f) lane.preempted.push(frame.s);
        lane.waitingSince = frame.f ? frame.s : frame.s - 1;
      } else if (name === "z") {
        closeWait(lane, frame.s);
        lane.ended = [frame.s, values[0]];
      }
    }
    if (frame.f) return;
    for (const [lane, count, before] of scheduled) {
      const kind = count > 1 || before === 0 ? "prefill" : "decode";
      step[kind] += count;
      lane.parts.push([frame.s, kind, count]);
    }
  }
}

function newLane(number, since, numTokens) {
  return {
    number, numTokens, since, waitingSince: since,
    waits: [], parts: [], preempted: [], tokens: [], ended: null,
  };
}

function closeWait(lane, until) {
  if (lane.waitingSince !== null && until > lane.waitingSince) {
    lane.waits.push([lane.waitingSince, until]);
  }
  lane.waitingSince = null;
}

class Lanes {
  constructor(canvas) {
    this.canvas = canvas;
  }

  // `step` is where the cursor stands; later steps are drawn faintly.
  draw(book, step, width, theme, pick) {
    const last = book.steps.length ? book.steps[book.steps.length - 1].step : 0;
    const room = Math.max(40, width - GUTTER - 10);
    const size = Math.max(4, Math.min(14, room / Math.max(1, last)));
    const fits = Math.floor(room / size);
    const from = last <= fits ? 0 : Math.max(0, Math.min(last - fits, step - Math.floor(fits * 0.7)));
    const to = from + fits;
    const lanes = book.lanes.filter((lane) => lane && lane.since <= to && lane.since <= step &&
      (lane.ended === null || lane.ended[0] >= from));
    this.hidden = Math.max(0, lanes.length - MOST_ROWS);
    const shown = lanes.slice(-MOST_ROWS);
    const height = Math.max(4, shown.length) * ROW + BUDGET_HEIGHT + 14;
    const c = fit(this.canvas, width, height, theme.card);
    const x = (border) => GUTTER + (border - from) * size;
    Object.assign(this, { book, shown, from, to, size, step });
    c.font = "11px system-ui, sans-serif";
    c.textBaseline = "middle";
    c.save();
    shown.forEach((lane, row) => this.drawLane(c, lane, row * ROW + ROW / 2, x, theme, pick));
    this.drawBudget(c, book.steps, shown.length, x, height, theme);
    c.restore();
    if (step > 0 && last > 0) {
      c.strokeStyle = theme.fg;
      c.setLineDash([3, 2]);
      c.lineWidth = 1;
      c.beginPath();
      c.moveTo(Math.round(x(step)) + 0.5, 0);
      c.lineTo(Math.round(x(step)) + 0.5, height);
      c.stroke();
      c.setLineDash([]);
    }
  }

  drawLane(c, lane, y, x, theme, pick) {
    const { from, to, size, step } = this;
    const dim = pick.request !== null && pick.request !== lane.number;
    c.globalAlpha = dim ? 0.3 : 1;
    c.fillStyle = theme.fg;
    c.fillText(`R${lane.number}`, 4, y);
    this.drawWaits(c, lane, y, x, theme);
    const first = firstAbove(lane.parts, from, ([s]) => s);
    const now = firstAbove(lane.parts, step, ([s]) => s);
    const end = firstAbove(lane.parts, to, ([s]) => s);
    this.drawParts(c, lane, first, Math.min(now, end), y, x, theme);
    c.globalAlpha *= 0.18;
    this.drawParts(c, lane, Math.max(first, now), end, y, x, theme);
    c.globalAlpha = dim ? 0.3 : 1;
    for (const s of lane.preempted) {
      if (s > from && s <= step) this.drawCross(c, x(s - 0.5), y, theme);
    }
    if (lane.ended && lane.ended[0] >= from && lane.ended[0] <= step) {
      this.drawEnd(c, x(lane.ended[0]) + Math.min(6, size / 2), y, lane, theme);
    }
    c.globalAlpha = 1;
  }

  drawWaits(c, lane, y, x, theme) {
    const { from, step } = this;
    const waits = lane.waitingSince === null ? lane.waits
      : [...lane.waits, [lane.waitingSince, this.lastStep()]];
    const seen = waits.filter(([start, end]) => Math.min(end, step) > Math.max(start, from));
    if (!seen.length) return;
    c.strokeStyle = theme.hatch;
    c.lineWidth = 1.2;
    c.beginPath();
    for (const [start, end] of seen) {
      c.moveTo(x(Math.max(start, from)), y);
      c.lineTo(x(Math.min(end, step)), y);
    }
    c.setLineDash([4, 3]);
    c.stroke();
    c.setLineDash([]);
  }

  // The parts of a lane from one index to another, as one shape: each fill has its price.
  drawParts(c, lane, first, end, y, x, theme) {
    if (first >= end) return;
    const gap = this.size >= 6 ? 1 : 0;
    c.beginPath();
    for (let i = first; i < end; i++) {
      const [s, kind] = lane.parts[i];
      let length = 1;
      // where nothing is left between steps, those that decode are a line
      while (!gap && kind === "decode" && i + 1 < end && lane.parts[i + 1][0] === s + length &&
        lane.parts[i + 1][1] === kind) {
        length += 1;
        i += 1;
      }
      const tall = kind === "prefill" ? 13 : 5;
      const wide = this.size * length - gap;
      const place = [x(s - 1) + gap / 2, y - tall / 2, wide, tall];
      if (this.size >= ROUNDED) c.roundRect(...place, 2);
      else c.rect(...place); // in half the time
    }
    c.fillStyle = colourOf(lane.number, theme);
    c.fill();
    const pattern = patternTile(c, lane.number, theme);
    if (pattern) {
      c.fillStyle = pattern;
      c.fill();
    }
    if (this.size >= 13) this.drawCounts(c, lane, first, end, y, x, theme);
  }

  // The tokens of each chunk of a prompt.
  drawCounts(c, lane, first, end, y, x, theme) {
    c.strokeStyle = colourOf(lane.number, theme); // around the digits, over a pattern
    c.fillStyle = inkOn(lane.number);
    c.lineWidth = 3;
    c.font = "8px system-ui, sans-serif";
    c.textAlign = "center";
    for (let i = first; i < end; i++) {
      const [s, kind, count] = lane.parts[i];
      if (kind !== "prefill" || count >= 100) continue;
      if (patternOf(lane.number)) c.strokeText(String(count), x(s - 0.5), y + 0.5);
      c.fillText(String(count), x(s - 0.5), y + 0.5);
    }
    c.textAlign = "start";
    c.font = "11px system-ui, sans-serif";
  }

  drawCross(c, x, y, theme) {
    c.strokeStyle = theme.alarm;
    c.lineWidth = 2;
    c.beginPath();
    c.moveTo(x - 4, y - 4);
    c.lineTo(x + 4, y + 4);
    c.moveTo(x + 4, y - 4);
    c.lineTo(x - 4, y + 4);
    c.stroke();
  }

  drawEnd(c, x, y, lane, theme) {
    const whole = lane.ended[1] === "stop" || lane.ended[1] === "length";
    c.strokeStyle = whole ? colourOf(lane.number, theme) : theme.alarm;
    c.lineWidth = 2;
    c.beginPath();
    if (whole) c.arc(x, y, 4, 0, 7);
    else c.rect(x - 3.5, y - 3.5, 7, 7); // aborted, ignored, or ended by an error
    c.fillStyle = theme.bg;
    c.fill();
    c.stroke();
  }

  drawBudget(c, steps, numRows, x, height, theme) {
    const bottom = height - 2;
    c.fillStyle = theme.soft;
    c.font = "10px system-ui, sans-serif";
    c.fillText("budget", 0, bottom - BUDGET_HEIGHT / 2);
    const gap = this.size >= 6 ? 1 : 0;
    const w = this.size - gap;
    const first = firstAbove(steps, this.from, (s) => s.step);
    const seen = steps.slice(first, firstAbove(steps, this.to, (s) => s.step));
    const now = firstAbove(seen, this.step, (s) => s.step);
    const tallOf = (count, s) => (count / s.budget) * BUDGET_HEIGHT;
    const decoded = (s) => (s.decode ? Math.max(1.5, tallOf(s.decode, s)) : 0);
    // one shape for all steps: each fill has its price
    const draw = (of, alpha, colour, above, tall) => {
      if (!of.length) return;
      c.globalAlpha = alpha;
      c.fillStyle = colour;
      c.beginPath();
      for (const s of of) {
        if (tall(s)) c.rect(x(s.step - 1) + gap / 2, bottom - above(s) - tall(s), w, tall(s));
      }
      c.fill();
    };
    for (const [of, alpha] of [[seen.slice(0, now), 1], [seen.slice(now), 0.18]]) {
      draw(of, alpha, theme.free, () => 0, () => BUDGET_HEIGHT);
      draw(of, alpha, theme.accent, () => 0, decoded);
      draw(of, alpha / 2, theme.accent, decoded, (s) => tallOf(s.prefill, s));
    }
    c.globalAlpha = 1;
  }

  lastStep() {
    return this.book.steps.length ? this.book.steps[this.book.steps.length - 1].step : 0;
  }

  // {lane, step} at a place in the canvas; each may be null.
  at(x, y) {
    if (!this.book) return { lane: null, step: null };
    const step = Math.floor((x - GUTTER) / this.size) + this.from + 1;
    const lane = this.shown[Math.floor(y / ROW)] || null;
    return { lane, step: x >= GUTTER && step <= this.lastStep() ? step : null };
  }

  describe(x, y) {
    const { lane, step } = this.at(x, y);
    if (step === null) return lane ? `R${lane.number}` : "";
    if (!lane) {
      const s = this.book.steps.find((known) => known.step === step);
      return s ? `step ${step}: ${s.prefill} tokens of prompt and ${s.decode} decoded, of a ` +
        `budget of ${s.budget}` : "";
    }
    const part = lane.parts.find(([s]) => s === step);
    const token = lane.tokens.find(([s]) => s === step);
    const words = part ? `${part[1]}, ${part[2]} token${part[2] === 1 ? "" : "s"}`
      : lane.preempted.includes(step) ? "preempted" : "waits";
    const got = token ? ` · got ${JSON.stringify(token[2])} (${token[1]})` : "";
    return `R${lane.number} · step ${step} · ${words}${got}`;
  }
}
