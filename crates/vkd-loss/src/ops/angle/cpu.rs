//! Kernels over all triples, one row `k = 0..B` of them at a time, in f64.

/// Distances of all pairs, and one over them: zero where there is no distance.
pub(super) struct Angles<'a> {
    distances: &'a [f64],
    inverse: Vec<f64>,
    rows: usize,
}

impl<'a> Angles<'a> {
    pub(super) fn new(distances: &'a [f64], rows: usize) -> Self {
        let invert = |d: &f64| if *d < f64::MIN_POSITIVE { 0. } else { 1. / d };
        Self { distances, inverse: distances.iter().map(invert).collect(), rows }
    }

    /// `(a² + b² − c²) / 2ab` with `a = d_ij`, `b = d_ik`, `c = d_jk` for every k, without a square.
    fn cosines(&self, i: usize, j: usize, out: &mut [f64]) {
        let (from_i, from_j) =
            (row(self.distances, i, self.rows), row(self.distances, j, self.rows));
        let inverse = row(&self.inverse, i, self.rows);
        let (a, over_a) = (from_i[j], inverse[j]);
        for (((out, b), c), over_b) in out.iter_mut().zip(from_i).zip(from_j).zip(inverse) {
            *out = 0.5 * (a * over_b + (b - c) * over_a * ((b + c) * over_b));
        }
    }
}

fn row(matrix: &[f64], i: usize, n: usize) -> &[f64] {
    &matrix[i * n..][..n]
}

/// Room for one row of triples.
struct Row {
    student: Vec<f64>,
    teacher: Vec<f64>,
}

impl Row {
    fn new(n: usize) -> Self {
        Self { student: vec![0.; n], teacher: vec![0.; n] }
    }

    /// The cosines of both.
    fn fill(&mut self, student: &Angles<'_>, teacher: &Angles<'_>, i: usize, j: usize) {
        teacher.cosines(i, j, &mut self.teacher);
        student.cosines(i, j, &mut self.student);
    }
}

/// The sum over triples divided by `divisor`, or every triple's loss where there is none.
pub(super) fn forward(
    student: &Angles<'_>,
    teacher: &Angles<'_>,
    divisor: Option<f64>,
) -> Vec<f64> {
    let n = student.rows;
    let mut row = Row::new(n);
    let (mut total, mut entries) = (0., Vec::new());
    for i in 0..n {
        for j in 0..n {
            row.fill(student, teacher, i, j);
            let losses = row.student.iter().zip(&row.teacher).map(|(s, t)| {
                let d = (s - t).abs();
                if d < 1. { 0.5 * d * d } else { d - 0.5 }
            });
            match divisor {
                Some(_) => total += losses.sum::<f64>(),
                None => entries.extend(losses),
            }
        }
    }
    match divisor {
        Some(divisor) => vec![total / divisor],
        None => entries,
    }
}

/// Gradient of the student's distances; `grad` is that of the one loss, or of every triple.
pub(super) fn backward(
    student: &Angles<'_>,
    teacher: &Angles<'_>,
    grad: &[f64],
    divisor: Option<f64>,
) -> Vec<f64> {
    let n = student.rows;
    let mut row = Row::new(n);
    let mut dd = vec![0.; n * n];
    let one = grad.first().map_or(0., |g| g / divisor.unwrap_or(1.));
    let mut slopes = vec![0.; n];
    for i in 0..n {
        let inverse = self::row(&student.inverse, i, n);
        for j in 0..n {
            row.fill(student, teacher, i, j);
            for ((slope, s), t) in slopes.iter_mut().zip(&row.student).zip(&row.teacher) {
                *slope = (s - t).clamp(-1., 1.);
            }
            match divisor {
                Some(_) => slopes.iter_mut().for_each(|slope| *slope *= one),
                None => {
                    let grads = &grad[(i * n + j) * n..][..n];
                    slopes.iter_mut().zip(grads).for_each(|(slope, g)| *slope *= g);
                }
            }
            // Of the cosine: 1/b − cos/a to a, 1/a − cos/b to b, −c/ab to c.
            let (over_a, mut own) = (inverse[j], 0.);
            for k in 0..n {
                let (slope, cosine, over_b) = (slopes[k], row.student[k], inverse[k]);
                own += slope * (over_b - cosine * over_a);
                dd[i * n + k] += slope * (over_a - cosine * over_b);
                dd[j * n + k] -= slope * student.distances[j * n + k] * over_a * over_b;
            }
            dd[i * n + j] += own;
        }
    }
    dd
}
