//! What a convolution launches on a device beside gathering windows and adding them up: sums, a ReLU, and channels by themselves.

use super::Geometry;
use super::frame::OP;
use candle_core::{DType, Result};
use vkd_norm::program::{Arg, Program, Size, accumulator, chunks, count, suffix};

/// Of a result and its gradient; buffer 0 is what a ReLU lets through.
pub(super) fn relu_backward(dtype: DType, entries: usize) -> Result<Program> {
    let mut program = Program::default();
    let grad = program.buffer(dtype, entries);
    let args = [Arg::Input(0), Arg::Input(1), grad, count(OP, entries)?];
    let kernel = format!("conv2d_relu_backward_{}", suffix(OP, dtype)?);
    program.launch(kernel, Size::entries(entries), &args)?;
    Ok(program)
}

/// Buffers for sums over `rows` in parts, and the launch that joins these: the parts, their number and the rows of one.
struct Sums {
    program: Program,
    parts: Arg,
    chunks: usize,
    per_chunk: Arg,
    join: (String, Size, [Arg; 4]),
}

impl Sums {
    fn new(dtype: DType, rows: usize, width: usize) -> Result<Self> {
        let mut program = Program::default();
        let sums = program.buffer(dtype, width);
        let (chunks, per_chunk) = chunks(rows);
        let parts = program.buffer(accumulator(dtype), chunks * width);
        let args = [parts, sums, count(OP, chunks)?, count(OP, width)?];
        let join = (format!("conv2d_sums_join_{}", suffix(OP, dtype)?), Size::entries(width), args);
        Ok(Self { program, parts, chunks, per_chunk: count(OP, per_chunk)?, join })
    }

    fn joined(self, kernel: String, size: Size, args: &[Arg]) -> Result<Program> {
        let Self { mut program, join: (join, join_size, join_args), .. } = self;
        program.launch(kernel, size, args)?;
        program.launch(join, join_size, &join_args)?;
        Ok(program)
    }
}

/// Of rows; buffer 0 has the sums of their columns.
pub(super) fn column_sums(dtype: DType, rows: usize, columns: usize) -> Result<Program> {
    let sums = Sums::new(dtype, rows, columns)?;
    let args = [Arg::Input(0), sums.parts, count(OP, rows)?, count(OP, columns)?, sums.per_chunk];
    let size = Size::columns(columns, sums.chunks);
    sums.joined(format!("conv2d_sums_{}", suffix(OP, dtype)?), size, &args)
}

/// A convolution of channels that see only themselves.
#[derive(Clone, Copy)]
pub(super) struct Depthwise {
    pub(super) geometry: Geometry,
    pub(super) dtype: DType,
}

impl Depthwise {
    fn program(
        self,
        kernel: &str,
        size: [usize; 3],
        bias: bool,
        last: Option<Arg>,
    ) -> Result<Program> {
        let Self { geometry: g, dtype } = self;
        let entries = g.batch * size.iter().product::<usize>();
        let mut program = Program::default();
        let ys = program.buffer(dtype, entries);
        let bias = if bias { Arg::Input(2) } else { Arg::Null };
        let mut args = vec![Arg::Input(0), Arg::Input(1), bias, ys, count(OP, entries)?];
        args.extend(g.windows().axes()?);
        args.push(count(OP, size[2])?);
        args.extend(last);
        program.launch(
            format!("{kernel}_{}", suffix(OP, dtype)?),
            Size::entries(entries),
            &args,
        )?;
        Ok(program)
    }

    /// Of images, filters and bias; buffer 0 is the result.
    pub(super) fn forward(self, bias: bool, relu: bool) -> Result<Program> {
        let relu = Arg::U32(u32::from(relu));
        self.program("depthwise2d", self.geometry.output, bias, Some(relu))
    }

    /// The adjoint, of results, filters and bias; buffer 0 has images.
    pub(super) fn images(self, bias: bool) -> Result<Program> {
        self.program("depthwise2d_images", self.geometry.input, bias, None)
    }

    /// The adjoint, of images and results; buffer 0 has the filters, a row a tap.
    pub(super) fn filters(self) -> Result<Program> {
        let Self { geometry: g, dtype } = self;
        let ([rows, cols, channels], taps) = (g.output, g.taps());
        let places = g.batch * rows * cols;
        let sums = Sums::new(dtype, places, taps * channels)?;
        let mut args = vec![Arg::Input(0), Arg::Input(1), sums.parts];
        args.extend([count(OP, places)?, sums.per_chunk]);
        args.extend(g.windows().axes()?);
        args.push(count(OP, channels)?);
        let Size { grid, block, shared } = Size::columns(channels, sums.chunks);
        let size = Size { grid: [grid[0], grid[1], taps], block, shared };
        sums.joined(format!("depthwise2d_filters_{}", suffix(OP, dtype)?), size, &args)
    }
}
