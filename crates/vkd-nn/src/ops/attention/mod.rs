//! Multi-head attention: of packed queries, keys and values, or of queries on others' keys and values.

pub(crate) mod cpu;
pub(crate) mod reference;
mod softmax;

use super::{Real, dense, unsupported};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, bail,
};
use cpu::{Bias, Lead, Operands, Sizes};
use vkd_norm::dense::with_slices;

const OP: &str = "attention";

/// `softmax(Q Kᵀ / sqrt(d) + bias) V` per head (Vaswani et al., arXiv:1706.03762).
///
/// # Shapes
/// - `qkv`: `(B, N, 3·C)`, packed as timm packs it: queries, keys, values, each `heads` blocks of `d = C / heads`
/// - `bias`: `(heads, N, N)` or `(1, N, N)` for every sample, or `(B, 1, N)`, a mask of keys for each sample
/// - output: `(B, N, C)`, contiguous, heads side by side
///
/// A mask is a bias of zero and minus infinity. A row that masks every key has no softmax: NaN, as in PyTorch.
///
/// # Gradient
/// Flows to `qkv`; a `bias` that wants one is refused. The backward pass makes the softmax again by blocks of 128 queries,
/// so no `N × N` matrix outlives the op: extra memory is O(N) per thread. It repeats the half of the forward pass that
/// makes the softmax.
///
/// # Numerics
/// The row maximum is subtracted before the exponential: finite as long as the products of queries and keys are. In f32
/// they overflow to NaN from entries of about 1e19 on. A NaN reaches the output.
///
/// # Errors
/// Another rank, `heads` zero or no divisor of `C`, a bias of another shape or dtype or with a gradient, a dtype other
/// than f32 and f64.
pub fn multi_head_attention(qkv: &Tensor, bias: Option<&Tensor>, heads: usize) -> Result<Tensor> {
    let sizes = packed_sizes(qkv.dims(), heads)?;
    let qkv = qkv.contiguous()?;
    match bias {
        None => qkv.apply_op1(Packed { sizes, lead: Lead::One }),
        Some(bias) => {
            let lead = lead(bias, qkv.dtype(), sizes)?;
            qkv.apply_op2(&bias.contiguous()?, Packed { sizes, lead })
        }
    }
}

/// As [`multi_head_attention`], of queries on keys and values that come from elsewhere.
///
/// # Shapes
/// - `queries`: `(B, N, C)`
/// - `keys_values`: `(B, M, 2·C)`: keys, then values, each `heads` blocks of `d = C / heads`
/// - `bias`: `(heads, N, M)`, `(1, N, M)` or `(B, 1, M)`; with one query and as many samples as heads it is the mask
/// - output: `(B, N, C)`, contiguous
///
/// # Gradient
/// Flows to `queries` and `keys_values`; else as [`multi_head_attention`].
///
/// # Errors
/// Those of [`multi_head_attention`].
pub fn cross_attention(
    queries: &Tensor,
    keys_values: &Tensor,
    bias: Option<&Tensor>,
    heads: usize,
) -> Result<Tensor> {
    let sizes = cross_sizes(queries.dims(), keys_values.dims(), heads)?;
    if queries.dtype() != keys_values.dtype() {
        bail!(
            "{OP}: expected keys and values of dtype {:?}, got {:?}",
            queries.dtype(),
            keys_values.dtype()
        )
    }
    let (queries, others) = (queries.contiguous()?, keys_values.contiguous()?);
    match bias {
        None => queries.apply_op2(&others, Cross { sizes, lead: Lead::One }),
        Some(bias) => {
            let lead = lead(bias, queries.dtype(), sizes)?;
            queries.apply_op3(&others, &bias.contiguous()?, Cross { sizes, lead })
        }
    }
}

fn packed_sizes(dims: &[usize], heads: usize) -> Result<Sizes> {
    match dims {
        [batch, tokens, packed]
            if heads > 0
                && *packed > 0
                && packed.is_multiple_of(3)
                && (packed / 3).is_multiple_of(heads) =>
        {
            let dim = packed / 3 / heads;
            Ok(Sizes { batch: *batch, queries: *tokens, keys: *tokens, heads, dim })
        }
        dims => {
            bail!("{OP}: expected (B, N, 3·C) with C divisible by {heads} heads, got {dims:?}")
        }
    }
}

fn cross_sizes(queries: &[usize], others: &[usize], heads: usize) -> Result<Sizes> {
    match (queries, others) {
        ([batch, queries, width], [same, keys, double])
            if heads > 0
                && batch == same
                && *width > 0
                && width.checked_mul(2) == Some(*double)
                && width.is_multiple_of(heads) =>
        {
            let dim = width / heads;
            Ok(Sizes { batch: *batch, queries: *queries, keys: *keys, heads, dim })
        }
        _ => bail!(
            "{OP}: expected (B, N, C) and (B, M, 2·C) with C divisible by {heads} heads, got {queries:?} and {others:?}"
        ),
    }
}

/// What a bias of this shape stands for.
fn lead(bias: &Tensor, dtype: DType, s: Sizes) -> Result<Lead> {
    if bias.dtype() != dtype {
        bail!("{OP}: expected a bias of dtype {dtype:?}, got {:?}", bias.dtype())
    }
    if bias.track_op() {
        bail!("{OP}: expected a bias without a gradient, got a tracked one; detach it")
    }
    match *bias.dims() {
        [1, 1, keys] if keys == s.keys => Ok(Lead::One),
        [batch, 1, keys] if batch == s.batch && keys == s.keys => Ok(Lead::Batch),
        [1, queries, keys] if (queries, keys) == (s.queries, s.keys) => Ok(Lead::One),
        [heads, queries, keys] if (heads, queries, keys) == (s.heads, s.queries, s.keys) => {
            Ok(Lead::Heads)
        }
        _ => bail!(
            "{OP}: expected a bias ({}, {n}, {m}), (1, {n}, {m}) or ({}, 1, {m}), got {:?}",
            s.heads,
            s.batch,
            bias.dims(),
            n = s.queries,
            m = s.keys
        ),
    }
}

/// Rows of a bias and what its first dimension counts.
fn bias<'a, T>(values: &'a [T], lead: Lead, s: Sizes) -> Bias<'a, T> {
    let matrices = match lead {
        Lead::One => 1,
        Lead::Heads => s.heads,
        Lead::Batch => s.batch,
    };
    Bias { values, lead, rows: values.len() / (matrices * s.keys).max(1) }
}

#[derive(Clone, Copy)]
struct Packed {
    sizes: Sizes,
    lead: Lead,
}

#[derive(Clone, Copy)]
struct Cross {
    sizes: Sizes,
    lead: Lead,
}

/// Storage and layout of an input.
type Input<'a> = (&'a CpuStorage, &'a Layout);

/// The output; `others` is absent where `queries` is packed.
fn forward(
    queries: Input<'_>,
    others: Option<Input<'_>>,
    added: Option<Input<'_>>,
    (sizes, lead): (Sizes, Lead),
) -> Result<(CpuStorage, Shape)> {
    fn run<T: Real>(
        queries: Input<'_>,
        others: Option<Input<'_>>,
        added: Option<Input<'_>>,
        (sizes, lead): (Sizes, Lead),
    ) -> Result<CpuStorage> {
        let q = dense::<T>(OP, queries.0, queries.1)?;
        let kv = match others {
            Some((s, l)) => dense::<T>(OP, s, l)?,
            None => q,
        };
        let added = match added {
            Some((s, l)) => Some(bias(dense::<T>(OP, s, l)?, lead, sizes)),
            None => None,
        };
        let packed = others.is_none();
        let operands = Operands { queries: q, others: kv, packed, bias: added };
        Ok(T::to_cpu_storage_owned(cpu::forward(operands, sizes)))
    }
    let out = match queries.0 {
        CpuStorage::F32(_) => run::<f32>(queries, others, added, (sizes, lead))?,
        CpuStorage::F64(_) => run::<f64>(queries, others, added, (sizes, lead))?,
        _ => return Err(unsupported(OP, queries.0)),
    };
    Ok((out, (sizes.batch, sizes.queries, sizes.width()).into()))
}

/// Gradients of queries and of keys with values, or of the packed three.
fn backward(
    queries: &Tensor,
    others: Option<&Tensor>,
    added: Option<&Tensor>,
    grad: &Tensor,
    at: (Sizes, Lead),
) -> Result<(Tensor, Option<Tensor>)> {
    fn run<T: Real>(
        queries: &Tensor,
        others: Option<&Tensor>,
        added: Option<&Tensor>,
        grad: &Tensor,
        (sizes, lead): (Sizes, Lead),
    ) -> Result<(Tensor, Option<Tensor>)> {
        // Where an input is absent another one stands for it, and is not read.
        let tensors = [queries, others.unwrap_or(queries), added.unwrap_or(queries), grad];
        let (dq, dkv) = with_slices::<T, _, 4>(OP, tensors, |[q, kv, b, g]| {
            let added = added.map(|_| bias(b, lead, sizes));
            let packed = others.is_none();
            let operands = Operands { queries: q, others: kv, packed, bias: added };
            Ok(cpu::backward(operands, g, sizes))
        })?;
        let device = queries.device();
        let dkv = others.map(|kv| Tensor::from_vec(dkv, kv.shape(), device)).transpose()?;
        Ok((Tensor::from_vec(dq, queries.shape(), device)?, dkv))
    }
    let grad = grad.contiguous()?;
    match queries.dtype() {
        DType::F32 => run::<f32>(queries, others, added, &grad, at),
        _ => run::<f64>(queries, others, added, &grad, at),
    }
}

impl CustomOp1 for Packed {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        forward((s, l), None, None, (self.sizes, self.lead))
    }

    fn bwd(&self, qkv: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(backward(qkv, None, None, grad, (self.sizes, self.lead))?.0))
    }
}

impl CustomOp2 for Packed {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        forward((s1, l1), None, Some((s2, l2)), (self.sizes, self.lead))
    }

    fn bwd(
        &self,
        qkv: &Tensor,
        bias: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dqkv = backward(qkv, None, Some(bias), grad, (self.sizes, self.lead))?.0;
        Ok((Some(dqkv), None))
    }
}

impl CustomOp2 for Cross {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        forward((s1, l1), Some((s2, l2)), None, (self.sizes, self.lead))
    }

    fn bwd(
        &self,
        queries: &Tensor,
        others: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dq, dkv) = backward(queries, Some(others), None, grad, (self.sizes, self.lead))?;
        Ok((queries.track_op().then_some(dq), dkv.filter(|_| others.track_op())))
    }
}

impl CustomOp3 for Cross {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        forward((s1, l1), Some((s2, l2)), Some((s3, l3)), (self.sizes, self.lead))
    }

    fn bwd(
        &self,
        queries: &Tensor,
        others: &Tensor,
        bias: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dq, dkv) = backward(queries, Some(others), Some(bias), grad, (self.sizes, self.lead))?;
        Ok((queries.track_op().then_some(dq), dkv.filter(|_| others.track_op()), None))
    }
}
