// What the page shows, as it lies in the page; and what follows from it: margins, orders, filters.
// All of it comes from outside, so it is only ever written as text (see elements.js).

const page = JSON.parse(document.getElementById('data').textContent);
const { models, scorers, rows, images, pictures } = page;
const ofPairs = page.kind === 'pairs';
const everyRow = rows.id.map((_, row) => row);

// The place of an image in the columns of `images`; image k of a model in a row.
const placeOf = (row, model, k) => (row * models.length + model) * page.per + k;

// How many images each model has in a row: all models have as many.
function countIn(row) {
  let count = 0;
  while (count < page.per && images.sha256[placeOf(row, 0, count)]) count += 1;
  return count;
}

const scoreOf = (scorer, place) => images.scores[scorer][place];
const sum = (values) => values.reduce((a, b) => a + b, 0);

function scoresIn(scorer, row, model) {
  const places = Array.from({ length: countIn(row) }, (_, k) => placeOf(row, model, k));
  return places.map((place) => scoreOf(scorer, place)).filter((score) => score !== null);
}

// The image of a model that a scorer likes best in a row, the first of them if several are alike.
function bestIn(scorer, row, model) {
  let best = 0;
  for (let k = 1; k < countIn(row); k += 1) {
    const [now, before] = [k, best].map((i) => scoreOf(scorer, placeOf(row, model, i)));
    if (now > before) best = k;
  }
  return best;
}

// What a row counts with: its best image or the mean of its images, as in the win rates.
function levelOf(scorer, row, model) {
  const scores = scoresIn(scorer, row, model);
  if (!scores.length) return null;
  return page.protocol === 'best' ? Math.max(...scores) : sum(scores) / scores.length;
}

// How far a is ahead of b by a scorer, in the unit of the set where it has one.
function marginOf(scorer, row, [a, b]) {
  const [x, y] = [a, b].map((model) => levelOf(scorer, row, model));
  if (x === null || y === null) return null;
  const units = page.units[page.sets[rows.set[row]]] ?? {};
  return (x - y) / (units[scorer] || 1);
}

const marginsOf = (row, contest) => scorers.map((scorer) => marginOf(scorer, row, contest));

// How strongly the scorers contradict each other. Of votes: how many are in the minority. Of
// scores: the smaller of the largest margin for a and the largest margin for b, above 0 exactly
// where some prefer a and others b.
function disagreement(row, contest) {
  const margins = marginsOf(row, contest).filter((margin) => margin !== null);
  if (ofPairs) {
    const [first, second] = [1, -1].map(
      (side) => margins.filter((margin) => margin === side).length,
    );
    return Math.min(first, second);
  }
  return margins.length ? Math.min(Math.max(...margins), -Math.min(...margins)) : -Infinity;
}

// The share of a model's images in a row that are true to the prompt; null where it is not known.
function truthIn(row, model) {
  if (!images.truth) return null;
  const known = Array.from(
    { length: countIn(row) },
    (_, k) => images.truth[placeOf(row, model, k)],
  ).filter((right) => right !== null);
  return known.length ? sum(known) / known.length : null;
}

function truthMargin(row, [a, b]) {
  const [x, y] = [truthIn(row, a), truthIn(row, b)];
  return x === null || y === null ? null : x - y;
}

// How far the label of a pair is from what the scorers say: 1 where all contradict it.
function againstLabel(row, contest) {
  const label = rows.label?.[row] ?? null;
  const margins = marginsOf(row, contest).filter((margin) => margin !== null && margin !== 0);
  if (label === null || label === 0.5 || !margins.length) return -1;
  return margins.filter((margin) => margin > 0 !== label > 0.5).length / margins.length;
}

// Orders of the rows: name -> [what is said of it, number of a row (the largest first)].
function ordersOf(contest) {
  const [a, b] = contest.map((model) => models[model].name);
  const byMargin = (sign) => (row, scorer) => {
    const margin = scorer ? marginOf(scorer, row, contest) : null;
    return margin === null ? -Infinity : sign * margin;
  };
  const byTruth = (row) => {
    const margin = truthMargin(row, contest);
    return margin === null ? -Infinity : -margin;
  };
  const found = { none: [ofPairs ? 'as in the source' : 'as drawn', () => 0] };
  if (scorers.length && !ofPairs) {
    found.ahead = [`${a} ahead of ${b}`, byMargin(1)];
    found.behind = [`${a} behind ${b}`, byMargin(-1)];
  }
  if (scorers.length > 1) found.split = ['scorers disagree', (row) => disagreement(row, contest)];
  if (ofPairs && scorers.length && rows.label.some(known)) {
    found.label = ['scorers against the label', (row) => againstLabel(row, contest)];
  }
  if (images.truth) found.truth = [`truth: ${a} behind ${b}`, byTruth];
  return found;
}

function sorted(some, number) {
  const keys = new Map(some.map((row) => [row, number(row)]));
  return [...some].sort((a, b) => {
    const [x, y] = [keys.get(a), keys.get(b)];
    return x === y ? a - b : y - x;
  });
}

// The rows of a set ('' for all) whose prompt has all of some words.
function filtered(set, words) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  return everyRow.filter((row) => {
    if (set !== '' && page.sets[rows.set[row]] !== set) return false;
    const text = rows.prompt[row].toLowerCase();
    return wanted.every((word) => text.includes(word));
  });
}

const keyOf = (row) => `${page.sets[rows.set[row]]}/${rows.id[row]}`;
const rowOfKey = new Map(everyRow.map((row) => [keyOf(row), row]));

// Where a picture lies: in this page, or in the folder beside it.
function sourceOf(place, size) {
  const name = images.sha256[place].slice(0, 16);
  const kind = images.kind[place];
  if (pictures.data) return `data:image/${kind};base64,${pictures.data[name]}`;
  const small = size === 'small' && images.small[place];
  return `${pictures.folder}/${small ? `${name}.small.webp` : `${name}.${kind}`}`;
}

// The command that draws an image again, for a POSIX shell; '' where it is not known. A prompt with
// control characters has none: nobody should paste what he cannot see.
function commandFor(row, model, k) {
  const words = models[model].command;
  // eslint-disable-next-line no-control-regex
  if (!words || /[\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]/.test(rows.prompt[row]))
    return '';
  const all = [...words, '--prompt', rows.prompt[row], '--images-per-prompt', String(k + 1)];
  return all.map(quoted).join(' ');
}

const quoted = (word) =>
  /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
