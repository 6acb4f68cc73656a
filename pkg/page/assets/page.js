"use strict";
// The page is complete without this. Here it is taken again when the server says that something changed, and the
// sections that differ are exchanged. No text becomes markup here: the browser reads the page as a document.
(() => {
  const PACE = 400; // ms between two loads at the least
  const SILENCE = 40000; // ms without a word from the server until the connection counts as gone
  const SLOW = 30000; // ms between loads while there is no connection
  const CALM = 1000; // ms that buttons which are about something else than before cannot be pressed

  const live = document.getElementById("live");
  let source = null;
  let position = document.body.dataset.position;
  let wanted = position; // the position of the last change that was told
  let heard = 0;
  let loading = false;
  let again = false;
  let loaded = Date.now();
  let timer = 0;
  let retry = 0;
  let failures = 0;

  const say = (text, mark) => {
    if (live.textContent !== text) live.textContent = text;
    live.className = "live" + (mark ? " " + mark : "");
  };

  // What the server wrote of each section, before times in it were made relative.
  const served = new Map();
  const sections = (root) => [...root.querySelectorAll("[data-live]")];
  const remember = (root) => {
    for (const s of sections(root)) served.set(s.id, s.outerHTML);
  };

  const ago = (then) => {
    const s = Math.round((Date.now() - then) / 1000);
    if (s < 5) return "now";
    if (s < 60) return s + " s ago";
    if (s < 3600) return Math.floor(s / 60) + " min ago";
    if (s < 86400) return Math.floor(s / 3600) + " h ago";
    return Math.floor(s / 86400) + " d ago";
  };
  const times = () => {
    for (const t of document.querySelectorAll("time.ago")) {
      if (!t.title) t.title = t.textContent;
      const text = ago(Date.parse(t.dateTime));
      if (t.textContent !== text) t.textContent = text;
    }
  };

  // The server keeps a page for a moment; one that was made before the change is not the last. Where positions
  // begin anew it cannot be told: then the page is taken once more.
  let doubted = "";
  const older = (made) => {
    const [epoch, n] = made.split("-");
    const [same, m] = wanted.split("-");
    if (epoch === same) return Number(n) < Number(m);
    if (doubted === wanted) return false;
    doubted = wanted;
    return true;
  };

  // What the buttons are about, in their order. When that changes, another button may come under a finger that is on its way.
  const aims = () => [...document.querySelectorAll("#commands form")].map((f) => ["command", "version", "seen"].map((n) => f.elements[n].value).join()).join(" ");
  let calmUntil = 0;
  let calming = 0;
  let resting = ""; // the id of the button that had the focus
  const calm = () => {
    const buttons = document.querySelectorAll("#commands button");
    const rest = calmUntil - Date.now();
    if (rest > 0 && document.activeElement && document.activeElement.closest("#commands button")) resting = document.activeElement.id;
    for (const b of buttons) b.disabled = rest > 0;
    clearTimeout(calming);
    if (rest > 0) {
      calming = setTimeout(calm, rest);
      return;
    }
    const b = resting && document.getElementById(resting);
    if (b && (!document.activeElement || document.activeElement === document.body)) b.focus({ preventScroll: true });
    resting = "";
  };

  const exchange = (next) => {
    const were = aims();
    if (older(next.body.dataset.position || "")) again = true;
    const now = sections(document);
    const then = sections(next);
    const main = document.getElementById("main");
    // Who is logged in, or nobody any more.
    const who = document.getElementById("who");
    const whoNow = next.getElementById("who");
    if (who && whoNow && who.outerHTML !== whoNow.outerHTML) who.replaceWith(document.adoptNode(whoNow));
    if (now.length === 0 || now.map((s) => s.id).join() !== then.map((s) => s.id).join()) {
      main.replaceChildren(...[...next.getElementById("main").childNodes].map((n) => document.adoptNode(n)));
      served.clear();
      remember(document);
    } else {
      then.forEach((fresh, i) => {
        const html = fresh.outerHTML;
        if (served.get(fresh.id) === html) return;
        served.set(fresh.id, html);
        const old = now[i];
        const open = [...old.querySelectorAll("details[open]")].map((d) => d.id);
        // What somebody has written and not sent.
        const typed = [...old.querySelectorAll("input[id]")].filter((i) => i.value !== i.defaultValue).map((i) => [i.id, i.value]);
        const focus = old.contains(document.activeElement) ? document.activeElement : null;
        const node = document.adoptNode(fresh);
        old.replaceWith(node);
        for (const id of open) {
          const d = document.getElementById(id);
          if (d) d.open = true;
        }
        for (const [id, value] of typed) {
          const i = document.getElementById(id);
          if (i) i.value = value;
        }
        if (focus) {
          const same = focus.id ? document.getElementById(focus.id) : [...node.querySelectorAll(focus.tagName)].find((e) => e.textContent === focus.textContent);
          if (same) same.focus({ preventScroll: true });
        }
      });
    }
    if (aims() !== were) calmUntil = Date.now() + CALM;
    calm();
    if (document.title !== next.title) document.title = next.title;
    times();
  };

  const load = () => {
    if (loading || timer) {
      again = true;
      return;
    }
    const wait = loaded + PACE - Date.now();
    if (wait > 0) {
      timer = setTimeout(() => {
        timer = 0;
        load();
      }, wait);
      return;
    }
    loading = true;
    again = false;
    const r = new XMLHttpRequest();
    r.open("GET", location.pathname + location.search);
    r.responseType = "document";
    r.timeout = 15000;
    r.onloadend = () => {
      loading = false;
      loaded = Date.now();
      // 403 is the page that asks for a login: the last one is over.
      if ((r.status === 200 || r.status === 403 || r.status === 404) && r.response && r.response.getElementById("main")) {
        failures = 0;
        exchange(r.response);
        if (again) load();
        return;
      }
      // The server does not answer, or has too much to do.
      failures++;
      again = false;
      timer = setTimeout(() => {
        timer = 0;
        load();
      }, Math.min(1000 * 2 ** failures, SLOW) * (0.5 + Math.random()));
    };
    r.send();
  };

  const close = () => {
    if (source) source.close();
    source = null;
  };
  const connect = () => {
    clearTimeout(retry);
    retry = 0;
    close();
    const events = document.body.dataset.events;
    if (!events || document.hidden) return;
    heard = Date.now();
    source = new EventSource(events + (events.includes("?") ? "&" : "?") + "since=" + encodeURIComponent(position));
    const word = (e) => {
      heard = Date.now();
      if (e.lastEventId) position = e.lastEventId;
    };
    source.onopen = () => {
      heard = Date.now();
      say("live", "on");
    };
    source.addEventListener("beat", word);
    source.addEventListener("change", (e) => {
      word(e);
      wanted = position;
      load();
    });
    source.onerror = () => {
      say("not live: connecting again", "lost");
      // A refusal ends it for good; anything else the browser tries again by itself.
      if (source && source.readyState === EventSource.CLOSED && !retry) {
        retry = setTimeout(connect, 10000 + Math.random() * 10000);
      }
    };
  };

  remember(document);
  times();
  setInterval(() => {
    times();
    if (document.hidden || !document.body.dataset.events) return; // what follows nothing is not taken again
    if (source && source.readyState === EventSource.OPEN && Date.now() - heard > SILENCE) connect();
    const quiet = !source || source.readyState !== EventSource.OPEN;
    if (quiet && !loading && Date.now() - loaded > SLOW) load();
  }, 5000);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      close();
      say("paused", "");
    } else {
      connect();
      if (document.body.dataset.events) load();
    }
  });
  // A page that comes back from the browser's memory is an old one.
  addEventListener("pageshow", (e) => {
    if (e.persisted) {
      connect();
      load();
    }
  });
  addEventListener("pagehide", close);
  connect();
})();
