// The block map: the pool as a fixed grid, each block in the colour of whoever holds it.

const DETAILED = 6; // pixels a cell needs to show more than a colour

const LARGEST = 26; // pixels of a cell, and of a map's height where that can be had
const TALLEST = 250;

// The fewest columns, a multiple of four, that make a map wider than tall, and not too tall.
function gridOf(numBlocks, width) {
  for (let columns = 4; ; columns += columns < 64 ? 4 : 16) {
    const cell = Math.min(LARGEST, Math.floor((width / columns) * 2) / 2);
    const rows = Math.max(1, Math.ceil(numBlocks / columns));
    const fits = rows * cell <= TALLEST && columns >= 1.6 * rows;
    if (fits || cell <= 1.5 || columns >= numBlocks) {
      return { columns, cell: Math.max(1, cell), rows };
    }
  }
}

class BlockMap {
  constructor(canvas) {
    this.canvas = canvas;
    this.pixels = document.createElement("canvas"); // a pixel a block, for large pools
  }

  // `pick` is {request, block, position}, each a number or null.
  draw(state, width, theme, pick) {
    const grid = (this.grid = gridOf(state.numBlocks, width));
    this.state = state;
    const c = fit(this.canvas, width, grid.rows * grid.cell);
    c.clearRect(0, 0, width, grid.rows * grid.cell);
    this.owners = ownersOf(state);
    if (grid.cell >= DETAILED) this.drawCells(c, state, theme, pick);
    else this.drawPixels(c, state, theme, pick);
    if (pick.request !== null) this.drawTable(c, state.requests[pick.request], theme);
    if (pick.position !== null) this.drawSlot(c, state, theme, pick);
    if (pick.block !== null && pick.block < state.numBlocks) this.drawRing(c, pick.block, theme);
  }

  place(block) {
    const { columns, cell } = this.grid;
    return [(block % columns) * cell, Math.floor(block / columns) * cell];
  }

  drawCells(c, state, theme, pick) {
    const { cell } = this.grid;
    const gap = cell >= 9 ? 2 : 1;
    const side = cell - gap;
    this.drawFree(c, state.numBlocks, side, theme);
    c.fillStyle = tile(c, "hatch", theme.hatch, 1);
    for (const b of state.hash.keys()) {
      if (state.ref[b] > 0) continue;
      const [x, y] = this.place(b);
      c.fillRect(x, y, side, side);
    }
    for (const [b, owners] of this.owners) {
      const [x, y] = this.place(b);
      const lit = pick.request === null || owners.some((o) => o.request.number === pick.request);
      c.globalAlpha = lit ? 1 : 0.22;
      this.drawOwned(c, x, y, side, owners, state, theme);
      c.globalAlpha = 1;
    }
    for (const [b, mark] of state.marks) this.drawMark(c, b, mark, side, theme);
  }

  // All blocks as if they were free: the same at every step, so it is painted once.
  drawFree(c, numBlocks, side, theme) {
    const { width, height } = this.canvas;
    const name = `${numBlocks} ${side} ${width} ${height} ${theme.free}`;
    if (this.paper !== name) {
      this.paper = name;
      this.ground = document.createElement("canvas");
      Object.assign(this.ground, { width, height });
      const ground = this.ground.getContext("2d");
      ground.setTransform(c.getTransform());
      ground.fillStyle = theme.free;
      for (let b = 0; b < numBlocks; b++) {
        rounded(ground, ...this.place(b), side, side, 2.5);
        ground.fill();
      }
    }
    c.save();
    c.resetTransform();
    c.drawImage(this.ground, 0, 0);
    c.restore();
  }

  drawOwned(c, x, y, side, owners, state, theme) {
    const [first, second] = owners;
    const full = fillOf(first, state) / state.blockSize;
    const plain = !second && full >= 1 && !patternOf(first.request.number);
    c.fillStyle = colourOf(first.request.number, theme);
    rounded(c, x, y, side, side, 2.5);
    if (plain) return c.fill();
    c.save();
    c.clip();
    if (second) {
      c.fillRect(x, y, side, side);
      c.fillStyle = colourOf(second.request.number, theme);
      c.beginPath();
      c.moveTo(x + side, y);
      c.lineTo(x + side, y + side);
      c.lineTo(x, y + side);
      c.fill();
    } else {
      c.fillRect(x, y, full >= 1 ? side : Math.max(1.5, Math.round(side * full)), side);
    }
    const pattern = patternOf(first.request.number);
    if (pattern) {
      c.fillStyle = tile(c, pattern === 1 ? "stripes" : "dots", theme.bg, 1);
      c.fillRect(x, y, side, side);
    }
    c.restore();
    if (!second && full < 1) {
      c.strokeStyle = colourOf(first.request.number, theme);
      c.lineWidth = 1;
      rounded(c, x + 0.5, y + 0.5, side - 1, side - 1, 2);
      c.stroke();
    }
  }

  // What the last step did: a ring for allocated, a dot for a hit, a cross for evicted, ...
  drawMark(c, block, mark, side, theme) {
    const [x, y] = this.place(block);
    c.strokeStyle = mark === "evicted" ? theme.alarm : theme.fg;
    c.fillStyle = theme.fg;
    c.lineWidth = 1.4;
    const inset = side * 0.28;
    c.beginPath();
    if (mark === "allocated") c.roundRect(x + 0.7, y + 0.7, side - 1.4, side - 1.4, 2);
    else if (mark === "evicted") {
      c.moveTo(x + inset, y + inset);
      c.lineTo(x + side - inset, y + side - inset);
      c.moveTo(x + side - inset, y + inset);
      c.lineTo(x + inset, y + side - inset);
    } else if (mark === "copied") {
      c.moveTo(x + side / 2, y + inset);
      c.lineTo(x + side / 2, y + side - inset);
      c.moveTo(x + inset, y + side / 2);
      c.lineTo(x + side - inset, y + side / 2);
    } else if (mark === "freed") {
      c.setLineDash([2, 2]);
      c.roundRect(x + 0.7, y + 0.7, side - 1.4, side - 1.4, 2);
    } else {
      c.arc(x + side / 2, y + side / 2, Math.max(1.2, side * 0.13), 0, 7);
      c.fill();
    }
    c.stroke();
    c.setLineDash([]);
  }

  drawPixels(c, state, theme, pick) {
    const { columns, rows, cell } = this.grid;
    if (this.pixels.width !== columns || this.pixels.height !== rows) {
      this.pixels.width = columns;
      this.pixels.height = rows;
    }
    const context = this.pixels.getContext("2d");
    const image = context.createImageData(columns, rows);
    const words = new Uint32Array(image.data.buffer);
    words.fill(word(theme.free), 0, state.numBlocks);
    const hatch = word(theme.hatch);
    for (const b of state.hash.keys()) if (state.ref[b] === 0) words[b] = hatch;
    const dimmed = word(theme.line);
    const shared = word(theme.fg);
    for (const [b, owners] of this.owners) {
      const lit = pick.request === null || owners.some((o) => o.request.number === pick.request);
      if (!lit) words[b] = dimmed;
      else words[b] = owners.length > 1 ? shared : word(colourOf(owners[0].request.number, theme));
    }
    const alarm = word(theme.alarm);
    for (const [b, mark] of state.marks) if (mark === "evicted") words[b] = alarm;
    context.putImageData(image, 0, 0);
    c.imageSmoothingEnabled = false;
    c.drawImage(this.pixels, 0, 0, columns * cell, rows * cell);
  }

  // The blocks of one request, joined in the order of its table.
  drawTable(c, request, theme) {
    if (!request || !request.table.length) return;
    const { cell } = this.grid;
    const gap = cell >= 9 ? 2 : cell >= DETAILED ? 1 : 0;
    const half = (cell - gap) / 2;
    c.strokeStyle = theme.fg;
    c.lineWidth = cell >= DETAILED ? 1.2 : 0.8;
    c.globalAlpha = 0.55;
    c.beginPath();
    request.table.forEach((b, i) => {
      const [x, y] = this.place(b);
      c[i ? "lineTo" : "moveTo"](x + half, y + half);
    });
    c.stroke();
    c.globalAlpha = 1;
    if (cell < 14) return;
    c.font = `600 ${Math.min(10, cell * 0.55)}px system-ui, sans-serif`;
    c.textAlign = "center";
    c.textBaseline = "middle";
    c.lineWidth = 2.5;
    c.lineJoin = "round";
    request.table.forEach((b, i) => {
      const [x, y] = this.place(b);
      c.strokeStyle = theme.bg;
      c.strokeText(String(i + 1), x + half, y + half + 0.5);
      c.fillStyle = theme.fg;
      c.fillText(String(i + 1), x + half, y + half + 0.5);
    });
  }

  // The slot of one token of the picked request.
  drawSlot(c, state, theme, pick) {
    const request = state.requests[pick.request];
    const block = request && request.table[Math.floor(pick.position / state.blockSize)];
    if (block === undefined) return;
    const [x, y] = this.place(block);
    const side = this.grid.cell - (this.grid.cell >= 9 ? 2 : 1);
    const slot = pick.position % state.blockSize;
    const width = Math.max(2, side / state.blockSize);
    c.fillStyle = theme.fg;
    c.fillRect(x + (slot / state.blockSize) * side, y - 1, width, side + 2);
    this.drawRing(c, block, theme);
  }

  drawRing(c, block, theme) {
    const [x, y] = this.place(block);
    const side = this.grid.cell - (this.grid.cell >= 9 ? 2 : this.grid.cell >= DETAILED ? 1 : 0);
    c.lineWidth = 2;
    c.strokeStyle = theme.bg;
    rounded(c, x - 2, y - 2, side + 4, side + 4, 4);
    c.stroke();
    c.strokeStyle = theme.fg;
    rounded(c, x - 0.5, y - 0.5, side + 1, side + 1, 3);
    c.stroke();
  }

  // The block at a place in the canvas, or null.
  blockAt(x, y) {
    if (!this.grid) return null;
    const { columns, cell } = this.grid;
    const column = Math.floor(x / cell);
    const block = Math.floor(y / cell) * columns + column;
    return column >= 0 && column < columns && block >= 0 && block < this.state.numBlocks
      ? block : null;
  }

  // What is known of a block, in words.
  describe(block) {
    const { state } = this;
    if (!state || block === null || block >= state.numBlocks) return "";
    const hash = state.hash.get(block);
    const known = hash ? ` · hash ${hash}` : "";
    const owners = this.owners.get(block);
    const mark = state.marks.has(block) ? ` · just ${state.marks.get(block)}` : "";
    if (!owners) {
      return `block ${block} · ${hash ? "free, cached" : "free"}${known}${mark}`;
    }
    const parts = owners.map((o) => `R${o.request.number} block ${o.index + 1} of ` +
      `${o.request.table.length}`);
    const first = owners[0].index * state.blockSize;
    const fill = fillOf(owners[0], state);
    const tokens = fill ? `tokens ${first} to ${first + fill - 1}` : "no token yet";
    return `block ${block} · ${parts.join(", ")} · ref ${state.ref[block]} · ${tokens}` +
      `${known}${mark}`;
  }
}

// For each block in use who holds it, and as which of its blocks.
function ownersOf(state) {
  const owners = new Map();
  for (const request of state.requests) {
    if (!request) continue;
    request.table.forEach((block, index) => {
      const known = owners.get(block);
      if (known) known.push({ request, index });
      else owners.set(block, [{ request, index }]);
    });
  }
  return owners;
}

// How many tokens of its owner a block holds.
function fillOf(owner, state) {
  const inside = owner.request.computed - owner.index * state.blockSize;
  return Math.max(0, Math.min(state.blockSize, inside));
}

const wordsOfColours = new Map();

// A colour as it lies in the memory of an image.
function word(colour) {
  if (!wordsOfColours.has(colour)) {
    const context = document.createElement("canvas").getContext("2d");
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const data = context.getImageData(0, 0, 1, 1).data;
    wordsOfColours.set(colour, new Uint32Array(data.buffer)[0]);
  }
  return wordsOfColours.get(colour);
}
