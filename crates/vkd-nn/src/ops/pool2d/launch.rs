//! What a pool launches on a device.

use super::cpu::Geometry;
use candle_core::{DType, Result, bail};
use vkd_norm::program::{Arg, Program, Size, count, suffix};

/// A pool of images of one dtype.
#[derive(Clone, Copy)]
pub(super) struct Pool<'a> {
    pub(super) op: &'static str,
    pub(super) geometry: &'a Geometry,
    pub(super) dtype: DType,
}

impl Pool<'_> {
    fn image_entries(self) -> usize {
        self.geometry.batch * self.geometry.input.iter().product::<usize>()
    }

    fn result_entries(self) -> usize {
        let g = self.geometry;
        g.batch * g.output[0] * g.output[1] * g.input[2]
    }

    /// Pixels, windows, and size, step and padding of a window along both axes, and the channels.
    fn geometry(self) -> Result<Vec<Arg>> {
        let (g, w) = (self.geometry, &self.geometry.window);
        let mut args = Vec::with_capacity(11);
        for axis in 0..2 {
            let padded = g.input[axis] + 2 * w.padding[axis];
            // The kernels add these up in 32 bits.
            if padded > i32::MAX as usize {
                bail!("{}: expected a padded image of less than 2^31 pixels a side", self.op)
            }
            // A step beyond the image is as good as one to its end.
            let stride = w.stride[axis].min(padded);
            for n in [g.input[axis], g.output[axis], w.kernel[axis], stride, w.padding[axis]] {
                args.push(count(self.op, n)?);
            }
        }
        args.push(count(self.op, g.input[2])?);
        Ok(args)
    }

    /// One launch that writes `entries` to buffer 0, with a thread each.
    fn program(
        self,
        kernel: &str,
        inputs: usize,
        entries: usize,
        last: Option<Arg>,
    ) -> Result<Program> {
        let mut program = Program::default();
        let mut args: Vec<Arg> = (0..inputs).map(Arg::Input).collect();
        args.push(program.buffer(self.dtype, entries));
        args.push(count(self.op, entries)?);
        args.extend(self.geometry()?);
        args.extend(last);
        let kernel = format!("{kernel}_{}", suffix(self.op, self.dtype)?);
        program.launch(kernel, Size::entries(entries), &args)?;
        Ok(program)
    }

    /// Of the image; buffer 0 is the result.
    pub(super) fn max(self) -> Result<Program> {
        self.program("max_pool2d", 1, self.result_entries(), None)
    }

    /// Of image, result and the result's gradient; buffer 0 is the image's gradient.
    pub(super) fn max_backward(self) -> Result<Program> {
        self.program("max_pool2d_backward", 3, self.image_entries(), None)
    }

    fn counting(self) -> Option<Arg> {
        Some(Arg::U32(u32::from(self.geometry.count_padding)))
    }

    /// Of the image; buffer 0 is the result.
    pub(super) fn average(self) -> Result<Program> {
        self.program("avg_pool2d", 1, self.result_entries(), self.counting())
    }

    /// Of the result's gradient; buffer 0 is the image's gradient.
    pub(super) fn average_backward(self) -> Result<Program> {
        self.program("avg_pool2d_backward", 1, self.image_entries(), self.counting())
    }
}
