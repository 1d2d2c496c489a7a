// The state of an engine, from a key frame and the frames after it.
//
// `applyFrame` is to the operations of visualizer/timeline.py what replay.reduce is to events.
// Nothing here draws, and nothing here knows a page.

const SNAPSHOT_EVERY = 64; // frames between two states that are kept to jump to
const UNFINISHED = new Set(["waiting", "running", "preempted"]);

function emptyState() {
  return {
    numBlocks: 0, blockSize: 1, numUsable: 0, maxSeqs: 0, budget: 0,
    step: 0, time: 0,
    ref: new Uint16Array(0), // how many tables hold a block
    hash: new Map(), // of blocks that can be found by content
    requests: [], // by number
    marks: new Map(), // block -> what the last frame did to it
    used: 0, shared: 0, cached: 0, // blocks: held; held more than once; free but known
    preemptions: 0, hitTokens: 0, promptTokens: 0,
  };
}

function stateFromKey(key) {
  const s = emptyState();
  setPool(s, key.num_blocks, key.block_size);
  s.numUsable = key.num_usable;
  s.maxSeqs = key.max_num_seqs;
  s.budget = key.budget;
  for (const [block, hash] of key.hashes) {
    s.hash.set(block, hash);
    s.cached += 1;
  }
  for (const r of key.requests) {
    const request = newRequest(r.number, r.id, r.prompt, 0, r.words);
    Object.assign(request, { status: r.status, computed: r.computed, text: r.text });
    request.tokens = r.tokens.slice();
    s.requests[r.number] = request;
    take(s, request, r.table);
  }
  return s;
}

function setPool(s, numBlocks, blockSize) {
  s.numBlocks = s.numUsable = numBlocks;
  s.blockSize = blockSize;
  s.ref = new Uint16Array(numBlocks);
}

function newRequest(number, id, prompt, maxTokens, words) {
  return {
    number, id, prompt, maxTokens, words,
    status: "waiting", computed: 0, tokens: [], text: "", table: [],
    admitted: false, cachedTokens: 0, preempted: 0, queuedAt: 0, firstAt: null, lastAt: null, gaps: [],
  };
}

// A request that ended and gave up its blocks changes no more: states share it.
function copyRequest(r) {
  if (!UNFINISHED.has(r.status) && !r.table.length) return r;
  return { ...r, tokens: r.tokens.slice(), table: r.table.slice(), gaps: r.gaps.slice() };
}

function copyState(s) {
  const requests = s.requests.map(copyRequest);
  return { ...s, ref: s.ref.slice(), hash: new Map(s.hash), marks: new Map(s.marks), requests };
}

function take(s, request, blocks) {
  for (const b of blocks) {
    request.table.push(b);
    s.ref[b] += 1;
    if (s.ref[b] === 1) {
      s.used += 1;
      if (s.hash.has(b)) s.cached -= 1;
    } else if (s.ref[b] === 2) s.shared += 1;
  }
}

function giveUp(s, request, blocks) {
  request.table.length -= blocks.length;
  for (const b of blocks) {
    s.ref[b] -= 1;
    if (s.ref[b] === 0) {
      s.used -= 1;
      if (s.hash.has(b)) s.cached += 1;
    } else if (s.ref[b] === 1) s.shared -= 1;
  }
}

const OPERATIONS = {
  n(s, numBlocks, blockSize, maxSeqs, budget) {
    setPool(s, numBlocks, blockSize);
    Object.assign(s, { maxSeqs, budget });
  },
  q(s, number, id, prompt, maxTokens, words, time) {
    s.requests[number] = newRequest(number, id, prompt, maxTokens, words);
    s.requests[number].queuedAt = time;
  },
  r(s, number, cachedTokens) {
    const request = s.requests[number];
    if (!request.admitted) {
      request.admitted = true;
      s.hitTokens += cachedTokens;
      s.promptTokens += request.prompt;
    }
    request.status = "running";
    request.computed = request.cachedTokens = cachedTokens;
  },
  w(s, number, status) {
    const request = s.requests[number];
    if (status === "preempted" && request.status === "running") {
      request.preempted += 1;
      s.preemptions += 1;
    }
    request.status = status;
    request.computed = 0;
  },
  d() {}, // says what is computed; lanes draw it
  c(s, number, computed) {
    s.requests[number].computed = computed;
  },
  k(s, number, token, text) {
    const request = s.requests[number];
    request.computed = request.prompt + request.tokens.length;
    request.tokens.push(token);
    request.text += text;
    if (request.firstAt === null) request.firstAt = s.time;
    else request.gaps.push(s.time - request.lastAt);
    request.lastAt = s.time;
  },
  a(s, number, ...blocks) {
    for (const b of blocks) s.marks.set(b, "allocated");
    take(s, s.requests[number], blocks);
  },
  i(s, number, ...blocks) {
    for (const b of blocks) s.marks.set(b, "hit");
    take(s, s.requests[number], blocks);
  },
  f(s, number, ...blocks) {
    for (const b of blocks) s.marks.set(b, "freed");
    giveUp(s, s.requests[number], blocks);
  },
  h(s, block, hash) {
    if (!s.hash.has(block) && s.ref[block] === 0) s.cached += 1;
    s.hash.set(block, hash);
  },
  e(s, block) {
    if (s.hash.delete(block) && s.ref[block] === 0) s.cached -= 1;
    s.marks.set(block, "evicted");
  },
  x(s, source, target) {
    s.marks.set(target, "copied");
  },
  z(s, number, reason, text) {
    s.requests[number].status = reason;
    s.requests[number].text += text;
  },
  u(s, numUsable) {
    s.numUsable = numUsable;
  },
  p(s, maxSeqs, budget) {
    Object.assign(s, { maxSeqs, budget });
  },
};

function applyFrame(s, frame) {
  s.step = frame.s;
  s.time = frame.t;
  s.marks.clear();
  for (const [name, ...values] of frame.o) OPERATIONS[name](s, ...values);
  return s;
}

// Frames as they come, and the state at any of them.
class History {
  constructor(key) {
    this.first = key.first; // number of the first frame that is kept
    this.frames = [];
    this.key = stateFromKey(key);
    this.snapshots = [copyState(this.key)]; // before frame 0, SNAPSHOT_EVERY, ...
    this.last = copyState(this.key); // after all frames
  }

  get length() {
    return this.frames.length;
  }

  add(frame) {
    applyFrame(this.last, frame);
    this.frames.push(frame);
    if (this.frames.length % SNAPSHOT_EVERY === 0) this.snapshots.push(copyState(this.last));
  }

  // The state after `count` frames.
  at(count) {
    if (count >= this.frames.length) return this.last;
    const state = copyState(this.snapshots[Math.floor(count / SNAPSHOT_EVERY)]);
    for (let i = count - (count % SNAPSHOT_EVERY); i < count; i++) {
      applyFrame(state, this.frames[i]);
    }
    return state;
  }

  // The same in the words of Python, for tests.
  plainAt(count) {
    const s = this.at(count);
    const requests = {};
    for (const r of s.requests) {
      if (r) requests[r.id] = [r.status, r.tokens, r.computed, r.table];
    }
    return {
      blocks: Array.from(s.ref, (ref, b) => [ref, s.hash.get(b) ?? null]),
      usable: s.numUsable, seqs: s.maxSeqs, budget: s.budget, requests,
      used: s.used, shared: s.shared, cached: s.cached,
    };
  }
}

async function unpack(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}
