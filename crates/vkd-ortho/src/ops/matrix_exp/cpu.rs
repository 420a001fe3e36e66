//! Exponential and gradient from the eigenvalues of the reduced skew matrix.
//!
//! An f32 parameter of moderate norm goes through a real symmetric eigenproblem ([`super::real`]); all else, through a
//! Hermitian one, which is orthonormal at any norm.

use super::real::Real as RealForm;
use crate::linalg::{Real, add_product, product};
use crate::ops::common::{Map, Rows, row_major};
use crate::ops::device;
use crate::skew::{SkewEigen, parameter_gradient, real_product, sinc};
use candle_core::{Result, Tensor, bail};
use faer::{Mat, MatRef, c64};

pub(super) struct MatrixExp;

/// The eigenproblem that gave the frame.
pub(super) enum Form {
    Real(RealForm),
    Hermitian(SkewEigen),
}

impl Map for MatrixExp {
    const NAME: &'static str = super::NAME;
    type Kept = Form;

    fn on_device(raw: &Tensor) -> Result<Tensor> {
        device::matrix_exp(raw)
    }

    fn forward<T: Real>(raw: Rows<'_, T>) -> Result<(Vec<T>, Option<Form>)> {
        if size_of::<T>() < size_of::<f64>()
            && let Some((q, form)) = RealForm::forward(raw)
        {
            return Ok((q, Some(Form::Real(form))));
        }
        let eigen = SkewEigen::new(super::NAME, raw.strict_lower().as_ref())?;
        let q = eigen.lift(&eigen.orthonormal_columns(|lambda| phase(-lambda)));
        Ok((row_major(&q), Some(Form::Hermitian(eigen))))
    }

    fn backward<T: Real>(
        raw: Rows<'_, T>,
        grad: Rows<'_, T>,
        kept: Option<Form>,
    ) -> Result<Vec<T>> {
        let form = match kept {
            Some(form) => Some(form),
            None => Self::forward(raw)?.1,
        };
        match form {
            Some(Form::Real(form)) => Ok(form.gradient(raw, grad)),
            Some(Form::Hermitian(eigen)) => Ok(row_major(&gradient(&eigen, grad.wide().as_ref()))),
            // `forward` always names its form.
            None => bail!("{}: expected a form of the forward pass, got none", Self::NAME),
        }
    }
}

/// `e^{i angle}`.
fn phase(angle: f64) -> c64 {
    let (sin, cos) = angle.sin_cos();
    c64::new(cos, sin)
}

/// `(e^{ia} - e^{ib}) / (i(a - b))`, and its limit where `a = b`.
fn divided_difference(a: f64, b: f64) -> c64 {
    phase(0.5 * a + 0.5 * b) * sinc(0.5 * a - 0.5 * b)
}

/// `F = L(Kᵀ, Ĝ)` gives the gradient inside the span of the basis, `G₂⊥ φ₁(Kᵀ)₁₁` the part of `C` outside of it.
fn gradient(eigen: &SkewEigen, grad: MatRef<'_, f64>) -> Mat<f64> {
    let (small, rest) = eigen.reduce(grad);
    let (u1, u2) = eigen.split();

    let mut inner = product(eigen.project(small.as_ref()).as_ref(), u1);
    for (j, &b) in eigen.lambda.iter().enumerate() {
        for (i, &a) in eigen.lambda.iter().enumerate() {
            inner[(i, j)] *= divided_difference(a, b);
        }
    }
    let outer = product(eigen.u.as_ref(), inner.as_ref());
    let (outer1, outer2) = outer.as_ref().split_at_row(u1.nrows());
    let (u1_adjoint, u2_adjoint) = (u1.adjoint().to_owned(), u2.adjoint().to_owned());
    let f11 = real_product(outer1, u1_adjoint.as_ref());
    let f12 = real_product(outer1, u2_adjoint.as_ref());
    let f21 = real_product(outer2, u1_adjoint.as_ref());

    let phi = eigen.first_columns(|lambda| divided_difference(lambda, 0.));
    let phi11 = phi.as_ref().subrows(0, u1.nrows());
    let mut c_grad = eigen.lift_tall((f21 - f12.transpose()).as_ref());
    add_product(c_grad.as_mut(), 1., rest.as_ref(), phi11);
    parameter_gradient(f11.as_ref(), c_grad.as_ref())
}
