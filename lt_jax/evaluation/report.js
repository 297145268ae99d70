"use strict";
(() => {
  const holder = document.getElementById("data");
  if (!holder) return;
  const data = JSON.parse(holder.textContent);
  const THOUGHT = 1, TRIGGER = 2, GIST = 4, OUTPUT = 5;
  const make = (name, attributes, ...children) => {
    const node = document.createElement(name);
    Object.assign(node, attributes);
    node.append(...children);
    return node;
  };
  const show = piece => JSON.stringify(piece);
  const alive = (s, key, query) => key <= query && (s.death[key] === null || query < s.death[key]) && key >= s.since[query];

  // The picture of lifetimes: crosshair, and the tokens in words.
  const frame = document.getElementById("lifetimes"), readout = document.getElementById("readout");
  const matrix = frame.querySelector("#matrix"), cross = frame.querySelector("#cross");
  const pictured = data.methods[+frame.dataset.method].samples[+frame.dataset.sample], unit = +matrix.dataset.unit;
  const kind = (s, i) => s.thought[i] < 0 ? data.roles[s.role[i]]
    : s.role[i] === THOUGHT ? `thought ${s.thought[i] + 1}` : `${data.roles[s.role[i]]} of thought ${s.thought[i] + 1}`;
  const lifetime = (s, i) => s.death[i] === null ? `alive from ${i} to the end` : `alive from ${i} to ${s.death[i] - 1}`;
  readout.textContent = "Point at the picture: the tokens of its row and column are shown here.";
  frame.addEventListener("mousemove", event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.getScreenCTM().inverse());
    const key = Math.floor(at.x / unit), query = Math.floor(at.y / unit), n = pictured.pieces.length;
    if (key < 0 || query < 0 || key >= n || query >= n) return;
    const line = (a, b, c, d) => `<path d="M${a} ${b}L${c} ${d}" stroke="#1f2328" stroke-width="1" stroke-dasharray="3 3"/>`;
    const x = (key + .5) * unit, y = (query + .5) * unit;
    cross.innerHTML = line(0, y, n * unit, y) + line(x, 0, x, n * unit);
    const sees = key > query ? "comes before" : alive(pictured, key, query) ? "sees" : "can no longer see";
    readout.replaceChildren(
      make("b", { textContent: show(pictured.pieces[query]) }), ` (token ${query}, ${kind(pictured, query)}) ${sees} `,
      make("b", { textContent: show(pictured.pieces[key]) }), ` (token ${key}, ${kind(pictured, key)}, ${lifetime(pictured, key)}). `,
      make("br"), `Token ${query} sees ${pictured.visible[query]} keys of ${query + 1}.`);
  });

  // Samples, token by token.
  const controls = document.getElementById("controls"), place = document.getElementById("sample");
  let method = +frame.dataset.method, number = +frame.dataset.sample, spans = [], slider, output;
  const current = () => data.methods[method].samples[number];
  const choices = (names, chosen, pick) => make("span", { className: "group" }, ...names.map((name, i) => {
    const button = make("button", { textContent: name, onclick: () => { pick(i); draw(); } });
    button.setAttribute("aria-pressed", i === chosen);
    return button;
  }));
  const body = (s, i) => {
    if (s.role[i] === GIST && /^<\|?o_\d+/.test(s.pieces[i])) return [make("i", { className: "gist" })];
    if (s.role[i] === OUTPUT) return [make("i", { className: "out" }), /^\s/.test(s.pieces[i + 1] || "") ? "" : "\n"];
    if (s.role[i] === TRIGGER) return [s.pieces[i].trim() ? "" : s.pieces[i], make("i", { className: "cut" })];
    return [s.pieces[i]];
  };
  function draw() {
    const s = current(), n = s.pieces.length;
    slider = make("input", { type: "range", min: s.prompt, max: n - 1, value: n - 1, oninput: () => mark(+slider.value) });
    output = make("output", {});
    controls.replaceChildren(
      choices(data.methods.map(m => m.name), method, i => { method = i; number = Math.min(number, data.methods[i].samples.length - 1); }),
      choices(data.methods[method].samples.map(x => `problem ${x.problem + 1}`), number, i => { number = i; }),
      make("label", {}, "moment", slider, output));
    spans = s.pieces.map((_, i) => make("span", {
      title: `token ${i}, ${kind(s, i)}, ${lifetime(s, i)}, saw ${s.visible[i]} keys`, onclick: () => { slider.value = i; mark(i); },
    }, ...body(s, i)));
    const verdict = make("p", { className: "verdict" },
      make("span", { className: s.correct ? "right" : "wrong", textContent: s.correct ? "right" : "wrong" }),
      `: ${s.given === null ? "no answer given" : "answered " + s.given}, expected ${s.answer}. ` +
      `Peak ${s.peak.toLocaleString()}, dependency ${s.dependency.toLocaleString()}.` + (s.cut ? ` ${s.cut} more tokens are not shown.` : ""));
    place.replaceChildren(make("div", { className: "tokens prompt" }, ...spans.slice(0, s.prompt)),
      make("div", { className: "tokens response" }, ...spans.slice(s.prompt)), verdict);
    mark(n - 1);
  }
  function mark(now) {
    const s = current();
    spans.forEach((span, i) => {
      span.className = i > now ? "later" : alive(s, i, now) ? "" : "dead";
    });
    spans[now].classList.add("now");
    output.textContent = `token ${now}: sees ${s.visible[now]} of ${now + 1} keys`;
  }
  if (data.methods.every(m => m.samples.length)) draw();
})();
