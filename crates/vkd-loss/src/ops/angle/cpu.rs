//! Kernels over all triples, one row `k = 0..B` of them at a time, in f64.

/// Inner products and one over distances, `rows x rows` each.
pub(super) struct Angles<'a> {
    pub(super) gram: &'a [f64],
    pub(super) inverse: &'a [f64],
    pub(super) rows: usize,
}

impl Angles<'_> {
    /// `⟨x_j − x_i, x_k − x_i⟩` for every k.
    fn products(&self, i: usize, j: usize, out: &mut [f64]) {
        let (at_i, at_j) = (row(self.gram, i, self.rows), row(self.gram, j, self.rows));
        let own = at_i[i] - at_i[j];
        for ((out, a), b) in out.iter_mut().zip(at_j).zip(at_i) {
            *out = a - b + own;
        }
    }

    /// Turns [`products`](Self::products) into cosines.
    fn cosines(&self, i: usize, j: usize, products: &[f64], out: &mut [f64]) {
        let inverse = row(self.inverse, i, self.rows);
        for ((out, p), b) in out.iter_mut().zip(products).zip(inverse) {
            *out = p * inverse[j] * b;
        }
    }
}

fn row(matrix: &[f64], i: usize, n: usize) -> &[f64] {
    &matrix[i * n..][..n]
}

/// Room for one row of triples.
struct Row {
    products: Vec<f64>,
    student: Vec<f64>,
    teacher: Vec<f64>,
}

impl Row {
    fn new(n: usize) -> Self {
        Self { products: vec![0.; n], student: vec![0.; n], teacher: vec![0.; n] }
    }

    /// The cosines of both, and the student's products.
    fn fill(&mut self, student: &Angles<'_>, teacher: &Angles<'_>, i: usize, j: usize) {
        teacher.products(i, j, &mut self.products);
        teacher.cosines(i, j, &self.products, &mut self.teacher);
        student.products(i, j, &mut self.products);
        student.cosines(i, j, &self.products, &mut self.student);
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

/// Gradients of the student's inner products and inverse distances; `grad` is that of the one loss, or of every triple.
pub(super) fn backward(
    student: &Angles<'_>,
    teacher: &Angles<'_>,
    grad: &[f64],
    divisor: Option<f64>,
) -> (Vec<f64>, Vec<f64>) {
    let n = student.rows;
    let mut row = Row::new(n);
    let (mut dg, mut di) = (vec![0.; n * n], vec![0.; n * n]);
    let one = grad.first().map_or(0., |g| g / divisor.unwrap_or(1.));
    let mut slopes = vec![0.; n];
    for i in 0..n {
        let inverse = self::row(student.inverse, i, n);
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
            // cosine = product · inverse_ij · inverse_ik, product = G_jk − G_ij − G_ik + G_ii.
            let (mut own, mut all) = (0., 0.);
            let first = inverse[j];
            for k in 0..n {
                let through = slopes[k] * row.products[k];
                own += through * inverse[k];
                di[i * n + k] += through * first;
                // The product's gradient, kept for the second loop.
                slopes[k] *= first * inverse[k];
                all += slopes[k];
            }
            di[i * n + j] += own;
            dg[j * n..][..n].iter_mut().zip(&slopes).for_each(|(d, w)| *d += w);
            dg[i * n..][..n].iter_mut().zip(&slopes).for_each(|(d, w)| *d -= w);
            dg[i * n + j] -= all;
            dg[i * n + i] += all;
        }
    }
    (dg, di)
}
