// The view: holds the history, draws where the cursor stands, and sends what the reader does.

const ENDINGS = { stop: "finished", length: "full length", abort: "aborted" };
const SHORTEST_WORDS_PAUSE = 250; // milliseconds between two changes of all but the maps
const LONGEST_WORDS_PAUSE = 1200;
const UNSEEN_PAUSE = 4000; // between two changes of what is scrolled out of sight
const PADDING = 26; // of a card, and its border
const SHARE = 0.003; // of all cores' time that pictures take while an engine computes, maybe with them
const IDLE_SHARE = 0.25; // of those cores' time that nobody uses
const SHORTEST_REST = 20; // milliseconds between two of them
const LONGEST_REST = 600;
const MOST_REQUESTS = 40; // that are listed
const COLUMN = 7; // pixels of a character in a row's text, or a little less
const LARGEST_TEXT = 400; // characters that a closed row holds

class View extends Hands {
  // `send` takes a message to the engine; without one this is a replay.
  constructor(root, { parts, send }) {
    super();
    this.root = root;
    this.send = send;
    this.cursor = null; // frames before the cursor; null: it follows what comes
    this.played = 0; // frames of those that came which are shown where it follows
    this.pick = { request: null, block: null, position: null };
    this.state = { playing: false, live: Boolean(send), error: "", breaks: [], speed: 0, about: "" };
    Object.assign(this, build(root, parts));
    this.blocks = this.find("blocks") && new BlockMap(this.find("blocks"));
    this.lanes = this.find("lanes") && new Lanes(this.find("lanes"));
    this.idleCores = 0; // of the engine's machine while it plays
    this.playedIn = 1; // milliseconds in which the frames of one message are played: until the next
    this.drawn = 0; // times, for tests
    this.numRequests = 0; // in the last picture
    this.allDrawn = 0; // when, with what is out of sight
    this.wordsPause = LONGEST_WORDS_PAUSE; // until it is known what a change takes
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
    this.played = this.history.length;
    this.restUntil = performance.now();
    this.rest = 0; // milliseconds, behind the last picture
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
    this.playedThen = this.played;
    this.came = performance.now();
    this.wake(false);
    return true;
  }

  // Messages cost more than pictures, so while an engine plays each brings the frames of several
  // steps, and they are shown one after the other until the next comes.  A picture is seen until the
  // rest behind it is over, so it shows what is due by then; else what is seen falls behind.
  advance() {
    const { playing, live } = this.state;
    const share = (performance.now() - this.came + this.rest) / this.playedIn;
    if (!playing || !live || this.cursor !== null || share >= 1) this.played = this.history.length;
    else this.played = Math.ceil(this.playedThen + (this.history.length - this.playedThen) * share);
  }

  setStatus(status) {
    const same = Object.keys(status).every((key) => String(this.state[key]) === String(status[key]));
    Object.assign(this.state, status);
    this.wake(!same); // every frame comes with one
  }

  get count() {
    return this.cursor ?? this.played;
  }

  // Draw soon, once, however often it is asked for.  Not `whole`: the words may come a little later.
  wake(whole = true) {
    this.whole ||= whole;
    if (this.asked || this.closed) return;
    const busy = this.state.live && this.state.playing;
    const wait = busy && !this.whole ? this.restUntil - performance.now() : 0;
    if (wait > 0) {
      this.resting ??= setTimeout(() => {
        this.resting = null;
        this.wake(false);
      }, wait);
      return;
    }
    this.asked = requestAnimationFrame(() => {
      this.asked = null;
      if (busy) this.weigh();
      this.draw();
      const isShown = this.sizes !== null; // else there is nothing to be drawn until it is
      if (isShown && this.played < this.history.length) this.wake(false);
    });
  }

  // Rest after a picture in proportion to what it takes, but less where cores are idle.  A message
  // sent before it is drawn comes when the browser has laid it out and painted it too.
  weigh() {
    const began = performance.now();
    const hadWords = this.wordsDrawn;
    this.restUntil = began + SHORTEST_REST;
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      const now = performance.now();
      const cores = navigator.hardwareConcurrency || 2;
      const share = Math.max(SHARE * cores, IDLE_SHARE * Math.min(this.idleCores, cores));
      const rest = (now - began) * (1 / share - 1);
      this.rest = Math.max(SHORTEST_REST, Math.min(LONGEST_REST, rest));
      this.restUntil = now + this.rest;
      if (this.wordsDrawn !== hadWords) {
        this.wordsPause = Math.max(SHORTEST_WORDS_PAUSE, Math.min(LONGEST_WORDS_PAUSE, rest));
      }
      port1.close();
    };
    port2.postMessage(null);
  }

  // While it plays a picture is the two maps; a change of words or of a small line makes the page
  // lay itself out again, which costs more, and nobody reads faster than a few times a second.  What
  // is out of sight is for those who listen to the page, and waits longer.
  draw() {
    const theme = (this.theme ??= this.readTheme());
    const sizes = (this.sizes ??= this.readSizes());
    if (!sizes.root) { // not shown: read anew when it is, see the observer
      this.sizes = this.theme = null; // nor does it have colours yet
      return;
    }
    this.advance();
    const state = (this.shown = this.history.at(this.count));
    const now = performance.now();
    const isNew = state.requests.length !== this.numRequests; // its row comes with its lane
    this.numRequests = state.requests.length;
    if (isNew || now - this.allDrawn > UNSEEN_PAUSE) this.whole = true;
    const all = this.whole;
    if (all) this.allDrawn = now;
    const due = (name) => this.find(name) && (all || !this.unseen.has(this.find(name)));
    if (due("blocks")) this.blocks.draw(state, sizes.blocks, theme, this.pick);
    if (due("lanes")) this.lanes.draw(this.book, state.step, sizes.lanes, theme, this.pick);
    const pause = this.state.playing && !all ? this.wordsDrawn + this.wordsPause - now : 0;
    clearTimeout(this.later);
    // the next step's picture brings them; the clock does if no step comes
    if (pause > 0) this.later = setTimeout(() => this.wake(), pause + this.wordsPause);
    else {
      this.whole = false;
      this.wordsDrawn = now;
      this.drawWords(state, theme, due);
    }
    this.drawn += 1;
  }

  drawWords(state, theme, due) {
    if (this.find("where")) this.drawTime();
    if (due("blocks")) this.drawCounts(state);
    if (due("lanes")) this.drawBatch(state);
    if (due("gauges")) this.drawGauges(state, theme);
    if (due("requests")) this.drawRequests(state, theme);
  }

  // Asked for after something was written they would cost a new layout: so all at once, before, and
  // only when they may have changed.
  readSizes() {
    const inside = (element) => (element
      ? Math.max(0, Math.floor(element.getBoundingClientRect().width) - PADDING) : 0);
    return {
      root: this.root.clientWidth,
      blocks: inside(this.find("blocks")?.parentElement),
      lanes: inside(this.find("lanes")?.parentElement),
      text: this.find("requests")?.querySelector(".pe-text")?.clientWidth, // of a row, if there is one
    };
  }

  // Reading it costs the page a new layout, so that is done when it may have changed.
  readTheme() {
    this.root.classList.remove("pe-dark");
    this.root.classList.toggle("pe-dark", readTheme(this.root).dark);
    return readTheme(this.root);
  }

  drawTime() {
    const { playing, live, error, breaks, about } = this.state;
    const last = this.history.length;
    const slider = this.find("slider");
    put(this.find("about"), "textContent", about);
    put(this.find("where"), "textContent", `step ${this.shown.step} / ${this.history.last.step}`);
    put(slider, "max", last);
    if (Number(slider.value) !== this.count) slider.value = this.count; // the reader moves it too
    put(slider, "aria-valuetext", `step ${this.shown.step}`);
    this.find("live").classList.toggle("pe-on", this.cursor === null);
    put(this.find("live"), "textContent", live ? "live" : "last");
    const play = this.find("play");
    const word = playing ? "pause" : "play";
    put(play, "innerHTML", `${icon(word)}<span>${word}</span>`);
    play.classList.toggle("pe-on", playing);
    put(play, "aria-pressed", playing);
    put(this.find("back"), "disabled", this.count === 0);
    put(this.find("breaks"), "data-count", breaks.length);
    put(this.find("breaks"), "hidden", !live);
    put(this.find("error"), "hidden", !error);
    put(this.find("error"), "textContent", error);
    const place = (tick) => `M${((1000 * tick) / Math.max(1, last)).toFixed(1)} 1v5`;
    put(this.find("ticks"), "d", this.ticks.map(place).join(""));
  }

  drawCounts(state) {
    const free = state.numBlocks - state.used - state.cached;
    const usable = state.numUsable < state.numBlocks ? ` · ${state.numUsable} usable` : "";
    put(this.find("counts"), "textContent", `used ${state.used} · shared ${state.shared} · cached ` +
      `${state.cached} · free ${free}${usable}`);
    put(this.find("block-says"), "textContent",
      this.hoverBlock ?? this.blocks.describe(this.pick.block));
  }

  drawBatch(state) {
    const of = { running: 0, waiting: 0, preempted: 0, ended: 0 };
    for (const r of state.requests) if (r) of[UNFINISHED.has(r.status) ? r.status : "ended"] += 1;
    const more = this.lanes.hidden ? ` · ${this.lanes.hidden} more above` : "";
    const preemptions = state.preemptions === 1 ? "1 preemption" : `${state.preemptions} preemptions`;
    put(this.find("batch"), "textContent", `${of.running} running · ${of.waiting + of.preempted} ` +
      `waiting · ${of.ended} ended · ${preemptions}${more}`);
    put(this.find("lane-says"), "textContent", this.hoverLane ?? "");
  }

  drawGauges(state, theme) {
    const cards = this.find("gauges").children;
    readGauges(this.gauges, state, this.count).forEach(([value, unit, values, colour], i) => {
      const [, line, spark] = cards[i].children;
      put(line.children[0], "textContent", value);
      put(line.children[1], "textContent", unit);
      drawSpark(spark.firstChild, values, colour, theme);
    });
  }

  drawRequests(state, theme) {
    const known = state.requests.filter(Boolean);
    const waiting = known.filter((r) => r.status === "waiting" || r.status === "preempted");
    put(this.find("queue"), "textContent", waiting.length
      ? `waiting: ${waiting.map((r) => `R${r.number}`).join(", ")}` : "nobody waits");
    put(this.find("inject"), "hidden", !this.state.live);
    put(this.find("pool"), "hidden", !this.state.live);
    const place = this.find("requests");
    const shown = known.filter((r) => UNFINISHED.has(r.status)).slice(0, MOST_REQUESTS);
    for (let i = known.length - 1; i >= 0 && shown.length < MOST_REQUESTS; i--) {
      if (!UNFINISHED.has(known[i].status)) shown.push(known[i]); // the newest first
    }
    const before = place.children.length;
    shown.forEach((r, i) => {
      const row = place.children[i] || place.appendChild(newRow());
      this.fillRow(row, r, theme);
    });
    while (place.children.length > shown.length) place.lastChild.remove();
    if (!before && shown.length) {
      this.sizes = null; // now there are rows that can be measured
      this.wake();
    }
    const { usable } = this.find("pool").elements;
    put(usable, "max", state.numBlocks);
    if (document.activeElement !== usable && Number(usable.value) !== state.numUsable) {
      usable.value = state.numUsable;
    }
  }

  fillRow(row, r, theme) {
    const [chip, counts, status, text, abort] = row.children;
    const picked = this.pick.request === r.number;
    put(row, "data-request", r.number);
    put(chip, "textContent", `R${r.number}`);
    put(chip, "title", `${r.id}: light its blocks`);
    put(chip, "style", `background:${colourOf(r.number, theme)};color:${inkOn(r.number)}`);
    put(chip, "aria-pressed", picked);
    const most = r.maxTokens ? ` of ${r.maxTokens}` : "";
    put(counts, "textContent", `${r.prompt} + ${r.tokens.length}${most}`);
    put(counts, "title", "tokens of prompt + output");
    put(status, "textContent",
      UNFINISHED.has(r.status) ? r.status : ENDINGS[r.status] ?? r.status);
    status.classList.toggle("pe-alarm", ["preempted", "abort", "error", "ignored"].includes(r.status));
    text.classList.toggle("pe-open", picked);
    if (picked) this.fillTokens(text, r);
    else {
      // a text that grows is seen to grow at its end, any other is read from its beginning
      const words = r.text || r.words;
      const room = Math.floor((this.sizes?.text || 0) / COLUMN) || LARGEST_TEXT;
      const grows = r.text && r.status === "running" && endOf(words, room) !== words;
      put(text, "textContent",
        grows ? `… ${endOf(words, room - 2)}` : words.slice(0, LARGEST_TEXT));
    }
    text.classList.toggle("pe-soft", !picked && !r.text); // the prompt until there is an answer
    put(abort, "hidden", !this.state.live);
    put(abort, "disabled", this.cursor !== null || !UNFINISHED.has(r.status));
    put(abort, "aria-label", `abort R${r.number}`);
  }

  // Each token on its own, so that it can be picked.
  fillTokens(place, r) {
    const lane = this.book.lanes[r.number];
    const known = lane ? lane.tokens.filter(([s]) => s <= this.shown.step) : [];
    const offset = r.prompt + r.tokens.length - known.length;
    put(place, "innerHTML", `<span class="pe-soft">${escapeText(r.words)} </span>` + known
      .map(([, id, text], i) => `<span class="pe-token${
        this.pick.position === offset + i ? " pe-on" : ""}" data-position="${offset + i}"
        title="position ${offset + i}, token ${id}">${escapeText(text) || "·"}</span>`).join(""));
  }

  tell(message) {
    if (this.send && this.state.live) this.send(message);
  }

  close() {
    this.closed = true;
    clearInterval(this.timer);
    clearTimeout(this.later);
    clearTimeout(this.resting);
    cancelAnimationFrame(this.asked);
    this.observer.disconnect();
    this.sight.disconnect();
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
