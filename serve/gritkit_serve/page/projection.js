// Vectors to points of the plane: principal components, which for vectors is the same as classical scaling of their
// distances. Knows nothing about the page.

/**
 * {points, explained}: [x, y] of each vector on the two directions in which they differ most, about their mean, and
 * the share of their variance that the plane shows. The sign of an axis is free: here its largest value is positive.
 */
export function project(vectors) {
  const rows = centred(vectors);
  const gram = rows.map((row) => Float64Array.from(rows, (other) => dot(row, other)));
  const variance = gram.reduce((sum, row, index) => sum + row[index], 0);
  const { values, axes } = eigen(gram);
  const order = [...values.keys()].sort((a, b) => values[b] - values[a]).slice(0, 2);
  const coordinates = order.map((index) => {
    const length = Math.sqrt(Math.max(0, values[index]));
    const largest = axes[index].reduce((best, value) => (Math.abs(value) > Math.abs(best) ? value : best), 0);
    return axes[index].map((value) => length * value * (largest < 0 ? -1 : 1));
  });
  const points = rows.map((_, index) => [0, 1].map((axis) => coordinates[axis]?.[index] ?? 0));
  const shown = order.reduce((sum, index) => sum + Math.max(0, values[index]), 0);
  return { points, explained: variance > 0 ? Math.min(1, shown / variance) : 1 };
}

/** The cosine similarity of every two vectors. */
export function cosines(vectors) {
  const lengths = vectors.map((vector) => Math.sqrt(dot(vector, vector)) || 1);
  return vectors.map((one, i) => vectors.map((other, j) => dot(one, other) / (lengths[i] * lengths[j])));
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

function centred(vectors) {
  const mean = new Float64Array(vectors[0].length);
  for (const vector of vectors) for (let i = 0; i < mean.length; i++) mean[i] += vector[i] / vectors.length;
  return vectors.map((vector) => Float64Array.from(vector, (value, i) => value - mean[i]));
}

/**
 * All eigenvalues of a symmetric matrix, and for each the unit vector that belongs to it: Jacobi's rotations, which
 * need no luck with where they start and do not mind equal values. The matrix is used up.
 */
function eigen(matrix) {
  const size = matrix.length;
  const axes = matrix.map((_, i) => Float64Array.from({ length: size }, (_, j) => Number(i === j)));
  const scale = matrix.reduce((sum, row) => sum + dot(row, row), 0);
  for (let sweep = 0; sweep < 60; sweep++) {
    let off = 0;
    for (let p = 0; p < size; p++) for (let q = p + 1; q < size; q++) off += 2 * matrix[p][q] ** 2;
    if (off <= 1e-24 * scale) break;
    for (let p = 0; p < size; p++) for (let q = p + 1; q < size; q++) rotate(matrix, axes, p, q);
  }
  return { values: matrix.map((row, i) => row[i]), axes };
}

/** One rotation of the axes p and q, by the angle that makes their entry zero. */
function rotate(matrix, axes, p, q) {
  if (matrix[p][q] === 0) return;
  const ratio = (matrix[q][q] - matrix[p][p]) / (2 * matrix[p][q]);
  const tangent = (ratio < 0 ? -1 : 1) / (Math.abs(ratio) + Math.hypot(ratio, 1));
  const cosine = 1 / Math.hypot(tangent, 1);
  const sine = tangent * cosine;
  for (const row of matrix) {
    const [a, b] = [row[p], row[q]];
    row[p] = cosine * a - sine * b;
    row[q] = sine * a + cosine * b;
  }
  for (const rows of [matrix, axes]) {
    const [first, second] = [rows[p], rows[q]];
    for (let i = 0; i < first.length; i++) {
      const [a, b] = [first[i], second[i]];
      first[i] = cosine * a - sine * b;
      second[i] = sine * a + cosine * b;
    }
  }
}
