//! What a step of AdamW launches on a device.

use super::Step;
use candle_core::{DType, Result};
use vkd_norm::program::{Arg, Program, Size, count, suffix};

const OP: &str = "adamw";

/// Of value, gradient, first and second moment; buffers 0 to 2 are the new value and the new moments.
pub(super) fn step(step: Step, dtype: DType, entries: usize) -> Result<Program> {
    let Step { beta1, beta2, scale, keep, step_size, root, eps } = step;
    let mut program = Program::default();
    let buffers = [(); 3].map(|()| program.buffer(dtype, entries));
    let mut args: Vec<Arg> = (0..4).map(Arg::Input).collect();
    args.extend(buffers);
    args.push(count(OP, entries)?);
    args.extend([beta1, beta2, scale, keep, step_size, root, eps].map(Arg::F64));
    program.launch(format!("adamw_{}", suffix(OP, dtype)?), Size::entries(entries), &args)?;
    Ok(program)
}
