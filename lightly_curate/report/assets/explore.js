'use strict';
// Explores one run: a map of its samples, their pictures, and the selection for every number of samples.
// Everything comes from the JSON in the page; texts go in as textContent only, nothing is fetched.

const data = JSON.parse(document.getElementById('data').textContent);
const points = data.points, N = points.name.length;
const byId = id => document.getElementById(id);
const canvas = byId('map'), pen = canvas.getContext('2d', {willReadFrequently: true}), stage = byId('stage');
const state = {map: 0, colour: 'selected', n: data.n_selected, only: null, hover: -1, kept: -1, tab: 'chosen', shown: 48,
               lassoing: false, list: [], said: '', zoom: 1, x: .5, y: .5};

// ---- small things --------------------------------------------------------------------------------------------------
const count = (n, one = data.words.one, many = data.words.many) => `${n.toLocaleString('en')} ${n === 1 ? one : many}`;
const number = v => v === 0 ? '0' : v.toPrecision(3);
const isChosen = i => points.rank[i] >= 0 && points.rank[i] < state.n;
const nChosen = () => points.rank.reduce((sum, r) => sum + (r >= 0 && r < state.n), 0);  // of those on the map
const chosenInOrder = points.rank.map((r, i) => [r, i]).filter(([r]) => r >= 0).sort((a, b) => a[0] - b[0]).map(([, i]) => i);

function element(tag, about = {}, ...children) {  // children: elements and texts
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(about)) {
    if (key in made) made[key] = value; else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function svg(tag, about, text = '') {
  const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [key, value] of Object.entries(about)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

// ---- pictures: a tile of an embedded sheet, or the file beside the page ---------------------------------------------
const sheets = [];
function sheet(k) {  // Promise of the k-th sheet
  sheets[k] ??= new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = failed;
    image.src = 'data:image/jpeg;base64,' + data.sheets.jpegs[k];
  });
  return sheets[k];
}

function link(i) {  // address of the file of an image relative to this page; null: none
  if (data.input === null || points.video[i] >= 0) return null;
  return data.input + points.name[i].split('/').map(encodeURIComponent).join('/');
}

const without = () => element('div', {className: 'picture missing'}, 'no picture in this page');

function picture(i) {  // element
  const alt = points.name[i], tile = points.tile[i];
  if (tile >= 0) {
    const {side, columns, per_sheet, sizes} = data.sheets, place = tile % per_sheet, [width, height] = sizes[tile];
    const made = element('canvas', {className: 'picture', width, height, role: 'img', 'aria-label': alt});
    sheet(Math.floor(tile/per_sheet)).then(image => made.getContext('2d').drawImage(
      image, place % columns*side, Math.floor(place/columns)*side, width, height, 0, 0, width, height));
    return made;
  }
  const address = link(i);
  if (!address) return without();
  const made = element('img', {className: 'picture', loading: 'lazy', decoding: 'async', alt, src: address});
  made.onerror = () => made.replaceWith(without());
  return made;
}

// ---- colours ---------------------------------------------------------------------------------------------------------
const DARK = [22, 34, 43], CHOSEN = [11, 95, 115], PALE = [186, 197, 205], WHITE = [255, 255, 255];
const GROUPS = [[0, 90, 160], [230, 159, 0], [0, 130, 95], [204, 60, 30], [120, 94, 190], [86, 180, 233], [110, 70, 30],
                [222, 110, 170], [125, 160, 30], [90, 105, 118]];  // the last: all groups beyond
const SCALE = [[0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [254, 232, 56]];  // cividis
const gradient = t => {
  const at = Math.min(Math.max(t, 0), 1)*(SCALE.length - 1), k = Math.min(Math.floor(at), SCALE.length - 2);
  return SCALE[k].map((v, c) => Math.round(v + (at - k)*(SCALE[k + 1][c] - v)));
};
const css = colour => `rgb(${colour.join(',')})`;

function byGroup(values, names) {  // the largest groups get a colour of their own
  const sizes = new Map();
  for (const v of values) if (v >= 0) sizes.set(v, (sizes.get(v) || 0) + 1);
  const order = [...sizes.keys()].sort((a, b) => sizes.get(b) - sizes.get(a));
  const nOwn = order.length <= GROUPS.length ? order.length : GROUPS.length - 1;
  const own = new Map(order.slice(0, nOwn).map((v, k) => [v, k]));
  const group = values.map(v => v < 0 ? -1 : own.get(v) ?? GROUPS.length - 1);
  const legend = [...own].map(([v, k]) => ({key: k, text: names[v], colour: GROUPS[k], n: sizes.get(v)}));
  const rest = order.slice(own.size);
  const nRest = rest.reduce((sum, v) => sum + sizes.get(v), 0);
  if (nRest) legend.push({key: GROUPS.length - 1, text: `${rest.length} others`, colour: GROUPS.at(-1), n: nRest});
  return {group, legend, colourOf: i => group[i] < 0 ? PALE : GROUPS[group[i]]};
}

function byValue(values, what, log) {  // null where there is none
  const known = values.filter(v => v !== null);
  const low = known.reduce((a, b) => Math.min(a, b), Infinity), high = known.reduce((a, b) => Math.max(a, b), -Infinity);
  const turned = v => high > low ? log ? Math.log1p(v - low)/Math.log1p(high - low) : (v - low)/(high - low) : 0;
  return {range: [low, high], what, log, colourOf: i => values[i] === null ? PALE : gradient(turned(values[i]))};
}

const byChoice = () => ({
  group: null, colourOf: i => isChosen(i) ? CHOSEN : PALE,
  legend: [{key: 1, text: 'selected', colour: CHOSEN, n: nChosen()}, {key: 0, text: 'not selected', colour: PALE, n: N - nChosen()}]});

const COLOURINGS = {
  selected: ['selected or not', byChoice],
  status: ['status', () => byGroup(points.status, data.statuses)],
  label: [data.words.group, () => byGroup(points.label, data.labels)],
  video: ['video', () => byGroup(points.video, data.labels)],
  time: ['time in video', () => byValue(points.time_s, 'time in video, s')],
  rank: ['rank', () => byValue(points.rank.map(r => r < 0 ? null : r + 1), 'rank, the first choice is 1; pale: not selected', true)],
  gap: ['gap', () => byValue(points.gap, 'gap: distance to all chosen before; pale: not selected')],
  distance: ['distance', () => byValue(points.distance, `distance to the nearest of all ${data.n_selected.toLocaleString('en')} selected; pale: these`)],
};
let colouring = null;  // of COLOURINGS, worked out
const isShown = i => state.only === null || (colouring.group ? colouring.group[i] : Number(isChosen(i))) === state.only;

function showLegend() {
  colouring = COLOURINGS[state.colour][1]();
  const legend = byId('legend');
  legend.replaceChildren();
  if (colouring.range) {
    const strip = element('canvas', {width: 90, height: 1, 'aria-hidden': 'true'}), ink = strip.getContext('2d');
    for (let k = 0; k < 90; k++) { ink.fillStyle = css(gradient(k/89)); ink.fillRect(k, 0, 1, 1); }
    const [low, high] = colouring.range;
    legend.append(Number.isFinite(low) ? number(low) : '', strip, Number.isFinite(high) ? number(high) : '',
                  ` ${colouring.what}${colouring.log ? ' (logarithmic)' : ''}`);
    return;
  }
  for (const {key, text, colour, n} of colouring.legend) {
    const dot = svg('svg', {width: 12, height: 12, 'aria-hidden': 'true'});
    dot.append(svg('circle', {cx: 6, cy: 6, r: 5, fill: css(colour)}));
    const entry = element('button', {type: 'button', title: `Show only: ${text}`, 'aria-pressed': String(state.only === key)}, dot,
                          element('span', {}, `${text} (${n.toLocaleString('en')})`));
    entry.onclick = () => { state.only = state.only === key ? null : key; showLegend(); draw(); };
    legend.append(entry);
  }
}

// ---- the map ---------------------------------------------------------------------------------------------------------
const PAD = 14;  // CSS pixels around the points
let wide = 1, high = 1, ratio = 1;  // of the canvas: CSS pixels, and device pixels in one
const layout = () => data.maps[state.map];
const isPlaced = i => layout().x[i] >= 0;
const screenX = i => (layout().x[i]/data.scale - state.x)*state.zoom*(wide - 2*PAD) + wide/2;
const screenY = i => (state.y - layout().y[i]/data.scale)*state.zoom*(high - 2*PAD) + high/2;

function stamper(pixels, radius) {  // draws discs, device pixels; the innermost loop of the page, hence without lists of lists
  const {width, height, data: bytes} = pixels, reach = Math.ceil(radius + .5), dx = [], dy = [], opacity = [];
  for (let y = -reach; y <= reach; y++) for (let x = -reach; x <= reach; x++) {
    const covered = Math.min(1, Math.max(0, radius + .5 - Math.hypot(x, y)));
    if (covered > 0) { dx.push(x); dy.push(y); opacity.push(covered); }
  }
  return (x, y, colour) => {
    if (x < -reach || y < -reach || x > width + reach || y > height + reach) return;
    const red = colour[0], green = colour[1], blue = colour[2];
    for (let k = 0; k < dx.length; k++) {
      const px = x + dx[k], py = y + dy[k];
      if (px < 0 || py < 0 || px >= width || py >= height) continue;
      const at = 4*(py*width + px), covered = opacity[k];
      bytes[at] += (red - bytes[at])*covered;
      bytes[at + 1] += (green - bytes[at + 1])*covered;
      bytes[at + 2] += (blue - bytes[at + 2])*covered;
    }
  };
}

function ring(i, radius) {
  if (i < 0 || !isPlaced(i)) return;
  pen.beginPath();
  pen.arc(screenX(i), screenY(i), radius, 0, 7);
  pen.lineWidth = 5; pen.strokeStyle = '#fff'; pen.stroke();
  pen.lineWidth = 2.5; pen.strokeStyle = '#c2410c'; pen.stroke();
}

let isWaiting = false, dots = null;  // the discs as they were drawn last, null: to be drawn again
function drawOver() {  // what lies over the discs has changed; drawn at most once a frame
  if (isWaiting) return;
  isWaiting = true;
  requestAnimationFrame(() => { isWaiting = false; paint(); });
}
function draw() { dots = null; drawOver(); }

function drawDots() {
  const pixels = pen.createImageData(canvas.width, canvas.height), front = [], {x: xs, y: ys} = layout();
  pixels.data.fill(255);
  const radius = Math.min(Math.max(150/Math.sqrt(N), 1), 4.5)*ratio*Math.min(state.zoom, 12)**.25;
  const small = stamper(pixels, radius), large = stamper(pixels, 1.3*radius), outer = stamper(pixels, 1.3*radius + Math.min(1.2*ratio, .5*radius));
  const scaleX = state.zoom*(wide - 2*PAD)*ratio, scaleY = state.zoom*(high - 2*PAD)*ratio;
  const pixelX = i => Math.round((xs[i]/data.scale - state.x)*scaleX + wide*ratio/2);
  const pixelY = i => Math.round((state.y - ys[i]/data.scale)*scaleY + high*ratio/2);
  for (let i = 0; i < N; i++) {
    if (xs[i] < 0 || !isShown(i)) continue;
    if (isChosen(i)) front.push(i); else small(pixelX(i), pixelY(i), colouring.colourOf(i));
  }
  const edge = state.colour === 'selected' ? WHITE : DARK;
  for (const i of front) {
    outer(pixelX(i), pixelY(i), edge);
    large(pixelX(i), pixelY(i), colouring.colourOf(i));
  }
  return pixels;
}

function paint() {
  dots ??= drawDots();
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.putImageData(dots, 0, 0);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  const partner = state.kept < 0 ? -1 : points.nearest[state.kept];
  if (partner >= 0 && isPlaced(partner) && isPlaced(state.kept)) {
    pen.beginPath(); pen.moveTo(screenX(state.kept), screenY(state.kept)); pen.lineTo(screenX(partner), screenY(partner));
    pen.lineWidth = 2; pen.strokeStyle = '#c2410c'; pen.stroke();
  }
  for (const i of [partner, state.kept, state.hover]) ring(i, 9);
  if (loop.length > 1) {
    pen.beginPath();
    loop.forEach(([x, y]) => pen.lineTo(x, y));
    pen.closePath();
    pen.fillStyle = '#e09f0033'; pen.fill(); pen.lineWidth = 2; pen.strokeStyle = '#16222b'; pen.stroke();
  }
}

function resize() {
  ({width: wide, height: high} = stage.getBoundingClientRect());
  ratio = Math.min(window.devicePixelRatio || 1, 2);
  canvas.width = Math.max(1, Math.round(wide*ratio));
  canvas.height = Math.max(1, Math.round(high*ratio));
  draw();
}

function zoomBy(factor, x = wide/2, y = high/2) {  // the spot at x, y stays where it is
  const zoom = Math.min(Math.max(state.zoom*factor, 1), 400), change = 1/state.zoom - 1/zoom;
  state.x += (x - wide/2)/(wide - 2*PAD)*change;
  state.y -= (y - high/2)/(high - 2*PAD)*change;
  state.zoom = zoom;
  moveBy(0, 0);
}

function moveBy(dx, dy) {  // CSS pixels
  const within = v => Math.min(Math.max(v, 0), 1);
  state.x = within(state.x - dx/(wide - 2*PAD)/state.zoom);
  state.y = within(state.y + dy/(high - 2*PAD)/state.zoom);
  if (state.zoom === 1) state.x = state.y = .5;
  draw();
}

function nearestTo(x, y, reach, isWanted = () => true) {  // point, -1: none within reach, CSS pixels
  let best = -1, least = reach*reach;
  for (let i = 0; i < N; i++) {
    if (!isPlaced(i) || !isShown(i)) continue;
    const far = (screenX(i) - x)**2 + (screenY(i) - y)**2 - (isChosen(i) ? 1e-6 : 0);
    if (far < least && isWanted(i)) { best = i; least = far; }
  }
  return best;
}

// ---- one sample --------------------------------------------------------------------------------------------------------
function facts(i) {  // sentences
  const told = [], rank = points.rank[i], status = data.statuses[points.status[i]];
  if (rank >= 0) told.push(`${isChosen(i) ? 'selected' : 'not selected with this number'}, choice ${(rank + 1).toLocaleString('en')}` +
                           (points.gap[i] === null ? '' : `, gap ${number(points.gap[i])}`));
  else told.push(status === 'ok' ? 'not selected' : status);
  if (points.time_s[i] !== null) told.push(`at ${points.time_s[i].toFixed(2)} s`);
  if (points.label[i] >= 0) told.push(`${data.words.group}: ${data.labels[points.label[i]]}`);
  if (points.distance[i] !== null) told.push(`distance to the nearest of all ${data.n_selected.toLocaleString('en')} selected: ${number(points.distance[i])}`);
  return told;
}

const described = i => [picture(i), element('div', {className: 'name'}, points.name[i]),
                        ...facts(i).map(o => element('div', {className: 'fact'}, o))];

function hover(i) {
  const tip = byId('tip');
  if (i !== state.hover) { state.hover = i; drawOver(); if (i >= 0) tip.replaceChildren(...described(i)); }
  tip.hidden = i < 0;
  if (i < 0) return;
  const x = screenX(i), y = screenY(i), box = tip.getBoundingClientRect();
  tip.style.left = `${Math.min(Math.max(x + (x > wide/2 ? -box.width - 16 : 16), 4), Math.max(4, wide - box.width - 4))}px`;
  tip.style.top = `${Math.min(Math.max(y - box.height/2, 4), Math.max(4, high - box.height - 4))}px`;
}

function keep(i) {  // -1: none
  state.kept = i;
  const box = byId('kept');
  box.replaceChildren();
  drawOver();
  if (i < 0) return;
  const partner = points.nearest[i], pair = element('div', {className: 'pair'});
  if (partner >= 0) {
    pair.append(element('div', {}, element('strong', {}, 'Selected'), ...described(partner)),
                element('div', {}, element('strong', {}, 'Stands for'), ...described(i)));
    box.append(pair);
  } else box.append(...described(i));
}

// ---- the side strip ------------------------------------------------------------------------------------------------------
function card(i, says) {
  const made = element('button', {type: 'button', className: 'card', title: points.name[i]}, picture(i), says,
                       element('div', {className: 'name'}, points.name[i].split('/').at(-1)));
  made.onclick = () => keep(i);
  made.onmouseenter = made.onfocus = () => { if (isPlaced(i)) { state.hover = i; drawOver(); } };
  return made;
}

const pairs = points.nearest.map((o, i) => [o, i]).filter(([o]) => o >= 0).map(([, i]) => i)
                            .sort((a, b) => points.distance[b] - points.distance[a]);
const TABS = {
  chosen: {items: () => chosenInOrder.filter(isChosen).reverse(), make: i => [card(i, `choice ${points.rank[i] + 1}`)],
           about: () => `The ${count(nChosen())} selected${nChosen() < state.n ? ' that the map shows' : ''}, the last choice first.`},
  list: {items: () => listed(), make: i => [card(i, isChosen(i) ? 'selected' : 'not selected')], about: () => ''},
  pairs: {items: () => pairs,
          make: i => [element('div', {className: 'pair'}, card(points.nearest[i], 'selected'), card(i, 'not selected'),
                              element('div', {className: 'apart'}, `distance ${number(points.distance[i])}`))],
          about: () => `Each of the ${count(pairs.length)} not selected beside the selected one that stands for it, when all ` +
            `${data.n_selected.toLocaleString('en')} are selected; the largest distances first.`},
};

function showStrip() {
  const tab = TABS[state.tab], items = tab.items(), strip = byId('strip');
  for (const name of Object.keys(TABS)) byId(`tab-${name}`).setAttribute('aria-selected', String(name === state.tab));
  byId('panel').setAttribute('aria-labelledby', `tab-${state.tab}`);
  byId('list-tools').hidden = state.tab !== 'list';
  byId('about').textContent = tab.about();
  strip.className = state.tab === 'pairs' ? 'pairs' : '';
  strip.replaceChildren(...items.slice(0, state.shown).flatMap(tab.make));
  byId('more').hidden = items.length <= state.shown;
  if (state.tab !== 'list') return;
  byId('names').value = items.map(i => points.name[i]).join('\n');
  const nSelected = items.filter(isChosen).length.toLocaleString('en');
  byId('said').textContent = state.said ? `${state.said}: ${count(items.length)}, ${nSelected} of them selected.`
                                        : 'Draw a lasso around points, take those in view, or search for a name.';
}

let isStripWaiting = false;
function showSoon() {  // at most once a frame, while the slider is dragged
  if (isStripWaiting) return;
  isStripWaiting = true;
  requestAnimationFrame(() => { isStripWaiting = false; showStrip(); });
}

function listed() {  // what is on the list, of the part that is wanted
  const part = byId('part').value;
  return state.list.filter(i => part === 'all' || isChosen(i) === (part === 'selected'));
}

function setTab(name) { state.tab = name; state.shown = 48; showStrip(); }
function list(items, said) { state.list = items; state.said = said; setTab('list'); }

// ---- lasso -----------------------------------------------------------------------------------------------------------------
let loop = [];  // [x, y], CSS pixels
function isInside(x, y, around) {  // even-odd rule
  let inside = false;
  for (let i = 0, j = around.length - 1; i < around.length; j = i++) {
    const [ax, ay] = around[i], [bx, by] = around[j];
    if (ay > y !== by > y && x < (bx - ax)*(y - ay)/(by - ay) + ax) inside = !inside;
  }
  return inside;
}

function where(isWanted) {  // points on the map
  const found = [];
  for (let i = 0; i < N; i++) if (isPlaced(i) && isShown(i) && isWanted(screenX(i), screenY(i))) found.push(i);
  return found;
}

function closeLasso() {
  if (loop.length > 2) list(where((x, y) => isInside(x, y, loop)), 'Lasso');
  loop = [];
  setLasso(false);
  drawOver();
}
function setLasso(is) {
  state.lassoing = is;
  byId('lasso').setAttribute('aria-pressed', String(is));
  canvas.classList.toggle('lasso', is);
}

// ---- number of samples -------------------------------------------------------------------------------------------------------
function setNumber(n) {
  state.n = n;
  const covered = data.covering[n];
  byId('number').value = n;
  byId('number').setAttribute('aria-valuetext', count(n));
  byId('chosen').textContent = n.toLocaleString('en');
  byId('covering').textContent = covered === undefined || covered === null ? '' : data.is_own_curve
    ? `Covering distance ${data.is_exact ? '' : 'at most '}${number(covered)}: no ${data.words.one} is further from the nearest one chosen.`
    : `Covering distance of k-center with as many: ${number(covered)}.`;
  if (state.colour === 'selected') showLegend();
  draw();
  markCurve();
  if (state.tab === 'chosen') state.shown = 48;
  if (state.tab !== 'pairs') showSoon();
}

const CURVE = {width: 380, height: 150, left: 42, right: 12, top: 10, bottom: 24};
let curveX = null, curveY = null, mark = null;
function drawCurve() {
  const curve = data.curve;
  if (!curve || curve.n.length < 2) return;
  const {width, height, left, right, top, bottom} = CURVE, last = curve.n.at(-1), first = curve.n[0];
  const most = Math.max(...curve.covering, ...curve.random)*1.04;
  curveX = n => left + (width - left - right)*Math.log(n/first)/Math.log(last/first);
  curveY = v => height - bottom - (height - top - bottom)*v/most;
  const line = (values, about) => svg('polyline', {points: values.map((v, k) => `${curveX(curve.n[k])},${curveY(v)}`).join(' '),
                                                   fill: 'none', ...about});
  const label = (x, y, text, anchor) => svg('text', {x, y, 'text-anchor': anchor, 'font-size': 11, fill: '#4d5c67'}, text);
  const picture = svg('svg', {viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': 'Covering distance by number of samples'});
  mark = svg('line', {y1: top, y2: height - bottom, stroke: '#c2410c', 'stroke-width': 2});
  picture.append(
    svg('path', {d: `M${left},${top}V${height - bottom}H${width - right}`, fill: 'none', stroke: '#93a1ab'}),
    line(curve.random, {stroke: '#7b8893', 'stroke-width': 1.6, 'stroke-dasharray': '5 4'}),
    line(curve.covering, {stroke: '#0b5f73', 'stroke-width': 2.6}), mark,
    label(left - 5, top + 9, number(most), 'end'), label(left - 5, height - bottom, '0', 'end'),
    label(left, height - 8, first, 'start'), label(width - right, height - 8, last.toLocaleString('en'), 'end'),
    label((left + width - right)/2, height - 8, `${data.words.many}, logarithmic`, 'middle'));
  byId('curve').prepend(picture);
  byId('curve').hidden = false;
  byId('curve-text').textContent = 'Covering distance by number of samples: k-center (line) and random choices (dashed).';
}
function markCurve() {
  if (!mark) return;
  const x = curveX(Math.max(state.n + data.offset, data.curve.n[0]));
  mark.setAttribute('x1', x); mark.setAttribute('x2', x);
}

// ---- what hands do --------------------------------------------------------------------------------------------------------------
const fingers = new Map();
let moved = 0;
const spot = event => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
canvas.addEventListener('pointerdown', event => {
  canvas.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, spot(event));
  moved = 0;
  if (event.shiftKey) setLasso(true);
  loop = state.lassoing ? [spot(event)] : [];
});
canvas.addEventListener('pointermove', event => {
  const [x, y] = spot(event), before = fingers.get(event.pointerId);
  if (!before) return hover(nearestTo(x, y, 14));
  const others = [...fingers].filter(([id]) => id !== event.pointerId).map(([, o]) => o);
  fingers.set(event.pointerId, [x, y]);
  moved += Math.hypot(x - before[0], y - before[1]);
  if (others.length) {
    const [ox, oy] = others[0];
    loop = [];
    zoomBy(Math.hypot(x - ox, y - oy)/Math.max(1, Math.hypot(before[0] - ox, before[1] - oy)), (x + ox)/2, (y + oy)/2);
  } else if (state.lassoing) { loop.push([x, y]); drawOver(); } else if (moved > 4) { hover(-1); moveBy(x - before[0], y - before[1]); }
});
const lift = event => {
  if (!fingers.delete(event.pointerId)) return;
  if (loop.length > 2) return closeLasso();
  if (event.type !== 'pointerup' || moved > 4) return;
  const i = nearestTo(...spot(event), event.pointerType === 'touch' ? 24 : 14);
  hover(i);
  keep(i);
};
canvas.addEventListener('pointerup', lift);
canvas.addEventListener('pointercancel', lift);
canvas.addEventListener('pointerleave', () => { if (!fingers.size) hover(-1); });
canvas.addEventListener('wheel', event => {
  event.preventDefault();
  hover(-1);
  zoomBy(Math.exp(-event.deltaY/400), ...spot(event));
}, {passive: false});

const isInView = (x, y) => x >= 0 && y >= 0 && x <= wide && y <= high;
const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
function step([dx, dy]) {  // to the nearest point in a direction
  const from = state.hover, x = from < 0 ? wide/2 : screenX(from), y = from < 0 ? high/2 : screenY(from);
  const next = from < 0 ? nearestTo(x, y, 1e6) : nearestTo(x, y, 1e6, i => {
    const along = (screenX(i) - x)*dx + (screenY(i) - y)*dy, across = Math.abs((screenX(i) - x)*dy) + Math.abs((screenY(i) - y)*dx);
    return along > .5 && across <= along;
  });
  if (next < 0) return;
  if (!isInView(screenX(next), screenY(next))) moveBy(wide/2 - screenX(next), high/2 - screenY(next));
  hover(next);
  canvas.setAttribute('aria-label', `${points.name[next]}, ${facts(next).join(', ')}`);
}
const reset = () => { state.zoom = 1; hover(-1); moveBy(0, 0); };
canvas.addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const acts = {'+': () => zoomBy(1.4), '=': () => zoomBy(1.4), '-': () => zoomBy(1/1.4), 0: reset, Enter: () => keep(state.hover),
                l: () => setLasso(!state.lassoing), Escape: () => { loop = []; setLasso(false); hover(-1); keep(-1); }};
  const act = event.key in ARROWS ? () => step(ARROWS[event.key]) : acts[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

function copy() {
  const names = byId('names');
  names.select();
  const told = is => { byId('said').textContent = is ? `Copied ${count(listed().length)}.` : 'Not copied: the names are marked, press Ctrl and C.'; };
  if (navigator.clipboard) navigator.clipboard.writeText(names.value).then(() => told(true), () => told(document.execCommand('copy')));
  else told(document.execCommand('copy'));
}
function save() {
  const address = URL.createObjectURL(new Blob([byId('names').value + '\n'], {type: 'text/plain'}));
  element('a', {href: address, download: 'filenames.txt'}).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

// ---- start ------------------------------------------------------------------------------------------------------------------------
function start() {
  const offered = Object.keys(COLOURINGS).filter(o => data.colourings.includes(o));
  byId('title').textContent = data.title;
  byId('summary').textContent = data.summary;
  byId('colour').append(...offered.map(o => element('option', {value: o}, COLOURINGS[o][0])));
  byId('layout').append(...data.maps.map((o, k) => element('option', {value: k}, o.name)));
  byId('asked').textContent = `Number of ${data.words.many} selected`;
  Object.assign(byId('number'), {min: data.n_first, max: data.n_selected, disabled: data.n_selected <= data.n_first});
  canvas.setAttribute('aria-label', `Map of ${count(N)}`);
  const showNote = () => { byId('note').textContent = [layout().note, data.note].filter(Boolean).join(' '); };
  byId('layout').onchange = event => { state.map = Number(event.target.value); hover(-1); showNote(); draw(); };
  byId('colour').onchange = event => { state.colour = event.target.value; state.only = null; showLegend(); draw(); };
  byId('number').oninput = event => setNumber(Number(event.target.value));
  byId('knee').hidden = !data.knee;
  byId('knee').textContent = data.knee && `Suggested: ${data.knee.toLocaleString('en')}`;
  byId('knee').onclick = () => setNumber(data.knee);
  byId('lasso').onclick = () => setLasso(!state.lassoing);
  byId('closer').onclick = () => zoomBy(1.5);
  byId('farther').onclick = () => zoomBy(1/1.5);
  byId('whole').onclick = reset;
  byId('in-view').onclick = () => list(where(isInView), 'In view');
  byId('search').oninput = event => {
    const text = event.target.value.toLowerCase(), found = [];
    for (let i = 0; i < N; i++) if (text && points.name[i].toLowerCase().includes(text)) found.push(i);
    list(found, text && 'Found');
  };
  byId('part').onchange = showStrip;
  byId('copy').onclick = copy;
  byId('save').onclick = save;
  byId('more').onclick = () => { state.shown += 48; showStrip(); };
  for (const name of Object.keys(TABS)) byId(`tab-${name}`).onclick = () => setTab(name);
  showNote();
  showLegend();
  drawCurve();
  new ResizeObserver(resize).observe(stage);
  setNumber(data.n_selected);
}
start();
