//! What a step of AdamW launches on a device: one kernel for many parameters.

use super::Step;
use candle_core::{DType, Result};
use vkd_norm::program::{Arg, Program, Size, Word, suffix};

const OP: &str = "adamw";

/// Of the value, gradient, first and second moment of each of some parameters of one dtype, and its master where that is a half type; all
/// but the gradient are written in place. Each has numbers of entries and numbers of its step, of which `keep` and `step_size` are its
/// own and the rest the first one's. Where they are `clipped`, the last tensor of all is one more factor of the gradients, f64.
pub(super) fn steps(dtype: DType, parameters: &[(usize, Step)], clipped: bool) -> Result<Program> {
    let mut program = Program::default();
    let Some((_, Step { beta1, beta2, scale, root, eps, .. })) = parameters.first() else {
        return Ok(program);
    };
    let half = matches!(dtype, DType::F16 | DType::BF16);
    let each = if half { 5 } else { 4 };
    let mut words = Vec::with_capacity(8 * parameters.len());
    for (i, (entries, own)) in parameters.iter().enumerate() {
        let first = i * each;
        words.extend([Word::InPlace(first), Word::Input(first + 1)]);
        words.extend([Word::InPlace(first + 2), Word::InPlace(first + 3)]);
        words.push(if half { Word::InPlace(first + 4) } else { Word::Null });
        words.extend([Word::U64(*entries as u64), Word::F64(own.keep), Word::F64(own.step_size)]);
    }
    let most = parameters.iter().map(|(entries, _)| *entries).max().unwrap_or(0);
    let size = Size::many(most, parameters.len());
    let mut args = vec![program.table(words)];
    args.extend([beta1, beta2, scale, root, eps].map(|x| Arg::F64(*x)));
    args.push(if clipped { Arg::Input(each * parameters.len()) } else { Arg::Null });
    program.launch(format!("{OP}_{}", suffix(OP, dtype)?), size, &args)?;
    Ok(program)
}
