// Draws what the agent sends: it decides nothing, and whatever it shows is text.
"use strict";
(() => {
  const SILENT_MS = 40000; // the agent says something every 15 s
  const AGAIN_MS = 3000;
  const live = document.getElementById("live");
  let skew = 0; // the agent's clock beside this one, in seconds
  let heard = 0;
  let source = null;

  function span(seconds) { // as agent/telemetry/page.py says it
    const minutes = Math.floor(seconds / 60);
    if (minutes < 1) return "< 1 min";
    if (minutes < 60) return `${minutes} min`;
    if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
    return `${Math.floor(minutes / 1440)} d ${Math.floor((minutes % 1440) / 60)} h`;
  }

  const tell = (time) => {
    time.textContent = span(Date.now() / 1000 + skew - Number(time.dataset.at));
  };

  function line([text, tone, at]) {
    const made = document.createElement(at ? "time" : "span");
    if (at) {
      made.dataset.at = at;
      made.dateTime = new Date(at * 1000).toISOString();
      made.title = made.dateTime;
      tell(made);
    } else {
      made.textContent = text;
      if (tone) made.className = tone;
    }
    return made;
  }

  function row(key, cells, labels) {
    const made = document.createElement("tr");
    made.setAttribute("role", "row");
    made.dataset.key = key;
    cells.forEach((lines, index) => {
      const cell = made.insertCell();
      cell.setAttribute("role", "cell");
      cell.dataset.label = labels[index];
      cell.append(...lines.map(line));
    });
    return made;
  }

  function change(id, { rows = [], keys }) {
    const table = document.getElementById(id);
    const body = table.tBodies[0];
    const labels = Array.from(table.tHead.rows[0].cells, (cell) => cell.textContent);
    const known = new Map(Array.from(body.rows, (one) => [one.dataset.key, one]));
    for (const [key, cells] of rows) {
      const made = row(key, cells, labels);
      const old = known.get(key);
      if (old) {
        if (old.textContent !== made.textContent) made.className = "news";
        old.replaceWith(made);
      }
      known.set(key, made);
    }
    if (keys) body.replaceChildren(...keys.map((key) => known.get(key)));
    table.hidden = body.rows.length === 0;
    table.nextElementSibling.hidden = body.rows.length !== 0;
  }

  function say(state, text) {
    if (live.textContent !== text) live.textContent = text;
    live.className = state;
    document.body.classList.toggle("lost", state === "lost");
  }

  function lost() {
    if (live.className !== "lost") {
      say("lost", `No news from the agent since ${new Date(heard || Date.now()).toLocaleTimeString()}; trying again`);
    }
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, AGAIN_MS); // it was refused: nobody else tries again
  }

  function hear() {
    heard = Date.now();
    say("on", "Live");
  }

  function listen() {
    source.close();
    source = new EventSource("events");
    attach();
  }

  function attach() {
    source.onerror = lost;
    source.addEventListener("alive", hear);
    source.onmessage = (event) => {
      const frame = JSON.parse(event.data);
      skew = frame.now - Date.now() / 1000;
      document.title = frame.title;
      for (const [id, table] of Object.entries(frame.tables)) change(id, table);
      hear();
    };
  }

  setInterval(() => {
    document.querySelectorAll("time").forEach(tell);
    if (heard && Date.now() - heard > SILENT_MS && source.readyState === EventSource.OPEN) {
      lost();
      listen();
    }
  }, 5000);
  source = new EventSource("events");
  attach();
})();
