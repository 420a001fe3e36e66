//! A convolution on a device: one product of matrices for each of its three maps, between a kernel that gathers windows and one that
//! adds them up; channels that see only themselves have kernels of their own.

use super::frame::Frame;
use super::geometry::Path;
use super::launch::{Depthwise, column_sums, relu_backward};
use super::{Geometry, shape};
use candle_core::{DType, Result, Tensor, bail};
use vkd_norm::program::{Program, Runner, accumulator, taped};

/// Bytes that the columns of a chunk of images may take. A product of them fills any device, and beside what a network keeps for
/// its backward pass they are little.
const ROOM: usize = 256 << 20;

/// Which of the ops is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Conv,
    ConvRelu,
    /// The adjoint in the images.
    Transposed,
}

impl Kind {
    fn name(self) -> &'static str {
        if self == Self::Transposed { "conv_transpose2d" } else { "conv2d" }
    }
}

/// The maps of a convolution. All tensors are dense, and the results off the tape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Products {
    geometry: Geometry,
    room: usize,
}

impl Products {
    pub(crate) fn new(geometry: Geometry) -> Self {
        Self { geometry, room: ROOM }
    }

    /// With chunks of other sizes.
    #[cfg(test)]
    pub(super) fn with_room(self, room: usize) -> Self {
        Self { room, ..self }
    }

    /// The op on the tape, of tensors that are dense and not empty. It keeps nothing: windows are gathered again backward.
    pub(crate) fn record<R: Runner + Send + Sync + 'static>(
        self,
        runner: R,
        kind: Kind,
        (xs, weight, bias): (&Tensor, &Tensor, Option<&Tensor>),
    ) -> Result<Tensor> {
        let own = bias.map(Tensor::detach);
        let ys = self.apply(&runner, kind, &xs.detach(), &weight.detach(), own.as_ref())?;
        let inputs: Vec<&Tensor> = [xs, weight].into_iter().chain(bias).collect();
        taped(kind.name(), &inputs, ys, move |inputs, ys, grad| {
            let [xs, weight, bias @ ..] = inputs else {
                bail!("{}: expected images and filters, got {}", kind.name(), inputs.len())
            };
            let grad = match kind {
                Kind::ConvRelu => {
                    let program = relu_backward(grad.dtype(), grad.elem_count())?;
                    one(&runner, &program, &[ys, grad])?.reshape(grad.shape())?
                }
                _ => grad.clone(),
            };
            let (own, filters) = (xs.detach(), weight.detach());
            let of_xs = |_: &Tensor| match kind {
                Kind::Transposed => self.apply(&runner, Kind::Conv, &grad, &filters, None),
                _ => self.apply(&runner, Kind::Transposed, &grad, &filters, None),
            };
            let of_weight = |_: &Tensor| match kind {
                Kind::Transposed => self.filter_grad(&runner, &grad, &own),
                _ => self.filter_grad(&runner, &own, &grad),
            };
            let mut grads = vec![wanted(xs, of_xs)?, wanted(weight, of_weight)?];
            for bias in bias {
                grads.push(wanted(bias, |bias| {
                    let columns = bias.elem_count();
                    let program = column_sums(grad.dtype(), grad.elem_count() / columns, columns)?;
                    one(&runner, &program, &[&grad])
                })?);
            }
            Ok(grads)
        })
    }

    /// The convolution of images, or its adjoint of results.
    fn apply(
        &self,
        runner: &dyn Runner,
        kind: Kind,
        xs: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (g, relu) = (&self.geometry, kind == Kind::ConvRelu);
        let (windows, pixels) = (g.windows(), g.pixels());
        let size = if kind == Kind::Transposed { g.input } else { g.output };
        let ys = if g.path() == Path::Depthwise {
            let depthwise = Depthwise { geometry: *g, dtype: xs.dtype() };
            let program = match kind {
                Kind::Transposed => depthwise.images(bias.is_some())?,
                _ => depthwise.forward(bias.is_some(), relu)?,
            };
            let inputs: Vec<&Tensor> = [xs, weight].into_iter().chain(bias).collect();
            one(runner, &program, &inputs)?
        } else {
            let filters = self.filters(weight)?;
            match kind {
                Kind::Transposed => {
                    self.through(runner, xs, [&pixels, &windows], &filters, bias, relu)?
                }
                _ => {
                    let filters = filters.transpose(1, 2)?;
                    self.through(runner, xs, [&windows, &pixels], &filters, bias, relu)?
                }
            }
        };
        ys.reshape(shape(g.batch, size))
    }

    /// The filters as `(groups, O / groups, kh·kw·C / groups)`: the channels of a tap side by side, as they are in an image.
    fn filters(&self, weight: &Tensor) -> Result<Tensor> {
        let (g, [channels, filters]) = (&self.geometry, self.geometry.group());
        let taps = weight.reshape((g.groups * filters, channels, g.taps()))?.transpose(1, 2)?;
        taps.contiguous()?.reshape((g.groups, filters, g.depth()))
    }

    /// First and number of the images that are worked on together.
    fn chunks(&self, frames: [&Frame; 2], dtype: DType) -> Vec<(usize, usize)> {
        let gathered = frames.iter().filter(|frame| !frame.is_plain());
        let entries = gathered.map(|frame| frame.columns(1).iter().product::<usize>()).max();
        let images = match entries {
            Some(entries) => (self.room / (entries * dtype.size_in_bytes())).max(1),
            None => self.geometry.batch,
        };
        let firsts = (0..self.geometry.batch).step_by(images.max(1));
        firsts.map(|first| (first, images.min(self.geometry.batch - first))).collect()
    }

    /// Columns of one frame, times `filters`, folded into the other.
    fn through(
        &self,
        runner: &dyn Runner,
        xs: &Tensor,
        [from, to]: [&Frame; 2],
        filters: &Tensor,
        bias: Option<&Tensor>,
        relu: bool,
    ) -> Result<Tensor> {
        let mut pieces = Vec::new();
        for (first, images) in self.chunks([from, to], xs.dtype()) {
            let columns = gathered(runner, from, &xs.narrow(0, first, images)?)?;
            let rows = runner.product(&columns, filters)?;
            // Freed before the result is made.
            drop(columns);
            let ys = if to.is_plain() && bias.is_none() && !relu {
                rows.flatten_all()?
            } else {
                let program = to.fold(rows.dtype(), images, bias.is_some(), relu)?;
                let inputs: Vec<&Tensor> = [&rows].into_iter().chain(bias).collect();
                one(runner, &program, &inputs)?
            };
            pieces.push(ys);
        }
        match pieces.as_slice() {
            [whole] => Ok(whole.clone()),
            _ => Tensor::cat(&pieces, 0),
        }
    }

    /// The adjoint in the filters, in PyTorch's order; what the chunks give is summed in f32 or wider.
    fn filter_grad(
        &self,
        runner: &dyn Runner,
        images: &Tensor,
        results: &Tensor,
    ) -> Result<Tensor> {
        let (g, dtype) = (&self.geometry, images.dtype());
        let ([channels, filters], [kh, kw]) = (g.group(), g.window.kernel);
        let shape = (g.groups * filters, channels, kh, kw);
        if g.path() == Path::Depthwise {
            let program = Depthwise { geometry: *g, dtype }.filters()?;
            let taps = one(runner, &program, &[images, results])?;
            return taps.reshape((g.taps(), filters * g.groups))?.t()?.contiguous()?.reshape(shape);
        }
        let (windows, pixels) = (g.windows(), g.pixels());
        let chunks = self.chunks([&windows, &pixels], dtype);
        let wide = if chunks.len() > 1 { accumulator(dtype) } else { dtype };
        let mut sum: Option<Tensor> = None;
        for (first, count) in chunks {
            let rows = gathered(runner, &pixels, &results.narrow(0, first, count)?)?;
            let columns = gathered(runner, &windows, &images.narrow(0, first, count)?)?;
            let part = runner.product(&rows.transpose(1, 2)?, &columns)?.to_dtype(wide)?;
            sum = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        let Some(sum) = sum else { bail!("conv2d: expected an image or more, got none") };
        let taps = sum.to_dtype(dtype)?.reshape((g.groups * filters, g.taps(), channels))?;
        taps.transpose(1, 2)?.contiguous()?.reshape(shape)
    }
}

/// The gradient of a tensor that somebody tracks.
fn wanted(input: &Tensor, grad: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Option<Tensor>> {
    input.track_op().then(|| grad(input)).transpose()
}

/// The first buffer of a program, flat.
fn one(runner: &dyn Runner, program: &Program, inputs: &[&Tensor]) -> Result<Tensor> {
    Ok(runner.run(program, inputs)?.swap_remove(0))
}

/// The columns of images: `(groups, rows, depth)`.
fn gathered(runner: &dyn Runner, frame: &Frame, images: &Tensor) -> Result<Tensor> {
    let columns = &frame.columns(images.dim(0)?)[..];
    if frame.is_plain() {
        return images.reshape(columns);
    }
    one(runner, &frame.windows(images)?, &[images])?.reshape(columns)
}
