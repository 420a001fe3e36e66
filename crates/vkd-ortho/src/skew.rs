//! Strict lower triangle to skew-symmetric matrix, and functions of that matrix at the cost of its rank.
//!
//! A parameter with strict lower part `L` (`n x k`) stands for `A = [[B, -Cᵀ], [C, 0]]`, `n x n` and skew, with
//! `B = L₁ - L₁ᵀ` and `C = L₂`. With an orthonormal basis `Q_c` of a space that holds the columns of `C`, and
//! `C = Q_c R`, the matrix is `A = Q̂ K Q̂ᵀ`, `Q̂ = diag(I, Q_c)`, `K = [[B, -Rᵀ], [R, 0]]`: of size `k + r`, `r <= k`.
//! `i K` is Hermitian, so every function of `K` follows from real eigenvalues and orthonormal vectors, at any scale.

use crate::linalg::{add_product, eigen, orthonormalize, product, residual, thin_qr};
use candle_core::{Result, bail};
use faer::{Mat, MatRef, c64};

/// What a function of modulus one may leave of `|QᵀQ - I|` before its columns are made orthonormal again.
const REAL_RESIDUAL: f64 = 2e-14;

/// The block `B = L₁ - L₁ᵀ`.
pub(crate) fn skew_block(lower: MatRef<'_, f64>) -> Mat<f64> {
    let k = lower.ncols();
    Mat::from_fn(k, k, |i, j| lower[(i, j)] - lower[(j, i)])
}

/// The block `C = L₂`, which may have no rows.
pub(crate) fn tall_block(lower: MatRef<'_, f64>) -> MatRef<'_, f64> {
    lower.subrows(lower.ncols(), lower.nrows() - lower.ncols())
}

/// Gradient of the parameter from those of `B` and `C`; zero on and above the diagonal.
pub(crate) fn parameter_gradient(b: MatRef<'_, f64>, c: MatRef<'_, f64>) -> Mat<f64> {
    let k = b.nrows();
    Mat::from_fn(k + c.nrows(), k, |i, j| {
        if i >= k {
            c[(i - k, j)]
        } else if i > j {
            b[(i, j)] - b[(j, i)]
        } else {
            0.
        }
    })
}

/// `K = -i U diag(λ) U*`, and the basis that turns it back into `A`.
pub(crate) struct SkewEigen {
    k: usize,
    /// Orthonormal, `(n - k) x r`; `None` stands for the identity, `r = n - k`.
    basis: Option<Mat<f64>>,
    /// Eigenvalues of `i K`.
    pub(crate) lambda: Vec<f64>,
    /// Eigenvectors of `i K`.
    pub(crate) u: Mat<c64>,
}

impl SkewEigen {
    /// Decomposes the skew matrix of a strictly lower `n x k` parameter.
    pub(crate) fn new(op: &'static str, lower: MatRef<'_, f64>) -> Result<Self> {
        let k = lower.ncols();
        // A power of two keeps squares away from overflow and changes no digit.
        let scale = power_of_two(lower.norm_max());
        let lower = Mat::from_fn(lower.nrows(), k, |i, j| lower[(i, j)] / scale);
        let c = tall_block(lower.as_ref());
        // With few rows the identity is basis enough. Otherwise Householder QR: its thin factor is orthonormal for
        // every C, rank-deficient or zero.
        let (basis, r) = if c.nrows() <= k {
            (None, c.to_owned())
        } else {
            let (q, r) = thin_qr(c);
            (Some(q), r)
        };
        let b = skew_block(lower.as_ref());
        let m = k + r.nrows();
        // Only the lower triangle is read.
        let hermitian = Mat::from_fn(m, m, |i, j| {
            let entry = match (i < k, j < k) {
                (true, true) => b[(i, j)],
                (false, true) => r[(i - k, j)],
                _ => 0.,
            };
            c64::new(0., entry)
        });
        let Some((mut lambda, u)) = eigen(hermitian.as_ref()) else {
            bail!("{op}: expected a convergent eigendecomposition, got none for size {m}")
        };
        lambda.iter_mut().for_each(|lambda| *lambda *= scale);
        Ok(Self { k, basis, lambda, u })
    }

    /// Size `k + r` of `K`.
    pub(crate) fn size(&self) -> usize {
        self.u.nrows()
    }

    /// `U` cut after row `k`.
    pub(crate) fn split(&self) -> (MatRef<'_, c64>, MatRef<'_, c64>) {
        self.u.as_ref().split_at_row(self.k)
    }

    /// Real part of `U diag(f(λ)) U* rhs`.
    pub(crate) fn apply(&self, f: impl Fn(f64) -> c64, rhs: MatRef<'_, f64>) -> Mat<f64> {
        let mut inner = self.project(rhs);
        for (i, &lambda) in self.lambda.iter().enumerate() {
            let factor = f(lambda);
            for j in 0..inner.ncols() {
                inner[(i, j)] *= factor;
            }
        }
        real_product(self.u.as_ref(), inner.as_ref())
    }

    /// First `k` columns of `f(K)`, of which `f` names the values at the eigenvalues `-iλ`.
    pub(crate) fn first_columns(&self, f: impl Fn(f64) -> c64) -> Mat<f64> {
        self.apply(f, Mat::<f64>::identity(self.size(), self.k).as_ref())
    }

    /// [`first_columns`](Self::first_columns) for an `f` of modulus one, orthonormal at every scale.
    ///
    /// The eigenvalues of a pair `±λ` agree to rounding of the largest one only. Once that reaches the digits of `f`, the
    /// matrix is unitary but no longer real, and its real part is not orthonormal. The QR factor next to it is, and
    /// is no further from `f(K)` than the eigenvalues are known.
    pub(crate) fn orthonormal_columns(&self, f: impl Fn(f64) -> c64) -> Mat<f64> {
        let columns = self.first_columns(f);
        if residual(columns.as_ref()) <= REAL_RESIDUAL {
            return columns;
        }
        orthonormalize(columns.as_ref())
    }

    /// `U* rhs`.
    pub(crate) fn project(&self, rhs: MatRef<'_, f64>) -> Mat<c64> {
        let re = product(re(self.u.as_ref()).transpose(), rhs);
        let im = product(im(self.u.as_ref()).transpose(), rhs);
        Mat::from_fn(re.nrows(), re.ncols(), |i, j| c64::new(re[(i, j)], -im[(i, j)]))
    }

    /// `Q̂ small`: from `k + r` rows to `n`.
    pub(crate) fn lift(&self, small: &Mat<f64>) -> Mat<f64> {
        let (top, bottom) = small.as_ref().split_at_row(self.k);
        let bottom = self.lift_tall(bottom);
        stack(top, bottom.as_ref())
    }

    /// `Q_c small`.
    pub(crate) fn lift_tall(&self, small: MatRef<'_, f64>) -> Mat<f64> {
        match &self.basis {
            Some(basis) => product(basis.as_ref(), small),
            None => small.to_owned(),
        }
    }

    /// `Q̂ᵀ g` and what is left of the lower rows, `(I - Q_c Q_cᵀ) g₂`.
    pub(crate) fn reduce(&self, g: MatRef<'_, f64>) -> (Mat<f64>, Mat<f64>) {
        let (g1, g2) = g.split_at_row(self.k);
        let Some(basis) = &self.basis else {
            return (g.to_owned(), Mat::zeros(g2.nrows(), g2.ncols()));
        };
        let coefficients = product(basis.transpose(), g2);
        let mut rest = g2.to_owned();
        add_product(rest.as_mut(), -1., basis.as_ref(), coefficients.as_ref());
        (stack(g1, coefficients.as_ref()), rest)
    }
}

/// One matrix above the other.
pub(crate) fn stack(top: MatRef<'_, f64>, bottom: MatRef<'_, f64>) -> Mat<f64> {
    let k = top.nrows();
    Mat::from_fn(k + bottom.nrows(), top.ncols(), |i, j| {
        if i < k { top[(i, j)] } else { bottom[(i - k, j)] }
    })
}

/// Real part of `lhs rhs`.
pub(crate) fn real_product(lhs: MatRef<'_, c64>, rhs: MatRef<'_, c64>) -> Mat<f64> {
    let mut out = product(re(lhs).as_ref(), re(rhs).as_ref());
    add_product(out.as_mut(), -1., im(lhs).as_ref(), im(rhs).as_ref());
    out
}

/// `sin(x) / x`, continued through zero.
pub(crate) fn sinc(x: f64) -> f64 {
    // At the switch the next term of the series is below 1e-18.
    if x.abs() < 1e-4 { 1. - x * x / 6. } else { x.sin() / x }
}

fn re(a: MatRef<'_, c64>) -> Mat<f64> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)].re)
}

fn im(a: MatRef<'_, c64>) -> Mat<f64> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)].im)
}

/// The power of two at or below `x`; 1 for zero.
fn power_of_two(x: f64) -> f64 {
    if x == 0. {
        return 1.;
    }
    f64::from_bits(x.to_bits() & (0x7ff << 52)).max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_two() {
        assert_eq!(power_of_two(0.), 1.);
        assert_eq!(power_of_two(5.), 4.);
        assert_eq!(power_of_two(0.3), 0.25);
        assert_eq!(power_of_two(5e-324), f64::MIN_POSITIVE);
        assert_eq!(power_of_two(f64::MAX), 2f64.powi(1023));
    }

    #[test]
    fn eigenvectors_give_back_the_matrix() -> Result<()> {
        for (n, k) in [(1, 1), (5, 1), (6, 6), (7, 5), (12, 4)] {
            let lower =
                Mat::from_fn(
                    n,
                    k,
                    |i, j| if i > j { ((i * 7 + j * 3) % 11) as f64 - 5. } else { 0. },
                );
            let eigen = SkewEigen::new("test", lower.as_ref())?;
            let columns = eigen.lift(&eigen.first_columns(|l| c64::new(0., -l)));
            let b = skew_block(lower.as_ref());
            let want = stack(b.as_ref(), tall_block(lower.as_ref()));
            assert!((columns - want).norm_max() < 1e-13, "({n}, {k})");
        }
        Ok(())
    }
}
