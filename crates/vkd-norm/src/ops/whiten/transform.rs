//! The whitening matrix of a covariance, for each method, and its adjoint.

use super::factor::{SmallPivot, full, independent, pivot_floor, pivoted, small_pivot};
use super::linalg::{
    cholesky, dot, invert_lower, left_singular, mirror, product, structured, symmetric, trace,
};
use super::newton_schulz::newton_schulz;
use super::shrink::Shrunk;
use super::spectrum::Spectrum;
use crate::{Deficient, WhitenConfig, WhitenMethod};
use faer::Mat;
use faer::linalg::matmul::triangular::BlockStructure;

/// Why there is no whitening matrix, or no gradient of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Failure {
    /// A variance that is not finite.
    NotFinite { channel: usize },
    /// The rows don't span all directions, and that was refused.
    Deficient(SmallPivot),
    /// Neighbouring eigenvalues that PCA's gradient can't tell apart.
    Eigengap { index: usize, gap: f64, values: (f64, f64) },
    /// The singular values did not converge.
    NoConvergence,
}

/// A whitening matrix and what its adjoint needs.
pub(super) struct Transform {
    /// `W`, `d x d`; its rows, or rows and columns, of what is left out are zero.
    pub(super) w: Mat<f64>,
    /// Directions that are whitened.
    pub(super) rank: usize,
    form: Form,
}

enum Form {
    Zero,
    Cholesky { kept: Option<Vec<usize>> },
    Spectral(Spectrum),
    NewtonSchulz { shrunk: Mat<f64>, iterations: usize, floor: f64 },
}

/// Gradients of the shrunk covariance, and of the covariance beside it.
pub(super) struct Adjoint {
    pub(super) shrunk: Mat<f64>,
    pub(super) raw: Option<Mat<f64>>,
}

impl Transform {
    /// The whitening matrix of covariance `s` of `count` rows, which is known to be of no more than `rank`.
    pub(super) fn new(
        s: &Mat<f64>,
        shrunk: &Shrunk,
        (count, rank): (f64, usize),
        config: WhitenConfig,
    ) -> Result<Self, Failure> {
        let d = s.nrows();
        if let Some(channel) = (0..d).find(|&j| !s[(j, j)].is_finite()) {
            return Err(Failure::NotFinite { channel });
        }
        let floor = pivot_floor(count, d);
        let shrunken = shrunk.matrix(s);
        // Directions without spread are whitened too where the shrinkage lifts them over the rounding of the others.
        let carried = config.deficient == Deficient::Full
            && shrunk.eigenvalue(0.) > floor * shrunk.eigenvalue(trace(s));
        // Eigenvectors are the covariance's own; only a triangle must be of the shrunk one.
        let triangle = carried && config.method == WhitenMethod::Cholesky;
        let (spans, most) = if triangle { (&shrunken, d) } else { (s, rank) };
        // Newton-Schulz factors nothing, unless to refuse.
        let factor = match config.method {
            WhitenMethod::NewtonSchulz { .. } if config.deficient != Deficient::Refuse => None,
            _ => full(spans, floor, most),
        };
        if factor.is_none() && config.deficient == Deficient::Refuse {
            return Err(Failure::Deficient(small_pivot(spans, floor)));
        }
        if !(trace(&shrunken) > 0.) {
            return Ok(Self { w: Mat::zeros(d, d), rank: 0, form: Form::Zero });
        }
        match config.method {
            WhitenMethod::Cholesky => {
                let factor =
                    if carried { factor } else { factor.and_then(|_| cholesky(&shrunken)) };
                Ok(Self::triangular(factor, spans, &shrunken, (floor, most)))
            }
            WhitenMethod::NewtonSchulz { iterations } => {
                let t = trace(&shrunken);
                let (w, _) = newton_schulz(&shrunken, (t, floor), iterations, None);
                Ok(Self {
                    w,
                    rank: d,
                    form: Form::NewtonSchulz { shrunk: shrunken, iterations, floor },
                })
            }
            WhitenMethod::Zca | WhitenMethod::Pca => {
                let factor = factor.unwrap_or_else(|| pivoted(s, floor, most).1);
                let (vectors, singular) =
                    left_singular(&factor, carried).ok_or(Failure::NoConvergence)?;
                let mut base: Vec<f64> = singular.iter().map(|x| x * x).collect();
                base.resize(vectors.ncols(), 0.);
                let values: Vec<f64> = base.iter().map(|&x| shrunk.eigenvalue(x)).collect();
                let principal = config.method == WhitenMethod::Pca;
                let mut spectrum = Spectrum { principal, vectors, values, base };
                let w = spectrum.matrix();
                Ok(Self { w, rank: spectrum.values.len(), form: Form::Spectral(spectrum) })
            }
        }
    }

    fn triangular(
        factor: Option<Mat<f64>>,
        spans: &Mat<f64>,
        shrunken: &Mat<f64>,
        (floor, most): (f64, usize),
    ) -> Self {
        let d = shrunken.nrows();
        if let Some(factor) = factor {
            let form = Form::Cholesky { kept: None };
            return Self { w: invert_lower(&factor), rank: d, form };
        }
        let (kept, factor) = independent(spans, shrunken, floor, most);
        let inverse = invert_lower(&factor);
        let mut w = Mat::zeros(d, d);
        for (j, &column) in kept.iter().enumerate() {
            for (i, &row) in kept.iter().enumerate() {
                w[(row, column)] = inverse[(i, j)];
            }
        }
        Self { w, rank: kept.len(), form: Form::Cholesky { kept: Some(kept) } }
    }

    /// What products may take for granted of `W`.
    pub(super) fn shape(&self) -> BlockStructure {
        match self.form {
            Form::Cholesky { .. } => BlockStructure::TriangularLower,
            _ => BlockStructure::Rectangular,
        }
    }

    /// No channel is left out of a triangular `W`.
    pub(super) fn is_whole_triangle(&self) -> bool {
        matches!(self.form, Form::Cholesky { kept: None })
    }

    /// `tr(Wᵀ A W)` for a symmetric `a` and a triangular `W`.
    pub(super) fn trace_around(&self, a: &Mat<f64>) -> f64 {
        let (full, lower) = (BlockStructure::Rectangular, BlockStructure::TriangularLower);
        dot(&structured(full, (a.as_ref(), full), (self.w.as_ref(), lower)), &self.w)
    }

    /// Gradients from the gradient of `W`; of a lower triangular `W` only the lower triangle is read.
    pub(super) fn adjoint(&self, grad: &Mat<f64>) -> Result<Adjoint, Failure> {
        match &self.form {
            Form::Zero => Ok(Adjoint { shrunk: Mat::zeros(grad.nrows(), grad.ncols()), raw: None }),
            Form::Cholesky { .. } => Ok(self.triangular_adjoint(grad)),
            Form::Spectral(spectrum) => spectrum.adjoint(grad),
            Form::NewtonSchulz { shrunk, iterations, floor } => {
                // W = p(S / t) t^(-1/2) with a polynomial p, whose derivative is its own adjoint.
                let t = trace(shrunk);
                let grad = symmetric(grad);
                let (_, moved) = newton_schulz(shrunk, (t, *floor), *iterations, Some(&grad));
                let mut out = moved.unwrap_or_else(|| Mat::zeros(grad.nrows(), grad.ncols()));
                let by_trace = -(0.5 * dot(&grad, &self.w) + dot(&out, shrunk)) / t;
                for i in 0..out.nrows() {
                    out[(i, i)] += by_trace;
                }
                Ok(Adjoint { shrunk: out, raw: None })
            }
        }
    }

    /// With `H` the lower triangle of `grad Wᵀ`, its diagonal halved: `-Wᵀ (H + Hᵀ) W / 2`.
    fn triangular_adjoint(&self, grad: &Mat<f64>) -> Adjoint {
        let (full, lower) = (BlockStructure::Rectangular, BlockStructure::TriangularLower);
        let w = (self.w.as_ref(), lower);
        let transposed = (self.w.transpose(), BlockStructure::TriangularUpper);
        let mut h = structured(lower, (grad.as_ref(), lower), transposed);
        mirror(&mut h);
        let inner = structured(full, (h.as_ref(), full), w);
        let mut shrunk = structured(lower, transposed, (inner.as_ref(), full));
        mirror(&mut shrunk);
        shrunk *= faer::Scale(-0.5);
        Adjoint { shrunk, raw: None }
    }

    /// `max |W S Wᵀ - P|` for the shrunk covariance `S`, with `P` the identity on what is kept.
    pub(super) fn residual(&self, shrunken: &Mat<f64>) -> f64 {
        let covariance =
            product(product(self.w.as_ref(), shrunken.as_ref()).as_ref(), self.w.transpose());
        let d = covariance.nrows();
        let mut want = match &self.form {
            Form::Spectral(s) if !s.principal => product(s.vectors.as_ref(), s.vectors.transpose()),
            Form::Zero => Mat::zeros(d, d),
            Form::Cholesky { kept: Some(kept) } => {
                let mut p = Mat::zeros(d, d);
                kept.iter().for_each(|&i| p[(i, i)] = 1.);
                p
            }
            _ => Mat::from_fn(d, d, |i, j| f64::from(u8::from(i == j && i < self.rank))),
        };
        want -= covariance;
        let mut worst = 0f64;
        for j in 0..d {
            for x in want.col(j).iter() {
                worst = if x.is_nan() { f64::INFINITY } else { worst.max(x.abs()) };
            }
        }
        worst
    }
}
