//! What a resampling launches on a device.

use super::cpu::{Geometry, Mode};
use candle_core::{DType, Result};
use vkd_norm::program::{Arg, Program, Size, count, suffix};

const OP: &str = "upsample2d";

impl Mode {
    /// Its number in the kernels.
    fn number(self) -> Arg {
        Arg::U32(match self {
            Self::Nearest => 0,
            Self::Edges => 1,
            Self::Corners => 2,
        })
    }
}

/// For both axes pixels, pixels of the result and their quotient, and how positions are found.
fn axes(g: &Geometry) -> Result<Vec<Arg>> {
    let mut args = Vec::with_capacity(8);
    for (from, to) in [(g.input[0], g.rows.len()), (g.input[1], g.cols.len())] {
        let scale = Arg::F64(g.mode.scale(from, to));
        args.extend([count(OP, from)?, count(OP, to)?, scale]);
    }
    args.push(g.mode.number());
    Ok(args)
}

/// Of the image; buffer 0 is the result.
pub(super) fn forward(g: &Geometry, dtype: DType) -> Result<Program> {
    let mut program = Program::default();
    let channels = g.input[2];
    let entries = g.batch * g.rows.len() * g.cols.len() * channels;
    let mut args = vec![Arg::Input(0), program.buffer(dtype, entries), count(OP, entries)?];
    args.extend(axes(g)?);
    args.push(count(OP, channels)?);
    program.launch(format!("upsample2d_{}", suffix(OP, dtype)?), Size::entries(entries), &args)?;
    Ok(program)
}

/// Of the result's gradient; buffer 0 is the image's gradient.
pub(super) fn backward(g: &Geometry, dtype: DType) -> Result<Program> {
    let mut program = Program::default();
    let [h, w, channels] = g.input;
    let entries = g.batch * h * w * channels;
    let dxs = program.buffer(dtype, entries);
    let bounds = program.buffer(DType::U32, 2 * (h + w));
    count(OP, 2 * (h + w))?;
    let axes = axes(g)?;
    let of_bounds: Vec<Arg> = [bounds].into_iter().chain(axes.iter().copied()).collect();
    program.launch("upsample2d_bounds".to_owned(), Size::entries(h + w), &of_bounds)?;
    let mut args = vec![Arg::Input(0), bounds, dxs, count(OP, entries)?];
    args.extend(axes);
    args.push(count(OP, channels)?);
    let kernel = format!("upsample2d_backward_{}", suffix(OP, dtype)?);
    program.launch(kernel, Size::entries(entries), &args)?;
    Ok(program)
}
