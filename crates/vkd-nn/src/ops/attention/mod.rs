//! Multi-head self-attention on packed queries, keys and values.

mod cpu;
pub(crate) mod reference;

use super::{dense, unsupported};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail,
};
use cpu::Sizes;

/// `softmax(Q Kᵀ / sqrt(d)) V` per head (Vaswani et al., arXiv:1706.03762).
///
/// # Shapes
/// - `qkv`: `(B, N, 3·C)`, packed as timm packs it: queries, keys, values, each `heads` blocks of `d = C / heads`
/// - output: `(B, N, C)`, contiguous, heads side by side
///
/// # Gradient
/// Flows to `qkv`. The backward pass recomputes the softmax head by head, so no `N × N` matrix outlives the op: extra
/// memory is O(N·d) per thread. It repeats the half of the forward pass that makes the softmax.
///
/// # Numerics
/// The row maximum is subtracted before the exponential: finite as long as the products of queries and keys are. In f32
/// they overflow to NaN from entries of about 1e19 on. A NaN reaches the output.
///
/// # Errors
/// Another rank, `heads` zero or no divisor of `C`, a dtype other than f32 and f64.
pub fn multi_head_attention(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    sizes(qkv.dims(), heads)?;
    qkv.contiguous()?.apply_op1(Attention { heads })
}

fn sizes(dims: &[usize], heads: usize) -> Result<Sizes> {
    match dims {
        [batch, tokens, packed]
            if heads > 0
                && *packed > 0
                && packed.is_multiple_of(3)
                && (packed / 3).is_multiple_of(heads) =>
        {
            Ok(Sizes { batch: *batch, tokens: *tokens, heads, dim: packed / 3 / heads })
        }
        dims => {
            bail!("attention: expected (B, N, 3·C) with C divisible by {heads} heads, got {dims:?}")
        }
    }
}

struct Attention {
    heads: usize,
}

struct Backward {
    heads: usize,
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let sizes = sizes(l.dims(), self.heads)?;
        let out = match s {
            CpuStorage::F32(_) => {
                f32::to_cpu_storage_owned(cpu::forward(dense(self.name(), s, l)?, sizes))
            }
            CpuStorage::F64(_) => {
                f64::to_cpu_storage_owned(cpu::forward::<f64>(dense(self.name(), s, l)?, sizes))
            }
            _ => return Err(unsupported(self.name(), s)),
        };
        Ok((out, (sizes.batch, sizes.tokens, sizes.heads * sizes.dim).into()))
    }

    fn bwd(&self, qkv: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let op = Backward { heads: self.heads };
        Ok(Some(qkv.contiguous()?.apply_op2_no_bwd(&grad.contiguous()?, &op)?))
    }
}

impl CustomOp2 for Backward {
    fn name(&self) -> &'static str {
        "attention-bwd"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = sizes(l1.dims(), self.heads)?;
        let name = self.name();
        let out = match s1 {
            CpuStorage::F32(_) => f32::to_cpu_storage_owned(cpu::backward(
                dense(name, s1, l1)?,
                dense(name, s2, l2)?,
                sizes,
            )),
            CpuStorage::F64(_) => f64::to_cpu_storage_owned(cpu::backward::<f64>(
                dense(name, s1, l1)?,
                dense(name, s2, l2)?,
                sizes,
            )),
            _ => return Err(unsupported(name, s1)),
        };
        Ok((out, l1.shape().clone()))
    }
}
