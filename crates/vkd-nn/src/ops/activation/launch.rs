//! What an activation launches on a device.

use super::Activation;
use candle_core::{DType, Result};
use vkd_norm::program::{Arg, Program, Size, count, suffix};

const OP: &str = "activation";

impl Activation {
    /// Its number in the kernels.
    fn number(self) -> Arg {
        Arg::U32(match self {
            Self::Identity => 0,
            Self::Gelu => 1,
            Self::GeluTanh => 2,
            Self::Relu => 3,
            Self::Relu6 => 4,
            Self::Silu => 5,
        })
    }
}

/// Of the input; buffer 0 is the output.
pub(super) fn forward(activation: Activation, dtype: DType, entries: usize) -> Result<Program> {
    let mut program = Program::default();
    let ys = program.buffer(dtype, entries);
    let args = [Arg::Input(0), ys, count(OP, entries)?, activation.number()];
    let kernel = format!("activation_{}", suffix(OP, dtype)?);
    program.launch(kernel, Size::entries(entries), &args)?;
    Ok(program)
}

/// Of input and incoming gradient; buffer 0 is the input's gradient.
pub(super) fn backward(activation: Activation, dtype: DType, entries: usize) -> Result<Program> {
    let mut program = Program::default();
    let dxs = program.buffer(dtype, entries);
    let args = [Arg::Input(0), Arg::Input(1), dxs, count(OP, entries)?, activation.number()];
    let kernel = format!("activation_backward_{}", suffix(OP, dtype)?);
    program.launch(kernel, Size::entries(entries), &args)?;
    Ok(program)
}
