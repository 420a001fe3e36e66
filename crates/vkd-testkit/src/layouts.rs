//! The same values in different memory layouts.

use candle_core::{Result, Tensor};

/// `xs` laid out four ways: contiguous, transposed in memory, behind an offset, and with gaps between the rows.
///
/// All have the shape and the values of `xs`; tensors of fewer than two dimensions have no transposed form.
pub fn layouts(xs: &Tensor) -> Result<Vec<(&'static str, Tensor)>> {
    let xs = xs.contiguous()?;
    let mut all = vec![("contiguous", xs.clone())];
    let rank = xs.rank();
    if rank == 0 {
        return Ok(all);
    }
    if rank >= 2 {
        let swapped = xs.transpose(rank - 2, rank - 1)?.contiguous()?;
        all.push(("transposed", swapped.transpose(rank - 2, rank - 1)?));
    }
    let pad = xs.narrow(0, 0, 1.min(xs.dim(0)?))?.ones_like()?;
    let padded = Tensor::cat(&[&pad, &xs], 0)?;
    all.push(("offset", padded.narrow(0, pad.dim(0)?, xs.dim(0)?)?));
    let last = xs.dim(rank - 1)?;
    let gaps = Tensor::cat(&[&xs, &xs.ones_like()?], rank - 1)?;
    all.push(("gaps", gaps.narrow(rank - 1, 0, last)?));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tolerance, assert_close, normal};
    use candle_core::DType;

    #[test]
    fn values_stay() -> Result<()> {
        let xs = normal(&[3, 4, 5], DType::F32, 1)?;
        let all = layouts(&xs)?;
        assert_eq!(all.len(), 4);
        for (name, laid) in all {
            assert_close(name, &laid, &xs, Tolerance::EXACT)?;
        }
        Ok(())
    }
}
