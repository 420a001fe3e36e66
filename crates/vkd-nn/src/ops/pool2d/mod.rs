//! Maximum and average over windows of channels-last images.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod kernel_tests;
#[cfg(any(feature = "cuda", test))]
mod launch;
pub(crate) mod reference;

use super::window::{Window, addressable};
use super::{dense, in_native, with_dtype};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor, bail};
use cpu::Geometry;
use vkd_norm::program;

/// Kernel, stride and padding of a pool as (rows, columns).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool2dConfig {
    /// Size of the window.
    pub kernel: (usize, usize),
    /// Step of the window in pixels.
    pub stride: (usize, usize),
    /// Pixels added on each side, at most half a kernel: an average sees zeros there, a maximum nothing.
    pub padding: (usize, usize),
    /// Whether a last window may reach beyond the padding, if it starts before its end.
    pub ceil: bool,
    /// Whether an average divides by the padding's pixels as well.
    pub count_padding: bool,
}

impl Pool2dConfig {
    /// Square windows side by side, without padding.
    pub fn new(kernel: usize) -> Self {
        let square = (kernel, kernel);
        Self { kernel: square, stride: square, padding: (0, 0), ceil: false, count_padding: true }
    }

    fn geometry(&self, what: &str, xs: &Tensor) -> Result<Geometry> {
        let [batch, h, w, c] = xs.dims() else {
            bail!("{what}: expected (B, H, W, C), got {:?}", xs.dims())
        };
        let window = Window {
            kernel: self.kernel.into(),
            stride: self.stride.into(),
            padding: self.padding.into(),
            dilation: [1, 1],
        };
        if *c == 0 || self.padding.0 > self.kernel.0 / 2 || self.padding.1 > self.kernel.1 / 2 {
            bail!(
                "{what}: expected channels and a padding of at most half the kernel, got {self:?} on {:?}",
                xs.dims()
            )
        }
        let output = window.counts(what, [*h, *w], self.ceil)?;
        if *h == 0 || *w == 0 {
            bail!("{what}: expected an image of at least one pixel, got {:?}", xs.dims())
        }
        addressable(what, &[*batch, output[0], output[1], *c])?;
        let count_padding = self.count_padding;
        Ok(Geometry { batch: *batch, input: [*h, *w, *c], output, window, count_padding })
    }
}

/// Largest value of each window.
///
/// # Shapes
/// - `xs`: `(B, H, W, C)`, channels last, any strides; f32 or f64, or a half type [through f32](crate::ops)
/// - output: `(B, H', W', C)`, contiguous, with `H' = (H + 2·padding − kernel) / stride + 1`, the quotient rounded up with
///   `ceil`
///
/// # Gradient
/// Goes to the first pixel, in row order, that holds the maximum, as in PyTorch. A NaN is larger than any number.
///
/// # Errors
/// Another rank, no channels or pixels, a zero kernel or stride, a padding above half the kernel, a kernel larger than the
/// padded image, a dtype other than f64, f32, bf16 and f16.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor};
/// use vkd_nn::{Pool2dConfig, max_pool2d};
/// let xs = Tensor::arange(0f32, 16., &Device::Cpu)?.reshape((1, 4, 4, 1))?;
/// let ys = max_pool2d(&xs, Pool2dConfig::new(2))?;
/// assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [5., 7., 13., 15.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn max_pool2d(xs: &Tensor, config: Pool2dConfig) -> Result<Tensor> {
    let op = MaxPool { geometry: config.geometry("max_pool2d", xs)? };
    if program::applies(xs) {
        return xs.contiguous()?.apply_op1(op);
    }
    in_native(xs, |xs| match xs.device().is_cpu() {
        true => xs.contiguous()?.apply_op1(op),
        false => reference::max_pool2d(xs, config),
    })
}

/// Mean of each window, over its pixels inside the image or over those in the padding as well.
///
/// # Shapes
/// Those of [`max_pool2d`].
///
/// # Gradient
/// Flows to `xs`: each pixel of a window gets its share.
///
/// # Errors
/// Those of [`max_pool2d`].
pub fn avg_pool2d(xs: &Tensor, config: Pool2dConfig) -> Result<Tensor> {
    let op = AvgPool { geometry: config.geometry("avg_pool2d", xs)? };
    if program::applies(xs) {
        return xs.contiguous()?.apply_op1(op);
    }
    in_native(xs, |xs| match xs.device().is_cpu() {
        true => xs.contiguous()?.apply_op1(op),
        false => reference::avg_pool2d(xs, config),
    })
}

/// Mean over all pixels: `(B, H, W, C)` to `(B, C)`.
///
/// # Errors
/// Those of [`avg_pool2d`].
pub fn global_avg_pool2d(xs: &Tensor) -> Result<Tensor> {
    let [batch, h, w, c] = xs.dims() else {
        bail!("global_avg_pool2d: expected (B, H, W, C), got {:?}", xs.dims())
    };
    let kernel = (*h, *w);
    let config = Pool2dConfig { kernel, stride: kernel, ..Pool2dConfig::new(1) };
    if *h == 0 || *w == 0 {
        bail!("global_avg_pool2d: expected an image of at least one pixel, got {:?}", xs.dims())
    }
    avg_pool2d(xs, config)?.reshape((*batch, *c))
}

fn shape(g: &Geometry, [h, w]: [usize; 2]) -> Shape {
    Shape::from((g.batch, h, w, g.input[2]))
}

struct MaxPool {
    geometry: Geometry,
}

/// Of input, output and the output's gradient.
struct MaxPoolGrad {
    geometry: Geometry,
}

struct AvgPool {
    geometry: Geometry,
}

struct AvgPoolGrad {
    geometry: Geometry,
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (g, name) = (&self.geometry, self.name());
        let out = with_dtype!(name, s, T => cpu::max(g, dense::<T>(name, s, l)?));
        Ok((out, shape(g, g.output)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s: &CudaStorage, l: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::forward(self.name(), &self.geometry, (s, l), |pool| pool.max())
    }

    fn bwd(&self, xs: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if xs.device().is_cuda() {
            let inputs = [xs, ys, &grad];
            let dxs = cuda::backward(self.name(), &self.geometry, &inputs, |p| p.max_backward());
            return dxs.map(Some);
        }
        let op = MaxPoolGrad { geometry: self.geometry };
        Ok(Some(xs.apply_op3_no_bwd(ys, &grad, &op)?))
    }
}

impl CustomOp3 for MaxPoolGrad {
    fn name(&self) -> &'static str {
        "max_pool2d-bwd"
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
        let (g, name) = (&self.geometry, self.name());
        let out = with_dtype!(name, s1, T => {
            let xs = dense::<T>(name, s1, l1)?;
            cpu::max_grad(g, xs, dense(name, s2, l2)?, dense(name, s3, l3)?)
        });
        Ok((out, l1.shape().clone()))
    }
}

impl CustomOp1 for AvgPool {
    fn name(&self) -> &'static str {
        "avg_pool2d"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (g, name) = (&self.geometry, self.name());
        let out = with_dtype!(name, s, T => cpu::average(g, dense::<T>(name, s, l)?));
        Ok((out, shape(g, g.output)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s: &CudaStorage, l: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::forward(self.name(), &self.geometry, (s, l), |pool| pool.average())
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if grad.device().is_cuda() {
            let inputs = [&grad];
            let dxs =
                cuda::backward(self.name(), &self.geometry, &inputs, |p| p.average_backward());
            return dxs.map(Some);
        }
        let op = AvgPoolGrad { geometry: self.geometry };
        Ok(Some(grad.apply_op1_no_bwd(&op)?))
    }
}

impl CustomOp1 for AvgPoolGrad {
    fn name(&self) -> &'static str {
        "avg_pool2d-bwd"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (g, name) = (&self.geometry, self.name());
        let out = with_dtype!(name, s, T => cpu::average_grad(g, dense::<T>(name, s, l)?));
        Ok((out, shape(g, [g.input[0], g.input[1]])))
    }
}
