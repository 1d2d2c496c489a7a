// The view: holds the history, draws where the cursor stands, and sends what the reader does.

const ENDINGS = { stop: "finished", length: "full length", abort: "aborted" };
const GAUGE_PAUSE = 200; // milliseconds between two readings while it plays
const LARGEST_TEXT = 400; // characters of a text that a closed row shows

class View extends Hands {
  // `send` takes a message to the engine; without one this is a replay.
  constructor(root, { parts, send }) {
    super();
    this.root = root;
    this.send = send;
    this.cursor = null; // frames before the cursor; null: the newest
    this.pick = { request: null, block: null, position: null };
    this.state = { playing: false, live: Boolean(send), error: "", breaks: [], speed: 0, about: "" };
    Object.assign(this, build(root, parts));
    this.blocks = this.find("blocks") && new BlockMap(this.find("blocks"));
    this.lanes = this.find("lanes") && new Lanes(this.find("lanes"));
    this.drawn = 0; // times, for tests
    this.closed = false;
    this.load({ key: emptyKey(), frames: [] });
    this.listen();
  }

  load(document) {
    this.history = new History(document.key);
    this.book = new LaneBook();
    this.gauges = new GaugeBook();
    this.ticks = []; // frames in which somebody was preempted
    this.book.begin(this.history.key);
    this.addFrames(document.key.first, document.frames);
    this.cursor = null;
    this.wake();
  }

  // Returns whether they fit: false if some before them are missing.
  addFrames(first, frames) {
    const known = this.history.first + this.history.length;
    if (first > known) return false;
    for (const frame of frames.slice(known - first)) {
      this.book.add(frame, this.history.length);
      this.history.add(frame);
      this.gauges.add(frame, this.history.last);
      if (frame.o.some((o) => o[0] === "w" && o[2] === "preempted") && !frame.f) {
        this.ticks.push(this.history.length);
      }
    }
    this.wake();
    return true;
  }

  setStatus(status) {
    Object.assign(this.state, status);
    this.wake();
  }

  get count() {
    return this.cursor === null ? this.history.length : this.cursor;
  }

  // Draw soon, once, however often it is asked for.
  wake() {
    if (this.asked || this.closed) return;
    this.asked = requestAnimationFrame(() => {
      this.asked = null;
      this.draw();
    });
  }

  draw() {
    const width = this.root.clientWidth;
    if (!width) return; // not shown: drawn when it is, see the observer
    const theme = (this.theme ??= this.readTheme());
    const state = (this.shown = this.history.at(this.count));
    if (this.find("where")) this.drawTime(theme);
    if (this.blocks) this.drawBlocks(state, theme);
    if (this.lanes) this.drawLanes(state, theme);
    if (this.find("gauges")) this.drawGauges(state, theme);
    if (this.find("requests")) this.drawRequests(state, theme);
    this.drawn += 1;
  }

  // Reading it costs the page a new layout, so that is done when it may have changed.
  readTheme() {
    this.root.classList.remove("pe-dark");
    this.root.classList.toggle("pe-dark", readTheme(this.root).dark);
    return readTheme(this.root);
  }

  drawTime(theme) {
    const { playing, live, error, breaks, about } = this.state;
    const last = this.history.length;
    this.find("about").textContent = about;
    this.find("where").textContent = `step ${this.shown.step} / ${this.history.last.step}`;
    const slider = this.find("slider");
    slider.max = last;
    slider.value = this.count;
    slider.setAttribute("aria-valuetext", `step ${this.shown.step}`);
    this.find("live").classList.toggle("pe-on", this.cursor === null);
    this.find("live").textContent = live ? "live" : "last";
    const play = this.find("play");
    play.innerHTML = `${icon(playing ? "pause" : "play")}<span>${playing ? "pause" : "play"}</span>`;
    play.classList.toggle("pe-on", playing);
    play.setAttribute("aria-pressed", playing);
    this.find("back").disabled = this.count === 0;
    this.find("breaks").dataset.count = breaks.length;
    this.find("breaks").hidden = !live;
    this.find("error").hidden = !error;
    this.find("error").textContent = error;
    const canvas = this.find("ticks");
    const width = canvas.parentElement.clientWidth;
    const c = fit(canvas, width, canvas.parentElement.clientHeight || 16);
    c.clearRect(0, 0, width, 40);
    c.fillStyle = theme.alarm;
    for (const tick of this.ticks) c.fillRect(7 + (tick / Math.max(1, last)) * (width - 14), 1, 2, 5);
  }

  drawBlocks(state, theme) {
    const canvas = this.find("blocks");
    this.blocks.draw(state, canvas.parentElement.clientWidth - 26, theme, this.pick);
    const free = state.numBlocks - state.used - state.cached;
    const usable = state.numUsable < state.numBlocks ? ` · ${state.numUsable} usable` : "";
    this.find("counts").textContent = `used ${state.used} · shared ${state.shared} · cached ` +
      `${state.cached} · free ${free}${usable}`;
    this.find("block-says").textContent = this.hoverBlock ?? this.blocks.describe(this.pick.block);
  }

  drawLanes(state, theme) {
    const canvas = this.find("lanes");
    this.lanes.draw(this.book, state.step, canvas.parentElement.clientWidth - 26, theme, this.pick);
    const count = (...names) => state.requests.filter((r) => r && names.includes(r.status)).length;
    const ended = state.requests.filter((r) => r && !UNFINISHED.has(r.status)).length;
    const waiting = count("waiting", "preempted");
    const more = this.lanes.hidden ? ` · ${this.lanes.hidden} more above` : "";
    this.find("batch").textContent = `${count("running")} running · ${waiting} waiting · ` +
      `${ended} ended · ${state.preemptions} preemptions${more}`;
    this.find("lane-says").textContent = this.hoverLane ?? "";
  }

  drawGauges(state, theme) {
    const place = this.find("gauges");
    const now = performance.now();
    if (this.state.playing && now - this.gaugesDrawn < GAUGE_PAUSE) return;
    this.gaugesDrawn = now;
    const gauges = readGauges(this.gauges, state, this.count);
    if (place.children.length !== gauges.length) {
      place.innerHTML = gauges.map(() => '<div class="pe-card"><small></small><div><b></b> ' +
        '<span class="pe-soft"></span></div><canvas aria-hidden="true"></canvas></div>').join("");
    }
    gauges.forEach(([title, value, unit, values, colour], i) => {
      const card = place.children[i];
      card.querySelector("small").textContent = title;
      card.querySelector("b").textContent = value;
      card.querySelector("span").textContent = unit;
      drawSpark(card.querySelector("canvas"), values, colour, card.clientWidth - 26, theme);
    });
  }

  drawRequests(state, theme) {
    const waiting = state.requests.filter((r) => r && ["waiting", "preempted"].includes(r.status));
    this.find("queue").textContent = waiting.length
      ? `waiting: ${waiting.map((r) => `R${r.number}`).join(", ")}` : "nobody waits";
    this.find("inject").hidden = this.find("pool").hidden = !this.state.live;
    const place = this.find("requests");
    const order = (r) => (UNFINISHED.has(r.status) ? 0 : 1);
    const requests = state.requests.filter(Boolean)
      .sort((a, b) => order(a) - order(b) || (order(a) ? b.number - a.number : a.number - b.number));
    requests.slice(0, 40).forEach((r, i) => {
      const row = place.children[i] || place.appendChild(newRow());
      this.fillRow(row, r, theme);
    });
    while (place.children.length > Math.min(40, requests.length)) place.lastChild.remove();
    const usable = this.find("pool").elements.usable;
    if (document.activeElement !== usable) usable.value = state.numUsable;
    usable.max = state.numBlocks;
  }

  fillRow(row, r, theme) {
    const [chip, counts, status, text, abort] = row.children;
    const picked = this.pick.request === r.number;
    row.dataset.request = r.number;
    chip.textContent = `R${r.number}`;
    chip.title = `${r.id}: light its blocks`;
    chip.style.cssText = `background:${colourOf(r.number, theme)};color:${inkOn(r.number)}`;
    chip.setAttribute("aria-pressed", picked);
    counts.textContent = `${r.prompt} + ${r.tokens.length}${r.maxTokens ? ` of ${r.maxTokens}` : ""}`;
    counts.title = "tokens of prompt + output";
    status.textContent = UNFINISHED.has(r.status) ? r.status : ENDINGS[r.status] ?? r.status;
    status.classList.toggle("pe-alarm", ["preempted", "abort", "error", "ignored"].includes(r.status));
    text.classList.toggle("pe-open", picked);
    if (picked) this.fillTokens(text, r);
    else {
      const words = r.text || r.words;
      text.textContent = words.length > LARGEST_TEXT ? `… ${words.slice(-LARGEST_TEXT)}` : words;
      text.style.opacity = r.text ? 1 : 0.6; // the prompt until there is an answer
    }
    abort.hidden = !this.state.live;
    abort.disabled = this.cursor !== null || !UNFINISHED.has(r.status);
    abort.setAttribute("aria-label", `abort R${r.number}`);
  }

  // Each token on its own, so that it can be picked.
  fillTokens(place, r) {
    const lane = this.book.lanes[r.number];
    const known = lane ? lane.tokens.filter(([s]) => s <= this.shown.step) : [];
    const offset = r.prompt + r.tokens.length - known.length;
    place.style.opacity = 1;
    place.innerHTML = `<span class="pe-soft">${escapeText(r.words)} </span>` + known
      .map(([, id, text], i) => `<span class="pe-token${
        this.pick.position === offset + i ? " pe-on" : ""}" data-position="${offset + i}"
        title="position ${offset + i}, token ${id}">${escapeText(text) || "·"}</span>`).join("");
  }

  tell(message) {
    if (this.send) this.send(message);
  }

  close() {
    this.closed = true;
    clearInterval(this.timer);
    cancelAnimationFrame(this.asked);
    this.observer.disconnect();
    this.scheme.removeEventListener("change", this.repaint);
    this.watcher.disconnect();
  }
}

function emptyKey() {
  return { first: 0, num_blocks: 0, block_size: 1, num_usable: 0, max_num_seqs: 0, budget: 0,
    hashes: [], requests: [] };
}

function newRow() {
  const row = document.createElement("div");
  row.className = "pe-row";
  row.innerHTML = '<button type="button" class="pe-chip"></button><span class="pe-soft"></span>' +
    '<span class="pe-state"></span><span class="pe-text"></span>' +
    '<button type="button" class="pe-abort">abort</button>';
  return row;
}
