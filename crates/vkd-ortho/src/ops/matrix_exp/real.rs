//! The exponential of a skew matrix from a real symmetric eigenproblem, for results in f32.
//!
//! With `N = KᵀK`, `exp(K) = c(N) + K s(N)`, `c(x) = cos √x` and `s(x) = sin √x / √x`: a quarter of the work of the Hermitian
//! form. `N` squares the norm, so its digits end at `1e-16 ‖K‖²`; the form is refused before f32 could tell.
//! Above `n = 2k` the lower block `C` enters through its Gram matrix `V Σ² Vᵀ` alone: `K` holds an `R` with
//! `RᵀR = CᵀC` in its place, and the lower rows of the result are `C P`, `P` the top block of `φ₁(K)`, without a basis of the columns of `C`.

use crate::linalg::{
    Real as Float, add_product, cast, cholesky, eigen, gram, product, product_into, residual,
};
use crate::ops::common::Rows;
use crate::skew::sinc;
use faer::{Mat, MatMut, MatRef};
use rayon::prelude::*;

/// Largest `‖K‖²` taken here: 1e-16 of it is well below the law of f32.
const LARGEST: f64 = 4e6;

/// Singular values of `C` below this part of the largest are noise of its Gram matrix.
const NOISE: f64 = 1e-7;

/// Condition up to which a Cholesky factor of the Gram matrix serves: its square leaves eight digits of f64.
const WELL_CONDITIONED: f64 = 1e4;

/// `‖K‖` above which the products of the gradient are in f64.
const LARGE: f64 = 30.;

pub(super) struct Real {
    /// Skew, `m x m`, with `K = [[B, -Rᵀ], [R, 0]]`.
    skew: Mat<f64>,
    /// Square roots of the eigenvalues of `KᵀK`.
    angles: Vec<f64>,
    /// Eigenvectors of `KᵀK`.
    w: Mat<f64>,
    /// Absent where `R = C`.
    basis: Option<Basis>,
}

/// How the tall block `C` stands in `K`.
struct Basis {
    /// `R⁺`: `C R⁺` is a basis of the columns of `C`.
    inverse: Mat<f64>,
    /// `P`, the top `k x k` block of `φ₁(K)`.
    phi: Mat<f64>,
}

impl Real {
    fn new<T: Float>(raw: Rows<'_, T>) -> Option<Self> {
        let Rows { values, n, k } = raw;
        let wide: Vec<f64> = values[k * k..].iter().map(|x| x.to_f64()).collect();
        let c = MatRef::from_row_major_slice(&wide, n - k, k);
        let (r, inverse) = if n <= 2 * k {
            (c.to_owned(), None)
        } else {
            let (r, inverse) = root(gram(c))?;
            (r, Some(inverse))
        };
        let m = k + r.nrows();
        let below = |i: usize, j: usize| match (i < k, j < k) {
            (true, true) => values[i * k + j].to_f64(),
            (false, true) => r[(i - k, j)],
            _ => 0.,
        };
        let skew = Mat::from_fn(m, m, |i, j| match i.cmp(&j) {
            std::cmp::Ordering::Greater => below(i, j),
            std::cmp::Ordering::Less => -below(j, i),
            std::cmp::Ordering::Equal => 0.,
        });
        let squares = gram(skew.as_ref());
        if !squares.is_all_finite() {
            return None;
        }
        let (squares, w) = eigen(squares.as_ref())?;
        if squares.last().is_some_and(|x| *x > LARGEST) {
            return None;
        }
        let angles = squares.into_iter().map(|x| x.max(0.).sqrt()).collect();
        let mut form = Self { skew, angles, w, basis: None };
        if let Some(inverse) = inverse {
            // `φ₁(K) = s(N) + K t(N)`, `t(x) = (1 - cos √x) / x`.
            let t = |a: f64| 0.5 * sinc(0.5 * a) * sinc(0.5 * a);
            let phi = form.columns(k, k, sinc, t);
            form.basis = Some(Basis { inverse, phi });
        }
        Some(form)
    }

    /// First `rows` rows and `k` columns of `f(N) + K g(N)`.
    fn columns(
        &self,
        rows: usize,
        k: usize,
        f: impl Fn(f64) -> f64,
        g: impl Fn(f64) -> f64,
    ) -> Mat<f64> {
        let m = self.w.nrows();
        let scaled = |f: &dyn Fn(f64) -> f64| {
            let factors: Vec<f64> = self.angles.iter().map(|a| f(*a)).collect();
            Mat::from_fn(k, m, |i, j| self.w[(i, j)] * factors[j])
        };
        let mut out = product(self.w.as_ref().subrows(0, rows), scaled(&f).transpose());
        let inner = product(self.w.as_ref(), scaled(&g).transpose());
        add_product(out.as_mut(), 1., self.skew.as_ref().subrows(0, rows), inner.as_ref());
        out
    }

    /// The frame and what the gradient needs; `None` unless orthonormal to what f32 allows, by measurement.
    pub(super) fn forward<T: Float>(raw: Rows<'_, T>) -> Option<(Vec<T>, Self)> {
        let Rows { values, n, k } = raw;
        let form = Self::new(raw)?;
        let rows = if form.basis.is_some() { k } else { n };
        let exp = form.columns(rows, k, f64::cos, sinc);
        let mut q = vec![T::from_f64(0.); n * k];
        for (i, row) in q.chunks_exact_mut(k).take(rows).enumerate() {
            for (j, x) in row.iter_mut().enumerate() {
                *x = T::from_f64(exp[(i, j)]);
            }
        }
        if let Some(basis) = &form.basis {
            let c = MatRef::from_row_major_slice(&values[k * k..], n - k, k);
            let bottom = MatMut::from_row_major_slice_mut(&mut q[k * k..], n - k, k);
            product_into(bottom, c, cast::<f64, T>(basis.phi.as_ref()).as_ref());
        }
        let orthonormal = residual(MatRef::from_row_major_slice(&q, n, k)) <= T::RESIDUAL;
        orthonormal.then_some((q, form))
    }

    /// The adjoint of the exponential at `K`, to which the gradient is carried by the basis of the columns of `C`.
    ///
    /// Products are in `T` where `‖K‖`, by which the last of them multiplies their rounding, is small.
    pub(super) fn gradient<T: Float>(&self, raw: Rows<'_, T>, grad: Rows<'_, T>) -> Vec<T> {
        let Rows { values, n, k } = raw;
        let part = |values| MatRef::from_row_major_slice(values, n - k, k);
        let (c, g2) = (part(&values[k * k..]), part(&grad.values[k * k..]));
        let m = self.w.nrows();
        // Ĝ, the gradient in the coordinates of K.
        let coordinates = self.basis.as_ref().map(|basis| {
            let inner: Mat<f64> = cast(product(c.transpose(), g2).as_ref());
            product(basis.inverse.transpose(), inner.as_ref())
        });
        let small = Mat::from_fn(m, k, |i, j| match &coordinates {
            Some(coordinates) if i >= k => T::from_f64(coordinates[(i - k, j)]),
            _ => grad.values[i * k + j],
        });
        let k_grad: Mat<T> = match self.angles.last() {
            Some(norm) if *norm > LARGE => {
                cast(self.adjoint(cast::<T, f64>(small.as_ref()).as_ref()).as_ref())
            }
            _ => self.adjoint(small.as_ref()),
        };
        let mut out = vec![T::from_f64(0.); n * k];
        let rows = if self.basis.is_some() { k } else { n };
        for (i, row) in out.chunks_exact_mut(k).take(rows).enumerate() {
            for (j, x) in row.iter_mut().enumerate().take(i) {
                *x = k_grad[(i, j)];
            }
        }
        if let (Some(basis), Some(coordinates)) = (&self.basis, &coordinates) {
            let mut r_grad = Mat::from_fn(k, k, |i, j| k_grad[(k + i, j)].to_f64());
            add_product(r_grad.as_mut(), -1., coordinates.as_ref(), basis.phi.transpose());
            let inside: Mat<T> = cast(product(basis.inverse.as_ref(), r_grad.as_ref()).as_ref());
            let phi: Mat<T> = cast(basis.phi.as_ref());
            let mut bottom = MatMut::from_row_major_slice_mut(&mut out[k * k..], n - k, k);
            product_into(bottom.as_mut(), g2, phi.transpose());
            add_product(bottom, T::from_f64(1.), c, inside.as_ref());
        }
        out
    }

    /// Gradient with respect to the entries of the skew `K` below its diagonal, for the gradient `g` of the first `k`
    /// columns of `exp(K)`.
    ///
    /// `exp(K) = c(N) + K s(N)` and `N = -K²`, each by its divided differences in the eigenvectors of `N`. With `H` the
    /// gradient of `N` plus its transpose, `N` gives `HK - (HK)ᵀ`.
    fn adjoint<T: Float>(&self, g: MatRef<'_, T>) -> Mat<T> {
        let (m, k) = g.shape();
        let (w, skew): (Mat<T>, Mat<T>) = (cast(self.w.as_ref()), cast(self.skew.as_ref()));
        let (w, skew) = (w.as_ref(), skew.as_ref());
        let w1 = w.subrows(0, k);
        let turned = product(skew.transpose(), g);
        let inner_c = product(product(w.transpose(), g).as_ref(), w1);
        let inner_s = product(product(w.transpose(), turned.as_ref()).as_ref(), w1);
        let nodes: Vec<Node> = self.angles.iter().map(|a| Node::new(*a)).collect();
        // On and below the diagonal, column by column; the rest by symmetry.
        let columns: Vec<Vec<T>> = (0..m)
            .into_par_iter()
            .map(|j| {
                let entry = |i: usize| {
                    let (c, s) = divided_differences(&nodes[i], &nodes[j]);
                    let both = |a: &Mat<T>| a[(i, j)].to_f64() + a[(j, i)].to_f64();
                    T::from_f64(c * both(&inner_c) + s * both(&inner_s))
                };
                (j..m).map(entry).collect()
            })
            .collect();
        let inner = Mat::from_fn(m, m, |i, j| columns[i.min(j)][i.abs_diff(j)]);
        let h = product(product(w, inner.as_ref()).as_ref(), w.transpose());
        let mut out = product(h.as_ref(), skew);
        // G s(N), of which the first k rows of s(N) are enough: the rest of G is zero.
        let s1 = Mat::from_fn(k, m, |i, j| T::from_f64(w1[(i, j)].to_f64() * nodes[j].sinc));
        let s1 = product(s1.as_ref(), w.transpose());
        add_product(out.as_mut(), T::from_f64(1.), g, s1.as_ref());
        &out - out.transpose()
    }
}

/// `R` with `RᵀR` the Gram matrix, and `R⁺`: the Cholesky factor where it is well conditioned, else `Σ Vᵀ`.
fn root(gram: Mat<f64>) -> Option<(Mat<f64>, Mat<f64>)> {
    if let Some((r, inverse)) = cholesky(gram.as_ref())
        && r.norm_l2() * inverse.norm_l2() < WELL_CONDITIONED
    {
        return Some((r, inverse));
    }
    let k = gram.nrows();
    let (squares, v) = eigen(gram.as_ref())?;
    let sigma: Vec<f64> = squares.iter().map(|x| x.max(0.).sqrt()).collect();
    let noise = NOISE * sigma.iter().fold(0., |a: f64, b| a.max(*b));
    let inverse = |x: f64| if x > noise { 1. / x } else { 0. };
    let r = Mat::from_fn(k, k, |i, j| sigma[i] * v[(j, i)]);
    Some((r, Mat::from_fn(k, k, |i, j| v[(i, j)] * inverse(sigma[j]))))
}

/// What the divided differences need of one angle, so that no sine is taken for a pair.
struct Node {
    angle: f64,
    sinc: f64,
    /// Of half the angle.
    sin: f64,
    cos: f64,
}

impl Node {
    fn new(angle: f64) -> Self {
        let (sin, cos) = (0.5 * angle).sin_cos();
        Self { angle, sinc: sinc(angle), sin, cos }
    }
}

/// `(f(x) - f(y)) / (x - y)` for `c` and `s`, with `x = a²` and `y = b²`.
///
/// With `m = (a + b)/2` and `h = (a - b)/2`: `-sinc m sinc h / 2`, and `(cos m sinc h - sinc m cos h) / 2ab`.
fn divided_differences(a: &Node, b: &Node) -> (f64, f64) {
    let (mean, half) = (0.5 * (a.angle + b.angle), 0.5 * (a.angle - b.angle));
    let (x, y) = (a.angle * a.angle, b.angle * b.angle);
    let sinc_of = |angle: f64, sin: f64| {
        let square = angle * angle;
        if square < 1e-2 {
            // Here the sum of products below cancels; the next term of the series is below 1e-13.
            1. - square / 6. * (1. - square / 20. * (1. - square / 42.))
        } else {
            sin / angle
        }
    };
    let sinc_mean = sinc_of(mean, a.sin * b.cos + a.cos * b.sin);
    let sinc_half = sinc_of(half, a.sin * b.cos - a.cos * b.sin);
    let c = -0.5 * sinc_mean * sinc_half;
    let s = if x.max(y) < 1e-2 {
        // Taylor series; the next term is below 1e-14.
        -1. / 6. + (x + y) / 120. - (x * x + x * y + y * y) / 5040.
            + (x + y) * (x * x + y * y) / 362_880.
    } else if half.abs() > 0.25 * mean {
        (a.sinc - b.sinc) / (x - y)
    } else {
        let (cos_mean, cos_half) = (a.cos * b.cos - a.sin * b.sin, a.cos * b.cos + a.sin * b.sin);
        0.5 * (cos_mean * sinc_half - sinc_mean * cos_half) / (a.angle * b.angle)
    };
    (c, s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divided_differences_agree_with_the_mean_of_the_derivative() {
        // ∫ f'(x + t(y - x)) dt by Simpson's rule, with the derivatives in closed form.
        let slope = |x: f64| {
            let a = x.sqrt();
            if x < 1e-3 {
                (-0.5 * sinc(a), -1. / 6. + x / 60. - x * x / 1680.)
            } else {
                (-0.5 * sinc(a), (a.cos() - sinc(a)) / (2. * x))
            }
        };
        for (a, b) in [
            (0., 0.),
            (0., 1e-3),
            (0., 2.),
            (0.05, 0.08),
            (0.2, 0.2),
            (1., 1.3),
            (3., 3.0001),
            (5., 2.),
        ] {
            let steps = 2000;
            let (mut c, mut s) = (0., 0.);
            for i in 0..=steps {
                let weight = if i == 0 || i == steps { 1. } else { 2. + 2. * f64::from(i % 2) };
                let t = f64::from(i) / f64::from(steps);
                let at = slope(a * a + t * (b * b - a * a));
                c += weight * at.0 / (3. * f64::from(steps));
                s += weight * at.1 / (3. * f64::from(steps));
            }
            let (a, b) = (Node::new(a), Node::new(b));
            let got = divided_differences(&a, &b);
            assert!((got.0 - c).abs() < 1e-10 && (got.1 - s).abs() < 1e-10, "{got:?} {c} {s}");
            let turned = divided_differences(&b, &a);
            assert!((got.0 - turned.0).abs() < 1e-13 && (got.1 - turned.1).abs() < 1e-13);
        }
    }

    #[test]
    fn f32_gradients_stay_at_rounding_when_the_norm_grows() {
        for (n, k) in [(40, 12), (17, 9)] {
            for norm in [1., 20., 100., 900.] {
                let entry = |i: usize, j: usize| ((i * i * 31 + j * 17) as f64).sin();
                let values: Vec<f32> =
                    (0..n * k).map(|at| (norm / k as f64 * entry(at / k, at % k)) as f32).collect();
                let wide: Vec<f64> = values.iter().map(|x| f64::from(*x)).collect();
                let grad: Vec<f32> = (0..n * k).map(|at| entry(at % k, at / k) as f32).collect();
                let wide_grad: Vec<f64> = grad.iter().map(|x| f64::from(*x)).collect();
                let (narrow, wide) = (Rows { values: &values, n, k }, Rows { values: &wide, n, k });
                let (Some(a), Some(b)) = (Real::new(narrow), Real::new(wide)) else {
                    panic!("({n}, {k}) at {norm}")
                };
                let a = a.gradient(narrow, Rows { values: &grad, n, k });
                let b = b.gradient(wide, Rows { values: &wide_grad, n, k });
                let largest = b.iter().fold(0f64, |m, x| m.max(x.abs()));
                let off = a.iter().zip(&b).fold(0f64, |m, (x, y)| m.max((f64::from(*x) - y).abs()));
                assert!(off <= 3e-6 * largest, "({n}, {k}) at {norm}: {off:e} of {largest:e}");
            }
        }
    }
}
