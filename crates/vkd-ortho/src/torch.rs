//! Weights from the state of PyTorch's `torch.nn.utils.parametrizations.orthogonal`.

use crate::OrthogonalMap;
use candle_core::{D, DType, Result, Tensor, bail};
use std::fmt;

/// The map that PyTorch picks for a weight of `rows x columns` where the program names none.
///
/// A state dict does not say which map it belongs to.
///
/// ```
/// use vkd_ortho::{OrthogonalMap, torch_default_map};
/// assert_eq!(torch_default_map(8, 8), OrthogonalMap::MatrixExp);
/// assert_eq!(torch_default_map(3024, 192), OrthogonalMap::Householder);
/// ```
pub fn torch_default_map(rows: usize, columns: usize) -> OrthogonalMap {
    if rows == columns { OrthogonalMap::MatrixExp } else { OrthogonalMap::Householder }
}

/// What [`torch_weight`] found.
#[derive(Clone, Debug)]
pub struct TorchWeight {
    /// The weight as PyTorch publishes it, of the shape and dtype of `original`.
    pub weight: Tensor,
    /// Why that weight is not orthonormal, where the diagonal of a Householder state says so.
    pub fault: Option<TorchFault>,
}

/// Columns (of a wide weight: rows) that PyTorch's Householder map does not leave at length 1.
///
/// PyTorch keeps the sign of column `j` on the diagonal of `original` and multiplies by its integer part. No gradient reaches
/// it, but weight decay does: the first step moves -1 to -0.9999, the integer part is 0, and so is the column from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TorchFault {
    /// Columns that are zero: their diagonal entry lies strictly between -1 and 1.
    pub zero: usize,
    /// Columns that are longer than 1: their diagonal entry is 2 or more, or -2 or less.
    pub scaled: usize,
    /// All columns.
    pub columns: usize,
}

impl fmt::Display for TorchFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { zero, scaled, columns } = self;
        if *zero > 0 {
            write!(f, "{zero} of {columns} columns are zero (integer part of the diagonal is 0)")?;
        }
        if *zero > 0 && *scaled > 0 {
            f.write_str(", ")?;
        }
        if *scaled > 0 {
            write!(
                f,
                "{scaled} of {columns} columns are scaled (integer part of the diagonal beyond 1)"
            )?;
        }
        Ok(())
    }
}

/// The weight that PyTorch's `orthogonal` makes of its stored tensors, flaws included.
///
/// `original` is the entry `X.parametrizations.weight.original` of a state dict, `base` is `X.parametrizations.weight.0.base`;
/// without trivialisation there is none. With `n` the larger width, the weight is `base · map(original)`; a wide weight is that
/// of its transpose, transposed. The Householder map multiplies column `j` by the integer part of `original[j, j]`;
/// a [`TorchFault`] says where that is not 1 or -1.
///
/// # Shapes
/// - `original`: `(.., rows, columns)`, tall, square or wide
/// - `base`: `(.., n, n)` with `n = max(rows, columns)`
/// - weight: as `original`
///
/// # Numerics
/// Computed in f64 and rounded once to the dtype of `original`, where PyTorch rounds every step: the two agree to the rounding
/// of PyTorch's run, about 1e-6 in f32.
///
/// # Errors
/// A dtype that is no float, two dtypes, fewer than two dimensions, an empty tensor, a `base` of another shape, or a value that
/// is not finite; for Householder also a diagonal that does not fit 32 bits, for which PyTorch's result is not defined.
///
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_ortho::{OrthogonalMap, torch_weight};
/// // A fresh state: minus the identity, for every map.
/// let original = Tensor::new(&[[-1f32, 0.], [0., -1.], [0., 0.]], &Device::Cpu)?;
/// let fresh = torch_weight(OrthogonalMap::Householder, &original, None)?;
/// assert_eq!(fresh.weight.to_vec2::<f32>()?, [[1., 0.], [0., 1.], [0., 0.]]);
/// // One step of weight decay later the layer is dead.
/// let decayed = torch_weight(OrthogonalMap::Householder, &(original * 0.9999)?, None)?;
/// assert_eq!(decayed.fault.map(|f| (f.zero, f.columns)), Some((2, 2)));
/// assert_eq!(decayed.weight.sqr()?.sum_all()?.to_scalar::<f32>()?, 0.);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn torch_weight(
    map: OrthogonalMap,
    original: &Tensor,
    base: Option<&Tensor>,
) -> Result<TorchWeight> {
    let (rows, columns) = check(original, base)?;
    let raw = original.detach().to_dtype(DType::F64)?;
    // PyTorch handles a wide matrix as the transpose of a tall one.
    let raw =
        if rows < columns { raw.transpose(D::Minus2, D::Minus1)? } else { raw }.contiguous()?;
    let (mut tall, mut fault) = (map.apply(&raw)?, None);
    if map == OrthogonalMap::Householder {
        let (signs, found) = integer_diagonal(&raw)?;
        tall = tall.broadcast_mul(&signs)?;
        fault = found;
    }
    if let Some(base) = base {
        tall = base.detach().to_dtype(DType::F64)?.contiguous()?.matmul(&tall)?;
    }
    let weight = if rows < columns { tall.transpose(D::Minus2, D::Minus1)? } else { tall };
    Ok(TorchWeight { weight: weight.contiguous()?.to_dtype(original.dtype())?, fault })
}

/// Rows and columns of `original`.
fn check(original: &Tensor, base: Option<&Tensor>) -> Result<(usize, usize)> {
    if !original.dtype().is_float() {
        bail!("torch_weight: expected a float dtype, got `original` of {:?}", original.dtype())
    }
    let (lead, rows, columns) = match original.dims() {
        [lead @ .., rows, columns] if original.elem_count() > 0 => (lead, *rows, *columns),
        dims => bail!(
            "torch_weight: expected `original` (.., rows, columns) with entries, got {dims:?}"
        ),
    };
    let Some(base) = base else { return Ok((rows, columns)) };
    if base.dtype() != original.dtype() {
        bail!(
            "torch_weight: expected `base` of the dtype of `original`, {:?}, got {:?}",
            original.dtype(),
            base.dtype()
        )
    }
    let n = rows.max(columns);
    let expected = [lead, &[n, n]].concat();
    if base.dims() != expected {
        bail!(
            "torch_weight: expected `base` {expected:?} for `original` {:?}, got {:?}",
            original.dims(),
            base.dims()
        )
    }
    let sum = base.to_dtype(DType::F64)?.abs()?.sum_all()?.to_scalar::<f64>()?;
    if !sum.is_finite() {
        bail!("torch_weight: expected a finite `base`, got a sum of magnitudes of {sum}")
    }
    Ok((rows, columns))
}

/// Integer parts of the diagonals, `(.., 1, k)`, and what is wrong with them.
fn integer_diagonal(raw: &Tensor) -> Result<(Tensor, Option<TorchFault>)> {
    let dims = raw.dims();
    let (n, k) = (raw.dim(D::Minus2)?, raw.dim(D::Minus1)?);
    let mut signs = Vec::with_capacity(raw.elem_count() / n);
    for (at, matrix) in raw.flatten_all()?.to_vec1::<f64>()?.chunks_exact(n * k).enumerate() {
        for j in 0..k {
            let x = matrix[j * k + j];
            // PyTorch converts to 32 bits; beyond them, and for NaN, the result is the processor's whim.
            if !(x.abs() < 2_147_483_648.) {
                bail!(
                    "torch_weight: expected a diagonal that fits 32 bits, got {x} at matrix {at}, column {j}"
                )
            }
            signs.push(x.trunc());
        }
    }
    let fault = TorchFault {
        zero: signs.iter().filter(|s| **s == 0.).count(),
        scaled: signs.iter().filter(|s| s.abs() > 1.).count(),
        columns: signs.len(),
    };
    let shape = [&dims[..dims.len() - 2], &[1, k]].concat();
    let signs = Tensor::from_vec(signs, shape, raw.device())?;
    Ok((signs, (fault.zero + fault.scaled > 0).then_some(fault)))
}
