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
    if (fits || columns >= numBlocks) return { columns, cell: Math.max(1, cell), rows };
    if (cell <= 1.5) {
      const small = Math.max(1, cell);
      const all = Math.max(columns, Math.floor(width / small)); // all that there is room for
      return { columns: all, cell: small, rows: Math.ceil(numBlocks / all) };
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
    const detailed = grid.cell >= DETAILED;
    if (!detailed && !this.paintPixels(state, width, theme, pick)) return; // it is there already
    const c = fit(this.canvas, width, Math.ceil(grid.rows * grid.cell), theme.card);
    if (detailed) this.drawCells(c, state, theme, pick);
    else this.drawPixels(c);
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
    const shared = new Set();
    for (const request of state.requests) {
      if (!request || !request.table.length) continue;
      c.globalAlpha = pick.request === null || request.number === pick.request ? 1 : 0.22;
      this.drawOwned(c, side, request, state, theme, shared);
    }
    for (const b of shared) {
      const owners = this.ownersOf(b);
      const lit = pick.request === null || owners.some((o) => o.request.number === pick.request);
      c.globalAlpha = lit ? 1 : 0.22;
      this.drawShared(c, b, side, owners, theme);
    }
    c.globalAlpha = 1;
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

  // The blocks of a request: its full ones are one shape, filled once.  Notes which are shared.
  drawOwned(c, side, request, state, theme, shared) {
    const { number, table } = request;
    const partial = [];
    const colour = (c.fillStyle = colourOf(number, theme));
    c.beginPath();
    table.forEach((b, index) => {
      if (state.ref[b] > 1) shared.add(b);
      else if (fillOf({ request, index }, state) < state.blockSize) partial.push(index);
      else {
        const [x, y] = this.place(b);
        c.roundRect(x, y, side, side, Math.min(2.5, side / 2));
      }
    });
    c.fill();
    const pattern = patternTile(c, number, theme);
    if (pattern) {
      c.fillStyle = pattern;
      c.fill();
    }
    for (const index of partial) {
      const [x, y] = this.place(table[index]);
      const full = fillOf({ request, index }, state) / state.blockSize;
      c.save();
      rounded(c, x, y, side, side, 2.5);
      c.clip();
      c.fillStyle = colour;
      c.fillRect(x, y, Math.max(1.5, Math.round(side * full)), side);
      if (pattern) {
        c.fillStyle = pattern;
        c.fillRect(x, y, side, side);
      }
      c.restore();
      c.strokeStyle = colour;
      c.lineWidth = 1;
      rounded(c, x + 0.5, y + 0.5, side - 1, side - 1, 2);
      c.stroke();
    }
  }

  // Half in the colour of its first owner, half in that of the second.
  drawShared(c, block, side, [first, second], theme) {
    const [x, y] = this.place(block);
    c.save();
    rounded(c, x, y, side, side, 2.5);
    c.clip();
    c.fillStyle = colourOf(first.request.number, theme);
    c.fillRect(x, y, side, side);
    c.fillStyle = colourOf(second.request.number, theme);
    c.beginPath();
    c.moveTo(x + side, y);
    c.lineTo(x + side, y + side);
    c.lineTo(x, y + side);
    c.fill();
    const pattern = patternTile(c, first.request.number, theme);
    if (pattern) {
      c.fillStyle = pattern;
      c.fillRect(x, y, side, side);
    }
    c.restore();
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

  // A pixel a block.  Returns whether the map looks other than it did.
  paintPixels(state, width, theme, pick) {
    const { columns, rows, cell } = this.grid;
    if (!this.image || this.image.width !== columns || this.image.height !== rows) {
      this.pixels.width = columns;
      this.pixels.height = rows;
      this.image = new ImageData(columns, rows);
      this.words = new Uint32Array(columns * rows);
    }
    const { words } = this;
    words.fill(word(theme.free), 0, state.numBlocks);
    const hatch = word(theme.hatch);
    for (const b of state.hash.keys()) if (state.ref[b] === 0) words[b] = hatch;
    const shared = word(theme.fg);
    const paint = (request, colour) => {
      for (const b of request.table) words[b] = state.ref[b] > 1 ? shared : colour;
    };
    const picked = state.requests[pick.request];
    for (const request of state.requests) {
      if (!request) continue;
      if (pick.request === null) paint(request, word(colourOf(request.number, theme)));
      else for (const b of request.table) words[b] = word(theme.line);
    }
    if (picked) paint(picked, word(colourOf(picked.number, theme)));
    const alarm = word(theme.alarm);
    for (const [b, mark] of state.marks) if (mark === "evicted") words[b] = alarm;
    const around = [width, cell, devicePixelRatio, pick.block, pick.position, theme.fg, theme.card]
      .join();
    const painted = new Uint32Array(this.image.data.buffer);
    // a picked request has lines and numbers over its blocks, which may change without them
    if (!picked && around === this.around && words.every((w, b) => w === painted[b])) return false;
    this.around = picked ? null : around;
    painted.set(words);
    return true;
  }

  drawPixels(c) {
    const { columns, rows, cell } = this.grid;
    this.pixels.getContext("2d").putImageData(this.image, 0, 0);
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

  // Who holds a block, and as which of its blocks.
  ownersOf(block) {
    const owners = [];
    if (!this.state.ref[block]) return owners;
    for (const request of this.state.requests) {
      const index = request ? request.table.indexOf(block) : -1;
      if (index >= 0) owners.push({ request, index });
    }
    return owners;
  }

  // What is known of a block, in words.
  describe(block) {
    const { state } = this;
    if (!state || block === null || block >= state.numBlocks) return "";
    const hash = state.hash.get(block);
    const known = hash ? ` · hash ${hash}` : "";
    const owners = this.ownersOf(block);
    const mark = state.marks.has(block) ? ` · just ${state.marks.get(block)}` : "";
    if (!owners.length) {
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
