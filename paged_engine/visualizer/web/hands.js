// What the reader does with a view: buttons, keys, the mouse, and the play of a recorded run.

const REPLAY_SPEED = 20; // steps a second when a recorded run is played

class Hands {
  listen() {
    const root = this.root;
    // keys pressed here are not the notebook's
    root.addEventListener("keydown", (e) => e.stopPropagation());
    const on = (name, kind, act) => this.find(name)?.addEventListener(kind, act);
    on("play", "click", () => (this.state.live && this.cursor === null
      ? this.tell({ cmd: this.state.playing ? "pause" : "play" }) : this.toggleReplay()));
    on("step", "click", () => (this.state.live && this.cursor === null
      ? this.tell({ cmd: "step" }) : this.goTo(this.count + 1)));
    on("end", "click", () => (this.state.live && this.cursor === null
      ? this.tell({ cmd: "end" }) : this.goTo(this.history.length)));
    on("back", "click", () => this.goTo(this.count - 1));
    on("live", "click", () => this.goTo(this.history.length));
    on("slider", "input", (e) => this.goTo(Number(e.target.value)));
    on("speed", "change", (e) => {
      this.state.speed = Number(e.target.value);
      if (this.timer) this.playReplay();
      this.tell({ cmd: "speed", value: this.state.speed });
    });
    on("breaks", "change", () => {
      const boxes = this.find("breaks").querySelectorAll("input:checked");
      this.tell({ cmd: "breaks", value: Array.from(boxes, (box) => box.value) });
    });
    on("inject", "submit", (e) => {
      e.preventDefault();
      const { prompt, max, priority } = e.target.elements;
      if (!prompt.value.trim()) return prompt.focus();
      this.tell({ cmd: "inject", prompt: prompt.value, max_tokens: Number(max.value),
        priority: Number(priority.value) });
      prompt.value = "";
    });
    on("pool", "submit", (e) => {
      e.preventDefault();
      this.tell({ cmd: "resize", value: Number(e.target.elements.usable.value) });
    });
    on("requests", "click", (e) => this.clickRequests(e));
    this.listenToBlocks();
    this.listenToLanes();
    this.observer = new ResizeObserver(() => {
      if (this.sizes?.root === root.clientWidth) return; // it is higher, by what was drawn
      this.sizes = null;
      this.wake();
    });
    this.observer.observe(root);
    this.unseen = new Set();
    this.sight = new IntersectionObserver((entries) => {
      let appeared = false;
      for (const { target, isIntersecting } of entries) {
        if (isIntersecting) appeared = this.unseen.delete(target) || appeared;
        else this.unseen.add(target);
      }
      if (appeared) this.wake();
    });
    for (const name of ["blocks", "lanes", "gauges", "requests"]) {
      if (this.find(name)) this.sight.observe(this.find(name));
    }
    // a theme's colours come some time after its name
    this.repaint = () => [0, 100, 400, 1500].forEach((pause) => setTimeout(() => {
      this.theme = null;
      this.wake();
    }, pause));
    this.scheme = window.matchMedia("(prefers-color-scheme: dark)");
    this.scheme.addEventListener("change", this.repaint);
    this.watcher = new MutationObserver(this.repaint);
    this.watcher.observe(document.body, {
      attributeFilter: ["class", "data-jp-theme-light", "data-jp-theme-name"],
    });
  }

  listenToBlocks() {
    const canvas = this.find("blocks");
    if (!canvas) return;
    canvas.addEventListener("mousemove", (e) => {
      this.hoverBlock = this.blocks.describe(this.blocks.blockAt(e.offsetX, e.offsetY));
      put(this.find("block-says"), "textContent", this.hoverBlock);
    });
    canvas.addEventListener("mouseleave", () => {
      this.hoverBlock = null;
      this.wake();
    });
    canvas.addEventListener("click", (e) => {
      this.hoverBlock = null;
      this.pickBlock(this.blocks.blockAt(e.offsetX, e.offsetY), true);
    });
    canvas.addEventListener("keydown", (e) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.blocks.grid.columns,
        ArrowDown: this.blocks.grid.columns }[e.key];
      if (by !== undefined) {
        const last = this.shown.numBlocks - 1;
        this.pickBlock(Math.max(0, Math.min(last, (this.pick.block ?? -by) + by)), false);
      } else if (e.key === "Enter") this.pickBlock(this.pick.block, true);
      else if (e.key === "Escape") this.setPick({ request: null, block: null, position: null });
      else return;
      e.preventDefault();
    });
  }

  listenToLanes() {
    const canvas = this.find("lanes");
    if (!canvas) return;
    canvas.addEventListener("mousemove", (e) => {
      this.hoverLane = this.lanes.describe(e.offsetX, e.offsetY);
      put(this.find("lane-says"), "textContent", this.hoverLane);
    });
    canvas.addEventListener("mouseleave", () => {
      this.hoverLane = null;
      this.wake();
    });
    canvas.addEventListener("click", (e) => {
      const { lane, step } = this.lanes.at(e.offsetX, e.offsetY);
      if (step !== null && !this.state.playing) this.goToStep(step);
      if (lane) this.pickRequest(lane.number);
    });
    canvas.addEventListener("keydown", (e) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
      if (by === undefined) return;
      e.preventDefault();
      this.goTo(this.count + by);
    });
  }

  clickRequests(e) {
    const row = e.target.closest("[data-request]");
    if (!row) return;
    const number = Number(row.dataset.request);
    if (e.target.closest(".pe-abort")) {
      this.tell({ cmd: "abort", request: this.shown.requests[number].id });
    } else if (e.target.closest(".pe-chip")) this.pickRequest(number);
    else if (e.target.dataset.position !== undefined) {
      const position = Number(e.target.dataset.position);
      const table = this.shown.requests[number].table;
      const block = table[Math.floor(position / this.shown.blockSize)] ?? null;
      this.setPick({ request: number, block, position });
    }
  }

  pickRequest(number) {
    const same = this.pick.request === number;
    this.setPick({ request: same ? null : number, block: null, position: null });
  }

  pickBlock(block, withOwner) {
    const [owner] = block === null ? [] : this.blocks.ownersOf(block);
    const request = withOwner && owner ? owner.request.number : null;
    this.setPick({ request, block, position: null });
  }

  setPick(pick) {
    this.pick = pick;
    const id = this.history.last.requests[pick.request]?.id ?? null;
    this.tell({ cmd: "pick", block: pick.block, request: id, position: pick.position });
    if (this.blocks) put(this.status, "textContent", this.blocks.describe(pick.block));
    this.wake();
  }

  // Move the cursor; at the end it follows what comes.
  goTo(count, whole = true) {
    const bounded = Math.max(0, Math.min(this.history.length, count));
    this.cursor = bounded === this.history.length ? null : bounded;
    this.wake(whole);
  }

  goToStep(step) {
    let count = this.history.frames.findIndex((frame) => frame.s >= step && frame.b) + 1;
    if (count === 0) count = this.history.length;
    this.goTo(count);
  }

  // Play what is recorded, without the engine.
  toggleReplay() {
    if (this.timer) return this.stopReplay();
    if (this.cursor === null) this.cursor = 0;
    this.setStatus({ playing: true });
    this.playReplay();
  }

  playReplay() {
    clearInterval(this.timer);
    const pause = 1000 / (this.state.speed || REPLAY_SPEED);
    this.timer = setInterval(() => {
      this.goTo(this.count + 1, false);
      if (this.cursor === null) this.stopReplay();
    }, pause);
  }

  stopReplay() {
    clearInterval(this.timer);
    this.timer = null;
    this.setStatus({ playing: false });
  }
}
