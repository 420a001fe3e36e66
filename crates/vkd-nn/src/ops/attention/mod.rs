//! Multi-head attention: of packed queries, keys and values, or of queries on others' keys and values.

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod kernel_tests;
#[cfg(any(feature = "cuda", test))]
mod launch;
pub(crate) mod reference;
mod softmax;

use super::{Real, dense, in_native, native, same_dtype, unsupported};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, bail,
};
use cpu::{Bias, Counts, Operands, Sizes};
use vkd_norm::dense::with_slices;

const OP: &str = "attention";

/// `softmax(Q Kᵀ / sqrt(d) + bias) V` per head (Vaswani et al., arXiv:1706.03762).
///
/// # Shapes
/// - `qkv`: `(B, N, 3·C)`, packed as timm packs it: queries, keys, values, each `heads` blocks of `d = C / heads`
/// - `bias`: `(B, heads, N, N)`, each of the first three its size or 1; or `(heads, N, N)` or `(1, N, N)` for every sample,
///   or `(B, 1, N)`, a mask of keys for each sample
/// - output: `(B, N, C)`, contiguous, heads side by side
///
/// A mask is a bias of zero and minus infinity. A row that masks every key has no softmax: NaN, as in PyTorch.
///
/// # Gradient
/// Flows to `qkv`, and to a `bias` that wants one, summed over what shares it. The backward pass makes the softmax again by
/// blocks of 128 queries, so no `N × N` matrix outlives the op: extra memory is O(N) per thread. It repeats the half of the
/// forward pass that makes the softmax. The gradient of a bias is summed in parts: up to 16 of them where all samples share
/// it, and one a head where all heads do.
///
/// # Numerics
/// The row maximum is subtracted before the exponential: finite as long as the products of queries and keys are. In f32
/// they overflow to NaN from entries of about 1e19 on. A NaN reaches the output.
///
/// # Devices
/// On a CUDA device a kernel goes by tiles of 64 queries and keys, of 32 in f64. The logarithm of each row's sum is kept for the backward
/// pass, which also starts from the output: in a half type from the rounded one. What shares a bias is summed in one order there.
///
/// # Errors
/// Another rank, `heads` zero or no divisor of `C`, a bias of another shape or dtype, a dtype other than f64, f32, bf16 and f16.
pub fn multi_head_attention(qkv: &Tensor, bias: Option<&Tensor>, heads: usize) -> Result<Tensor> {
    let sizes = packed_sizes(qkv.dims(), heads)?;
    let counts = bias.map_or(Ok([1; 3]), |bias| counts(bias.dims(), sizes))?;
    same_dtype(OP, qkv, &[("bias", bias)])?;
    #[cfg(feature = "cuda")]
    if vkd_norm::program::applies(qkv) {
        return on_device(sizes, &[qkv], bias.map(|bias| (bias, counts)));
    }
    in_native(qkv, |qkv| {
        let qkv = qkv.contiguous()?;
        if !qkv.device().is_cpu() {
            let bias = bias.map(|bias| native(bias, &qkv)).transpose()?;
            return reference::multi_head_attention(&qkv, bias.as_ref(), heads);
        }
        match bias {
            None => qkv.apply_op1(Packed { sizes, counts }),
            Some(bias) => qkv.apply_op2(&native(bias, &qkv)?, Packed { sizes, counts }),
        }
    })
}

/// As [`multi_head_attention`], of queries on keys and values that come from elsewhere.
///
/// # Shapes
/// - `queries`: `(B, N, C)`
/// - `keys_values`: `(B, M, 2·C)`: keys, then values, each `heads` blocks of `d = C / heads`
/// - `bias`: `(B, heads, N, M)`, each of the first three its size or 1; or `(heads, N, M)`, `(1, N, M)` or `(B, 1, M)`; with
///   one query and as many samples as heads three dimensions are the mask
/// - output: `(B, N, C)`, contiguous
///
/// # Gradient
/// Flows to `queries`, `keys_values` and `bias`; else as [`multi_head_attention`].
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
    let counts = bias.map_or(Ok([1; 3]), |bias| counts(bias.dims(), sizes))?;
    same_dtype(OP, queries, &[("keys and values", Some(keys_values)), ("bias", bias)])?;
    #[cfg(feature = "cuda")]
    if vkd_norm::program::applies(queries) {
        return on_device(sizes, &[queries, keys_values], bias.map(|bias| (bias, counts)));
    }
    in_native(queries, |queries| {
        let (queries, others) = (queries.contiguous()?, native(keys_values, queries)?);
        if !queries.device().is_cpu() {
            let bias = bias.map(|bias| native(bias, &queries)).transpose()?;
            return reference::cross_attention(&queries, &others, bias.as_ref(), heads);
        }
        let op = Cross { sizes, counts };
        match bias {
            None => queries.apply_op2(&others, op),
            Some(bias) => queries.apply_op3(&others, &native(bias, &queries)?, op),
        }
    })
}

/// By kernels, in the operands' own dtype.
#[cfg(feature = "cuda")]
fn on_device(
    sizes: Sizes,
    operands: &[&Tensor],
    bias: Option<(&Tensor, Counts)>,
) -> Result<Tensor> {
    let (packed, dtype) = (operands.len() == 1, operands[0].dtype());
    let counts = bias.map(|(_, counts)| counts);
    let all = operands.iter().copied().chain(bias.map(|(bias, _)| bias));
    let dense = all.map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
    let dense: Vec<&Tensor> = dense.iter().collect();
    cuda::attention(launch::Attention { sizes, counts, packed, dtype }, &dense)
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

/// What a bias of this shape tells apart.
fn counts(dims: &[usize], s: Sizes) -> Result<Counts> {
    let (one_or, n, m) = (|size: usize, d: usize| d == 1 || d == size, s.queries, s.keys);
    match *dims {
        [batch, 1, keys] if batch == s.batch && keys == m => Ok([batch, 1, 1]),
        [heads, queries, keys] if one_or(s.heads, heads) && queries == n && keys == m => {
            Ok([1, heads, queries])
        }
        [1, 1, keys] if keys == m => Ok([1; 3]),
        [batch, heads, queries, keys]
            if one_or(s.batch, batch)
                && one_or(s.heads, heads)
                && one_or(n, queries)
                && keys == m =>
        {
            Ok([batch, heads, queries])
        }
        _ => bail!(
            "{OP}: expected a bias ({b}, {h}, {n}, {m}) with 1 for what shares it, or ({h}, {n}, {m}), (1, {n}, {m}) or ({b}, 1, {m}), got {dims:?}",
            b = s.batch,
            h = s.heads
        ),
    }
}

#[derive(Clone, Copy)]
struct Packed {
    sizes: Sizes,
    counts: Counts,
}

#[derive(Clone, Copy)]
struct Cross {
    sizes: Sizes,
    counts: Counts,
}

/// Storage and layout of an input.
type Input<'a> = (&'a CpuStorage, &'a Layout);

/// The output; `others` is absent where `queries` is packed.
fn forward(
    queries: Input<'_>,
    others: Option<Input<'_>>,
    added: Option<Input<'_>>,
    (sizes, counts): (Sizes, Counts),
) -> Result<(CpuStorage, Shape)> {
    fn run<T: Real>(
        queries: Input<'_>,
        others: Option<Input<'_>>,
        added: Option<Input<'_>>,
        (sizes, counts): (Sizes, Counts),
    ) -> Result<CpuStorage> {
        let q = dense::<T>(OP, queries.0, queries.1)?;
        let kv = match others {
            Some((s, l)) => dense::<T>(OP, s, l)?,
            None => q,
        };
        let added = match added {
            Some((s, l)) => Some(Bias { values: dense::<T>(OP, s, l)?, counts }),
            None => None,
        };
        let packed = others.is_none();
        let operands = Operands { queries: q, others: kv, packed, bias: added };
        Ok(T::to_cpu_storage_owned(cpu::forward(operands, sizes)))
    }
    let out = match queries.0 {
        CpuStorage::F32(_) => run::<f32>(queries, others, added, (sizes, counts))?,
        CpuStorage::F64(_) => run::<f64>(queries, others, added, (sizes, counts))?,
        _ => return Err(unsupported(OP, queries.0)),
    };
    Ok((out, (sizes.batch, sizes.queries, sizes.width()).into()))
}

/// Gradients of queries, or of the packed three, of keys with values, and of a bias that wants one.
fn backward(
    queries: &Tensor,
    others: Option<&Tensor>,
    added: Option<&Tensor>,
    grad: &Tensor,
    at: (Sizes, Counts),
) -> Result<[Option<Tensor>; 3]> {
    fn run<T: Real>(
        queries: &Tensor,
        others: Option<&Tensor>,
        added: Option<&Tensor>,
        grad: &Tensor,
        (sizes, counts): (Sizes, Counts),
    ) -> Result<[Option<Tensor>; 3]> {
        // Where an input is absent another one stands for it, and is not read.
        let tensors = [queries, others.unwrap_or(queries), added.unwrap_or(queries), grad];
        let wanted = added.filter(|bias| bias.track_op());
        let [dq, dkv, dbias] = with_slices::<T, _, 4>(OP, tensors, |[q, kv, values, g]| {
            let bias = added.map(|_| Bias { values, counts });
            let operands = Operands { queries: q, others: kv, packed: others.is_none(), bias };
            Ok(cpu::backward(operands, g, sizes, wanted.is_some()))
        })?;
        let tensor = |values: Vec<T>, like: Option<&Tensor>| {
            let like = like.filter(|t| t.track_op());
            like.map(|t| Tensor::from_vec(values, t.shape(), t.device())).transpose()
        };
        Ok([tensor(dq, Some(queries))?, tensor(dkv, others)?, tensor(dbias, wanted)?])
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
        forward((s, l), None, None, (self.sizes, self.counts))
    }

    fn bwd(&self, qkv: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [dqkv, ..] = backward(qkv, None, None, grad, (self.sizes, self.counts))?;
        Ok(dqkv)
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
        forward((s1, l1), None, Some((s2, l2)), (self.sizes, self.counts))
    }

    fn bwd(
        &self,
        qkv: &Tensor,
        bias: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let at = (self.sizes, self.counts);
        let [dqkv, _, dbias] = backward(qkv, None, Some(bias), grad, at)?;
        Ok((dqkv, dbias))
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
        forward((s1, l1), Some((s2, l2)), None, (self.sizes, self.counts))
    }

    fn bwd(
        &self,
        queries: &Tensor,
        others: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let at = (self.sizes, self.counts);
        let [dq, dkv, _] = backward(queries, Some(others), None, grad, at)?;
        Ok((dq, dkv))
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
        forward((s1, l1), Some((s2, l2)), Some((s3, l3)), (self.sizes, self.counts))
    }

    fn bwd(
        &self,
        queries: &Tensor,
        others: &Tensor,
        bias: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let at = (self.sizes, self.counts);
        let [dq, dkv, dbias] = backward(queries, Some(others), Some(bias), grad, at)?;
        Ok((dq, dkv, dbias))
    }
}
