// Keeps the cells of each line of a table equally high, although each column is laid out by itself. (In a grid of subgrids a browser lays out
// all columns again whenever a cell of one has changed.) A cell has one element, its content; the cell's least height, without its padding, is set here.

export class Lines {
  constructor() {
    /** @type {Map<string, Map<HTMLElement, number>>} by line: the height of each content, in pixels; 0 until it is known */
    this.heights = new Map();
    /** @type {Map<string, number>} by line: the highest of them, as its cells have it */
    this.highest = new Map();
    /** @type {WeakMap<Element, string>} */
    this.lineOf = new WeakMap();
    this.observer = new ResizeObserver((entries) => this.resized(entries));
  }

  /** What to give a content as its `ref`: always the same function for the same place. @param {string} line @returns {(content: HTMLElement | null) => void} */
  keep(line) {
    /** @type {HTMLElement | null} */
    let before = null;
    return (content) => {
      if (before !== null) this.drop(line, before);
      before = content;
      if (content !== null) this.add(line, content);
    };
  }

  /** @param {string} line @param {HTMLElement} content */
  add(line, content) {
    const contents = this.heights.get(line) ?? new Map();
    this.heights.set(line, contents.set(content, 0));
    this.lineOf.set(content, line);
    this.observer.observe(content);
    fit(content, this.highest.get(line) ?? 0);
  }

  /** @param {string} line @param {HTMLElement} content */
  drop(line, content) {
    this.observer.unobserve(content);
    this.heights.get(line)?.delete(content);
    this.settle(line);
  }

  /** @param {ResizeObserverEntry[]} entries */
  resized(entries) {
    /** @type {Set<string>} */
    const lines = new Set();
    for (const { target, contentRect } of entries) {
      const line = this.lineOf.get(target) ?? "";
      this.heights.get(line)?.set(/** @type {HTMLElement} */ (target), contentRect.height);
      lines.add(line);
    }
    for (const line of lines) this.settle(line);
  }

  /** Give the cells of a line the height of the highest one. @param {string} line */
  settle(line) {
    const contents = this.heights.get(line) ?? new Map();
    const highest = Math.max(0, ...contents.values());
    if (highest === (this.highest.get(line) ?? 0)) return;
    this.highest.set(line, highest);
    for (const content of contents.keys()) fit(content, highest);
  }

  end() {
    this.observer.disconnect();
  }
}

/** @param {HTMLElement} content @param {number} height */
function fit(content, height) {
  const { parentElement: cell } = content;
  if (cell) cell.style.minHeight = `${height}px`;
}
