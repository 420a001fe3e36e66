//! Windows over images: what is gathered from them on a device, and added up in them again.

use super::Geometry;
use crate::ops::window::Window;
use candle_core::{DType, Result, Tensor, bail};
use vkd_norm::program::{Arg, Program, Size, count, suffix};

pub(super) const OP: &str = "conv2d";

/// Windows over images: what is gathered from them, or added up in them again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    /// Rows, columns and channels of an image.
    image: [usize; 3],
    /// Windows along both axes.
    places: [usize; 2],
    window: Window,
    groups: usize,
}

/// What a kernel knows of one axis, in pixels.
struct Axis {
    size: usize,
    windows: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    dilation: usize,
}

impl Axis {
    fn args(&self) -> Result<[Arg; 8]> {
        let common = gcd(self.stride, self.dilation);
        let (period, back) = (self.dilation / common, self.stride / common);
        let Self { size, windows, kernel, stride, padding, dilation } = *self;
        let all = [size, windows, kernel, stride, padding, dilation, period, back];
        let mut args = [Arg::Null; 8];
        for (arg, n) in args.iter_mut().zip(all) {
            *arg = count(OP, n)?;
        }
        Ok(args)
    }
}

/// Greatest common divisor; of zero and a number, the number.
fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Geometry {
    /// The windows over the images.
    pub(super) fn windows(&self) -> Frame {
        let [rows, cols, _] = self.output;
        Frame { image: self.input, places: [rows, cols], window: self.window, groups: self.groups }
    }

    /// The pixels of the results, by groups of channels.
    pub(super) fn pixels(&self) -> Frame {
        let [rows, cols, _] = self.output;
        let window = Window { kernel: [1; 2], stride: [1; 2], padding: [0; 2], dilation: [1; 2] };
        Frame { image: self.output, places: [rows, cols], window, groups: self.groups }
    }
}

impl Frame {
    /// Whether every window is one pixel, in their order, and every pixel has one: a transposed convolution may have more.
    fn is_pixels(&self) -> bool {
        let w = &self.window;
        let all = self.image[..2] == self.places;
        all && w.kernel == [1; 2] && w.stride == [1; 2] && w.padding == [0; 2]
    }

    /// Whether the columns are the images as they are.
    pub(super) fn is_plain(&self) -> bool {
        self.groups == 1 && self.is_pixels()
    }

    /// Groups, rows and depth of the columns of so many images.
    pub(super) fn columns(&self, images: usize) -> [usize; 3] {
        let [kh, kw] = self.window.kernel;
        let depth = kh * kw * (self.image[2] / self.groups);
        [self.groups, images * self.places[0] * self.places[1], depth]
    }

    /// Shape of so many images.
    pub(super) fn images(&self, images: usize) -> [usize; 4] {
        let [h, w, c] = self.image;
        [images, h, w, c]
    }

    fn axis(&self, axis: usize) -> Result<Axis> {
        let w = &self.window;
        let (size, padding, kernel) = (self.image[axis], w.padding[axis], w.kernel[axis]);
        let padded = size + 2 * padding;
        // The kernels add these up in 32 bits.
        if padded > i32::MAX as usize {
            bail!("{OP}: expected a padded image of less than 2^31 pixels a side on a device")
        }
        Ok(Axis {
            size,
            windows: self.places[axis],
            kernel,
            // A step beyond the image is as good as one to its end, and one tap has no distance.
            stride: w.stride[axis].min(padded),
            padding,
            dilation: if kernel == 1 { 1 } else { w.dilation[axis] },
        })
    }

    /// What kernels know of rows and of columns.
    pub(super) fn axes(&self) -> Result<Vec<Arg>> {
        let mut args = self.axis(0)?.args()?.to_vec();
        args.extend(self.axis(1)?.args()?);
        Ok(args)
    }

    /// Of images; buffer 0 has their columns.
    pub(super) fn windows(&self, images: &Tensor) -> Result<Program> {
        let (dtype, c) = (images.dtype(), self.image[2]);
        suffix(OP, dtype)?;
        let [groups, rows, depth] =
            self.columns(images.elem_count() / self.images(1).iter().product::<usize>());
        let (down, mut across) = (self.axis(0)?, self.axis(1)?);
        let (mut run, mut pixel) = (c / groups, c);
        // A row of taps side by side is one run, counted in entries, unless groups or padding cut it.
        let whole = groups == 1 && across.padding == 0 && across.dilation == 1;
        if whole {
            run = across.kernel * c;
            pixel = 1;
            across = Axis { size: across.size * c, stride: across.stride * c, kernel: 1, ..across };
        }
        // What is copied together: as many bytes as every run, and the place where it starts, is a multiple of.
        let bytes = dtype.size_in_bytes();
        let mut starts = gcd(run, images.layout().start_offset());
        if whole {
            starts = gcd(starts, gcd(across.size, across.stride));
        }
        let unit = gcd(16, starts * bytes);
        let entries = unit / bytes;
        run /= entries;
        if whole {
            across.size /= entries;
            across.stride /= entries;
        } else {
            pixel /= entries;
        }
        let mut program = Program::default();
        let columns = program.buffer(dtype, groups * rows * depth);
        let of_group = rows * depth / entries;
        let mut args = vec![Arg::Input(0), columns, count(OP, of_group)?];
        args.extend(down.args()?);
        args.extend(across.args()?);
        args.extend([count(OP, pixel)?, count(OP, run)?]);
        let Size { grid, block, shared } = Size::entries(of_group);
        let size = Size { grid: [grid[0], groups, 1], block, shared };
        program.launch(format!("conv2d_windows_{unit}"), size, &args)?;
        Ok(program)
    }

    /// The adjoint, of columns; buffer 0 has so many images. The bias is input 1.
    pub(super) fn fold(
        &self,
        dtype: DType,
        images: usize,
        bias: bool,
        relu: bool,
    ) -> Result<Program> {
        let c = self.image[2];
        let entries = self.images(images).iter().product();
        let mut program = Program::default();
        let ys = program.buffer(dtype, entries);
        let bias = if bias { Arg::Input(1) } else { Arg::Null };
        let mut args = vec![Arg::Input(0), bias, ys, count(OP, entries)?];
        let sizes = [count(OP, c)?, count(OP, c / self.groups)?];
        let kernel = if self.is_pixels() {
            args.push(count(OP, entries / c)?);
            args.extend(sizes);
            args.push(Arg::U32(u32::from(relu)));
            "conv2d_join"
        } else {
            if relu {
                bail!("{OP}: no ReLU follows windows that are added up")
            }
            args.extend(self.axes()?);
            args.extend(sizes);
            "conv2d_fold"
        };
        let kernel = format!("{kernel}_{}", suffix(OP, dtype)?);
        program.launch(kernel, Size::entries(entries), &args)?;
        Ok(program)
    }
}
