//! The laws of a map onto matrices with orthonormal columns, as one call.
//!
//! Invariant: a law is stated once, here, and its limit depends on the dtype alone, never on the size: with a limit
//! that grows with the size, a map that is off by one per cent would pass where it matters most.

mod laws;
mod place;

use crate::gram_residual;
use candle_core::{DType, Result, Tensor};
use place::Place;

/// What [`check_stiefel`] crosses: every shape with every dtype, scale, layout and batch.
///
/// The default is what a map defined for *every* parameter must pass. A map with a smaller domain narrows the scales or
/// turns a law off, which then is a visible line of its test.
#[derive(Clone, Debug)]
pub struct StiefelCases {
    /// Name of the op, for messages.
    pub name: String,
    /// Rows and columns `(n, k)`, `n >= k >= 1`.
    pub shapes: Vec<(usize, usize)>,
    /// Batch dimensions in front of `(n, k)`; may hold zeros. None for an op that takes single matrices only.
    pub batches: Vec<Vec<usize>>,
    /// Standard deviations of the normal parameters.
    pub scales: Vec<f64>,
    /// Float dtypes. With f64 among them, gradients are checked by differences and narrower dtypes against f64.
    pub dtypes: Vec<DType>,
    /// The op reads only what lies strictly below the diagonal: other values change no bit, and have a gradient of zero.
    pub strict_lower: bool,
    /// The op is defined for equal and nearly equal columns.
    pub repeated_columns: bool,
    /// The zero parameter gives this multiple of the first `k` columns of the identity.
    pub at_zero: Option<f64>,
    /// Standard deviations of the parameters at which gradients are checked.
    pub gradient_scales: Vec<f64>,
    /// First seed of the parameters; a failure prints the one it used.
    pub seed: u64,
}

impl StiefelCases {
    /// The default cases of the op `name`.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }
}

impl Default for StiefelCases {
    fn default() -> Self {
        Self {
            name: "op".to_owned(),
            shapes: vec![(1, 1), (5, 1), (8, 8), (65, 64), (127, 33), (257, 64)],
            batches: vec![vec![3], vec![2, 2], vec![2, 0]],
            scales: vec![1e-4, 1., 1e2, 1e4, 1e30],
            dtypes: vec![DType::F32, DType::F64],
            strict_lower: true,
            repeated_columns: true,
            at_zero: None,
            gradient_scales: vec![1e-3, 0.3, 2.],
            seed: 0,
        }
    }
}

/// Largest allowed `|QᵀQ - I|` of any size: 1e-6 in f32 and 1e-13 in f64.
///
/// In f16 and bf16 it is the rounding floor. Storing a frame that is exact moves every entry by at most the unit
/// roundoff `u`, hence a product of two unit columns by at most `2u + u²`; 1e-6 more is for the computation in f32.
pub fn stiefel_limit(dtype: DType) -> f64 {
    let floor = |u: f64| 2. * u + u * u + 1e-6;
    match dtype {
        DType::F64 => 1e-13,
        DType::F16 => floor(2f64.powi(-11)),
        DType::BF16 => floor(2f64.powi(-8)),
        _ => 1e-6,
    }
}

/// Checks one result: shape and dtype of `raw`, finite, residual within [`stiefel_limit`].
///
/// # Errors
/// The law that does not hold, with what was got and wanted.
pub fn check_frame(name: &str, q: &Tensor, raw: &Tensor) -> Result<()> {
    frame(&Place::new(name, raw), q, raw)
}

fn frame(place: &Place<'_>, q: &Tensor, raw: &Tensor) -> Result<()> {
    if q.dims() != raw.dims() || q.dtype() != raw.dtype() {
        let show = |x: &Tensor| format!("{:?} {:?}", x.dims(), x.dtype());
        return place.fail("shape and dtype", &show(q), &show(raw));
    }
    if let Some(x) = crate::to_f64(q)?.iter().find(|x| !x.is_finite()) {
        return place.fail("finite", &x.to_string(), "finite entries");
    }
    let (residual, limit) = (gram_residual(q)?, stiefel_limit(raw.dtype()));
    if !(residual <= limit) {
        return place.fail("residual", &format!("{residual:e}"), &format!("at most {limit:e}"));
    }
    Ok(())
}

/// Checks that `op`, from `(.., n, k)` to `(.., n, k)`, is a smooth map onto matrices with orthonormal columns.
///
/// For every shape and dtype of `cases`: results are finite and orthonormal, to a limit that the size does not enter, and
/// keep the lengths of vectors; memory layouts change no bit; a batch is the loop over its matrices, bit for bit; a
/// parameter that is not finite is an error; a gradient arrives and agrees with finite differences; and what the fields of
/// [`StiefelCases`] add.
///
/// # Errors
/// The first law that does not hold. The message names op, law, shape, layout, dtype, scale, seed, what was got and what
/// was wanted.
///
/// # Example
/// The Cayley map of a single column, `[2m - 1; c m]` with `m = 1 / (1 + |c|²/4)`, in plain tensor operations:
/// ```
/// use candle_core::{D, Result, Tensor, bail};
/// use vkd_testkit::{StiefelCases, check_stiefel};
///
/// fn cayley_column(raw: &Tensor) -> Result<Tensor> {
///     let n = raw.dim(D::Minus2)?;
///     let c = raw.narrow(D::Minus2, 1, n - 1)?.contiguous()?;
///     if (&c * 0.)?.sum_all()?.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()?.is_nan() {
///         bail!("cayley_column: expected a finite parameter")
///     }
///     let m = (c.sqr()?.sum_keepdim(D::Minus2)? / 4.)?.affine(1., 1.)?.recip()?;
///     Tensor::cat(&[m.affine(2., -1.)?, c.broadcast_mul(&m)?], D::Minus2)
/// }
///
/// let cases = StiefelCases {
///     shapes: vec![(2, 1), (5, 1), (64, 1)],
///     batches: vec![vec![3], vec![2, 2]],
///     scales: vec![1e-4, 1., 1e4],
///     at_zero: Some(1.),
///     ..StiefelCases::new("cayley_column")
/// };
/// check_stiefel(cayley_column, &cases)?;
///
/// // It can fail: one per cent too long, and a tape that was cut.
/// let long = check_stiefel(|raw| cayley_column(raw)? * 1.01, &cases);
/// assert!(long.is_err_and(|e| e.to_string().contains("residual")));
/// let cut = check_stiefel(|raw| Ok(cayley_column(raw)?.detach()), &cases);
/// assert!(cut.is_err_and(|e| e.to_string().contains("gradient")));
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn check_stiefel(op: impl Fn(&Tensor) -> Result<Tensor>, cases: &StiefelCases) -> Result<()> {
    for &shape in &cases.shapes {
        for &dtype in &cases.dtypes {
            let laws = laws::Laws { op: &op, cases, shape, dtype };
            laws.orthonormal()?;
            laws.zero()?;
            laws.not_finite()?;
            laws.noise()?;
            laws.batches()?;
            laws.gradient()?;
            laws.layouts()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::D;

    /// The first column, divided by its length: defined for every column but zero, reads all of it.
    fn unit(raw: &Tensor) -> Result<Tensor> {
        let raw = raw.contiguous()?;
        let wide = raw.to_dtype(if raw.dtype() == DType::F64 { DType::F64 } else { DType::F32 })?;
        if (&wide * 0.)?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?.is_nan() {
            candle_core::bail!("unit: expected a finite parameter")
        }
        let length = wide.sqr()?.sum_keepdim(D::Minus2)?.sqrt()?;
        wide.broadcast_div(&length)?.to_dtype(raw.dtype())
    }

    fn cases() -> StiefelCases {
        StiefelCases {
            shapes: vec![(3, 1), (40, 1)],
            scales: vec![1e-4, 1., 1e4],
            dtypes: vec![DType::BF16, DType::F16, DType::F32, DType::F64],
            strict_lower: false,
            gradient_scales: vec![0.5],
            ..StiefelCases::new("unit")
        }
    }

    #[test]
    fn half_precision_passes_at_its_floor() -> Result<()> {
        // Squares of 1e4 overflow f16 itself, not the f32 that this op computes in; 1e-4 is normal in f16.
        check_stiefel(unit, &cases())
    }

    #[test]
    fn every_law_has_teeth() -> Result<()> {
        type Op = Box<dyn Fn(&Tensor) -> Result<Tensor>>;
        let broken: Vec<(&str, Op)> = vec![
            ("residual", Box::new(|x| unit(x)? * 1.01)),
            ("finite", Box::new(|x| unit(x)? / 0.)),
            ("shape and dtype", Box::new(|x| unit(x)?.unsqueeze(0))),
            (
                "a parameter that is not finite",
                Box::new(|x| {
                    let bad = (x.to_dtype(DType::F64)? * 0.)?.sum_all()?.to_scalar::<f64>()?;
                    if bad.is_nan() { unit(&x.ones_like()?) } else { unit(x) }
                }),
            ),
            ("no gradient", Box::new(|x| Ok(unit(x)?.detach()))),
            (
                "gradient",
                Box::new(|x| {
                    let q = unit(x)?;
                    (&q * 1.01)? - (q.detach() * 0.01)?
                }),
            ),
            ("batch", Box::new(|x| if x.rank() > 2 { unit(&(x + 0.5)?) } else { unit(x) })),
            ("layout", Box::new(|x| if x.is_contiguous() { unit(x) } else { unit(&(x + 0.5)?) })),
        ];
        let cases = StiefelCases { dtypes: vec![DType::F64], ..cases() };
        for (law, op) in broken {
            match check_stiefel(op, &cases) {
                Ok(()) => panic!("{law}: accepted"),
                Err(e) => assert!(e.to_string().contains(law), "{law}: {e}"),
            }
        }
        // This op reads its diagonal.
        let strict = StiefelCases { strict_lower: true, ..cases.clone() };
        assert!(check_stiefel(unit, &strict).is_err_and(|e| e.to_string().contains("diagonal")));
        let zero = StiefelCases { at_zero: Some(1.), ..cases };
        assert!(check_stiefel(unit, &zero).is_err_and(|e| e.to_string().contains("zero")));
        Ok(())
    }
}
