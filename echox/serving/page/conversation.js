// The captions: what was asked and answered, and the latency of each answer.

const NEAR_PX = 80; // from the end of the page, within which it follows the conversation

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

/** One question or answer. */
class Turn {
  constructor(role, follow) {
    this.role = role;
    this.follow = follow;
    this.text = "";
    this.isSent = true;
    this.root = element("li", `turn ${role}`);
    this.spoken = element("span", "kept");
    this.unheard = element("span", "unheard");
    this.note = element("span", "note");
    this.figures = element("details", "figures");
    this.figures.hidden = true;
    const caption = element("p", "caption");
    caption.append(this.spoken, this.unheard);
    const name = element("h2", "speaker", role === "user" ? "You" : "EchoX");
    name.append(this.note);
    this.root.append(name, caption, this.figures);
    this.wait(true);
  }

  wait(waiting) {
    this.isWaiting = waiting;
    this.root.classList.toggle("waiting", waiting);
  }

  write(text) {
    this.text = text;
    this.spoken.textContent = text;
    this.unheard.textContent = "";
    this.wait(text === "");
    this.follow();
  }

  /** Notes something beside the name; nothing more is expected of the turn. */
  mark(note) {
    this.note.textContent = note && ` · ${note}`;
    this.wait(false);
    this.follow();
  }

  /** Shows that the conversation keeps a beginning of the text alone. */
  keep(text) {
    if (!this.text.startsWith(text)) return;
    this.unheard.textContent = this.text.slice(text.length);
    this.unheard.title = "Not heard, and not kept";
    this.spoken.textContent = text;
    this.text = text;
  }

  /** @param {[string, string][]} rows names and values; the first is the summary. */
  measure(rows) {
    if (rows.length === 0) return;
    const summary = element("summary", "", rows[0].join(" "));
    const list = element("dl", "");
    for (const [name, value] of rows.slice(1)) {
      const row = element("div", "");
      row.append(element("dt", "", name), element("dd", "", value));
      list.append(row);
    }
    this.figures.replaceChildren(summary, list);
    this.figures.hidden = false;
    this.follow();
  }
}

/** The list of turns. */
export class Conversation {
  /**
   * @param {HTMLOListElement} list
   * @param {HTMLElement} scroller scrolls to the end while the reader is there.
   * @param {HTMLElement} announcer is read by screen readers.
   */
  constructor(list, scroller, announcer) {
    this.list = list;
    this.scroller = scroller;
    this.announcer = announcer;
    this.turns = [];
    this.isAtEnd = true;
    scroller.addEventListener("scroll", () => {
      const below = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
      this.isAtEnd = below < NEAR_PX;
    });
    new ResizeObserver(() => this.follow()).observe(scroller);
  }

  add(role, text = "") {
    const turn = new Turn(role, () => this.follow());
    if (role === "assistant") {
      for (const other of this.turns) other.figures.open = false;
      turn.figures.open = true;
    }
    this.turns.push(turn);
    this.list.append(turn.root);
    this.isAtEnd = true;
    turn.write(text);
    return turn;
  }

  remove(turn) {
    this.turns = this.turns.filter((other) => other !== turn);
    turn.root.remove();
  }

  clear() {
    for (const turn of [...this.turns]) this.remove(turn);
  }

  /** Ends the waiting of turns that have got no text, but for one that goes on. */
  settle(note, except = null) {
    for (const turn of this.turns) {
      if (turn.isWaiting && turn !== except) turn.mark(note);
    }
  }

  follow() {
    if (this.isAtEnd) this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  announce(text) {
    this.announcer.textContent = text;
  }

  /** What a new session has to know of this conversation. */
  items(limit) {
    return this.turns
      .filter((turn) => turn.text && turn.isSent)
      .slice(-limit)
      .map((turn) => ({
        type: "message",
        role: turn.role,
        content: [
          { type: turn.role === "user" ? "input_text" : "output_text", text: turn.text },
        ],
      }));
  }
}
