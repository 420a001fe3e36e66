//! Multi-scale deformable attention: a weighted sum of values at positions that are learnt too.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod kernel_tests;
#[cfg(any(feature = "cuda", test))]
mod launch;
pub(crate) mod reference;

use super::{Real, dense, in_native, native, same_dtype, unsupported};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use cpu::{Geometry, Level};
use std::sync::Arc;
use vkd_norm::dense::with_slices;
use vkd_norm::program;

const OP: &str = "deformable_attention";

/// `Σ weight · value(location)` per head, over the points of all levels (Deformable DETR, arXiv:2010.04159, equation 3, without
/// its linear maps).
///
/// A value between pixels is interpolated from the four around it; beyond a map's border there are zeros. A location of 1 is
/// the full width or height of its level, so that of the pixel in row `i`, column `j` is `((j + ½) / w, (i + ½) / h)`.
///
/// # Shapes
/// - `values`: `(B, Σ h·w, heads, D)`, the levels one after the other, each row by row
/// - `levels`: height and width of each of the L levels
/// - `locations`: `(B, Q, heads, L, P, 2)`, x first
/// - `weights`: `(B, Q, heads, L, P)`, of any sum: the softmax over levels and points is the caller's
/// - output: `(B, Q, heads · D)`, contiguous, heads side by side
///
/// All of one dtype, f64, f32, bf16 or f16, with any strides.
///
/// # Gradient
/// Flows to all three. That of a location is per unit of the whole map; on a pixel's row or column, where the interpolation has
/// a kink, it is the slope towards the next one. The backward pass looks up the same values again and keeps nothing; it sums
/// each head of a sample in one order, so no bit depends on the threads.
///
/// # Numerics
/// Positions are found in f64, without a kernel in the dtype of the sums. What is outside a map is not read, so an infinite location
/// gives zero; a NaN in a location or a weight is a NaN in the output of its query and head. Half types are computed
/// [through f32](crate::ops), by a CUDA device's kernel without the copies.
///
/// # Errors
/// Operands of other shapes or dtypes, or a level without pixels: the operand is named, with what was expected.
///
/// # Devices
/// A kernel on the CPU and on a CUDA device; elsewhere it is made of tensor ops.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor};
/// // One map of 1 x 2 pixels, one head: halfway between the pixels.
/// let values = Tensor::new(&[1f32, 3.], &Device::Cpu)?.reshape((1, 2, 1, 1))?;
/// let locations = Tensor::new(&[0.5f32, 0.5], &Device::Cpu)?.reshape((1, 1, 1, 1, 1, 2))?;
/// let weights = Tensor::ones((1, 1, 1, 1, 1), values.dtype(), &Device::Cpu)?;
/// let ys = vkd_nn::deformable_attention(&values, &[(1, 2)], &locations, &weights)?;
/// assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [2.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn deformable_attention(
    values: &Tensor,
    levels: &[(usize, usize)],
    locations: &Tensor,
    weights: &Tensor,
) -> Result<Tensor> {
    let geometry = geometry(values.dims(), levels, locations.dims(), weights.dims())?;
    same_dtype(OP, values, &[("locations", Some(locations)), ("weights", Some(weights))])?;
    if program::applies(values) {
        let (locations, weights) = (locations.contiguous()?, weights.contiguous()?);
        let op = DeformableAttention { geometry: Arc::new(geometry) };
        return values.contiguous()?.apply_op3(&locations, &weights, op);
    }
    in_native(values, |values| {
        let (locations, weights) = (native(locations, values)?, native(weights, values)?);
        if !values.device().is_cpu() {
            return reference::deformable_attention(values, levels, &locations, &weights);
        }
        let op = DeformableAttention { geometry: Arc::new(geometry) };
        values.contiguous()?.apply_op3(&locations, &weights, op)
    })
}

fn geometry(
    values: &[usize],
    levels: &[(usize, usize)],
    locations: &[usize],
    weights: &[usize],
) -> Result<Geometry> {
    let mut starts = Vec::with_capacity(levels.len());
    let mut pixels = 0usize;
    for (i, &(rows, cols)) in levels.iter().enumerate() {
        starts.push(Level { start: pixels, rows, cols });
        match rows.checked_mul(cols).and_then(|n| n.checked_add(pixels)).filter(|&n| n > pixels) {
            Some(sum) => pixels = sum,
            None => bail!("{OP}: expected a level of pixels, got {rows} x {cols} as level {i}"),
        }
    }
    let [batch, count, heads, dim] = *values else {
        bail!("{OP}: expected values (B, pixels, heads, D), got {values:?}")
    };
    if count != pixels || [pixels, heads, dim].contains(&0) {
        bail!(
            "{OP}: expected values (B, {pixels}, heads, D) for the levels {levels:?}, got {values:?}"
        )
    }
    let (queries, points) = match *weights {
        [b, queries, h, l, points] if b == batch && h == heads && l == levels.len() => {
            (queries, points)
        }
        _ => bail!(
            "{OP}: expected weights ({batch}, Q, {heads}, {}, P), got {weights:?}",
            levels.len()
        ),
    };
    let wanted = [weights, &[2]].concat();
    if points == 0 || *locations != wanted[..] {
        bail!("{OP}: expected points and locations {wanted:?}, got {locations:?}")
    }
    Ok(Geometry { batch, queries, heads, dim, points, pixels, levels: starts })
}

struct DeformableAttention {
    geometry: Arc<Geometry>,
}

impl DeformableAttention {
    fn run<T: Real>(&self, inputs: [(&CpuStorage, &Layout); 3]) -> Result<CpuStorage> {
        let slice = |(storage, layout): (_, _)| dense::<T>(OP, storage, layout);
        let [values, locations, weights] = inputs;
        let (values, locations) = (slice(values)?, slice(locations)?);
        let out = cpu::forward(&self.geometry, values, locations, slice(weights)?);
        Ok(T::to_cpu_storage_owned(out))
    }

    /// Gradients of the inputs that want one.
    fn backward<T: Real>(&self, inputs: [&Tensor; 3], grad: &Tensor) -> Result<Gradients> {
        let [values, locations, weights] = inputs;
        let all = [values, locations, weights, grad];
        let [v, l, w] = with_slices::<T, _, 4>(OP, all, |[values, locations, weights, grad]| {
            Ok(cpu::backward(&self.geometry, values, locations, weights, grad))
        })?;
        let wanted = |found: Vec<T>, like: &Tensor| -> Result<Option<Tensor>> {
            like.track_op()
                .then(|| Tensor::from_vec(found, like.shape(), like.device()))
                .transpose()
        };
        Ok((wanted(v, values)?, wanted(l, locations)?, wanted(w, weights)?))
    }
}

/// Of values, locations and weights.
type Gradients = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

impl CustomOp3 for DeformableAttention {
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
        let inputs = [(s1, l1), (s2, l2), (s3, l3)];
        let out = match s1 {
            CpuStorage::F32(_) => self.run::<f32>(inputs)?,
            CpuStorage::F64(_) => self.run::<f64>(inputs)?,
            _ => return Err(unsupported(OP, s1)),
        };
        let g = &self.geometry;
        Ok((out, (g.batch, g.queries, g.heads * g.dim).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
        s3: &CudaStorage,
        l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        cuda::forward(&self.geometry, [(s1, l1), (s2, l2), (s3, l3)])
    }

    fn bwd(
        &self,
        values: &Tensor,
        locations: &Tensor,
        weights: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<Gradients> {
        let (inputs, grad) = ([values, locations, weights], grad.contiguous()?);
        #[cfg(feature = "cuda")]
        if grad.device().is_cuda() {
            return cuda::backward(&self.geometry, inputs, &grad);
        }
        match values.dtype() {
            DType::F32 => self.backward::<f32>(inputs, &grad),
            _ => self.backward::<f64>(inputs, &grad),
        }
    }
}
