//! LeCam's regulariser with its moving averages.

use super::Sides;
use crate::Term;
use candle_core::{DType, Result, Tensor, bail};
use vkd_norm::Context;

/// [`lecam`](vkd_loss::lecam) in the discriminator's loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LecamConfig {
    /// Factor in the loss; 0.3 in the published CIFAR runs.
    pub weight: f64,
    /// Share of the averages that a batch leaves, `[0, 1)`.
    pub decay: f64,
    /// Updates of the discriminator before the term counts; until then the averages are the last batch's. 1000 in the published runs.
    pub start: u64,
}

/// The term of a batch's scores, whose averages take them in.
///
/// It is there from the first step on, so that a log has the same columns. Until it counts it has the weight zero on the CPU; on a device,
/// where the host doesn't know how often the averages moved, its value is zero.
pub(super) fn lecam_term(
    averages: &Tensor,
    scores: &Sides<Tensor>,
    config: LecamConfig,
    ctx: &Context,
) -> Result<Term> {
    let (real, generated) = (&scores.real, &scores.generated);
    let (weight, value) = match averages.device().is_cpu() {
        true => {
            let ([real_mean, generated_mean], begun) = moved(averages, scores, config, ctx)?;
            let value = vkd_loss::lecam(real, generated, real_mean, generated_mean)?;
            (if begun { config.weight } else { 0. }, value)
        }
        false => {
            let (means, begun) = moved_on_device(averages, scores, config, ctx)?;
            let value = vkd_loss::lecam_at(real, generated, &means)?;
            let begun = begun.to_dtype(value.dtype())?;
            (config.weight, (value * begun)?)
        }
    };
    Ok(Term { name: "lecam".to_owned(), weight, value })
}

/// LeCam's averages after this batch's scores, and whether the term counts yet; until then they are the batch's. In evaluation nothing
/// is kept.
fn moved(
    averages: &Tensor,
    scores: &Sides<Tensor>,
    config: LecamConfig,
    ctx: &Context,
) -> Result<([f64; 2], bool)> {
    let decay = config.decay;
    let mean =
        |scores: &Tensor| scores.detach().to_dtype(DType::F64)?.mean_all()?.to_scalar::<f64>();
    let mut now = [mean(&scores.real)?, mean(&scores.generated)?];
    if let Some(replicas) = &ctx.replicas {
        replicas.sum_numbers(&mut now)?;
        now = now.map(|sum| sum / replicas.size() as f64);
    }
    let [real, generated, updates] = averages.to_vec1::<f64>()?[..] else {
        bail!("generation: expected three numbers of LeCam, got {:?}", averages.dims())
    };
    let begun = updates >= config.start as f64;
    let moved = match begun && updates > 0. {
        true => [decay * real + (1. - decay) * now[0], decay * generated + (1. - decay) * now[1]],
        false => now,
    };
    if ctx.train && moved.iter().all(|m| m.is_finite()) {
        let state = [moved[0], moved[1], updates + 1.];
        averages.slice_set(&Tensor::new(&state, averages.device())?, 0, 0)?;
    }
    Ok((moved, begun))
}

/// [`moved`] without a look at any number: the two averages, and one or zero of rank 0, on the device.
///
/// Of replicas the two means of the scores go over the host, as all that they share.
fn moved_on_device(
    averages: &Tensor,
    scores: &Sides<Tensor>,
    config: LecamConfig,
    ctx: &Context,
) -> Result<(Tensor, Tensor)> {
    let decay = config.decay;
    let mean = |scores: &Tensor| scores.detach().to_dtype(DType::F64)?.mean_all();
    let now = Tensor::stack(&[mean(&scores.real)?, mean(&scores.generated)?], 0)?;
    let now = match &ctx.replicas {
        Some(replicas) => (replicas.sum(&now)? / replicas.size() as f64)?,
        None => now,
    };
    let (kept, updates) = (averages.narrow(0, 0, 2)?, averages.narrow(0, 2, 1)?);
    let begun = updates.ge(config.start as f64)?;
    // The first batch finds nothing that could be kept.
    let joins = updates.ge((config.start as f64).max(1.))?.broadcast_as(2)?;
    let moved = joins.where_cond(&((kept * decay)? + (&now * (1. - decay))?)?, &now)?;
    if ctx.train {
        // Zero times what is not finite is NaN, which is no zero.
        let finite = (&moved * 0.)?.sum_keepdim(0)?.eq(0.)?.broadcast_as(3)?;
        let state = Tensor::cat(&[&moved, &(updates + 1.)?], 0)?;
        averages.slice_set(&finite.where_cond(&state, averages)?, 0, 0)?;
    }
    Ok((moved, begun.squeeze(0)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use vkd_testkit::{Tolerance, assert_close, normal, sums_among};

    fn scores(step: u64, dtype: DType, factor: f64) -> Result<Sides<Tensor>> {
        Ok(Sides {
            real: (normal(&[6], dtype, 2 * step)? * factor)?,
            generated: normal(&[5], dtype, 2 * step + 1)?,
        })
    }

    #[test]
    fn a_device_moves_the_averages_as_the_cpu_does() -> Result<()> {
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            for start in [0, 1, 3] {
                let config = LecamConfig { weight: 0.3, decay: 0.9, start };
                let state = || Tensor::zeros(3, DType::F64, &Device::Cpu);
                let (here, there) = (state()?, state()?);
                for step in 0..7 {
                    // A batch that diverges is not taken in, and one of an evaluation neither.
                    let scores = scores(step, dtype, if step == 4 { f64::NAN } else { 1. })?;
                    let ctx = match step {
                        2 => Context::eval(),
                        _ => Context::train(0, step, []),
                    };
                    let (want, begun) = moved(&here, &scores, config, &ctx)?;
                    let (got, counts) = moved_on_device(&there, &scores, config, &ctx)?;
                    assert_eq!(counts.to_scalar::<u8>()?, u8::from(begun), "{start} {step}");
                    let bits =
                        |means: &[f64]| means.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    if step != 4 {
                        assert_eq!(bits(&got.to_vec1()?), bits(&want), "{start} {step}");
                    }
                    assert_eq!(bits(&there.to_vec1()?), bits(&here.to_vec1()?), "{start} {step}");
                }
                // Six batches in training, one of them not finite.
                assert_eq!(there.get(2)?.to_scalar::<f64>()?, 5.);
            }
        }
        Ok(())
    }

    #[test]
    fn replicas_on_devices_move_the_averages_alike() -> Result<()> {
        let config = LecamConfig { weight: 0.3, decay: 0.5, start: 0 };
        let handles: Vec<_> = sums_among(2)
            .into_iter()
            .enumerate()
            .map(|(rank, sum)| {
                std::thread::spawn(move || -> Result<[Tensor; 2]> {
                    let replicas = vkd_norm::Replicas::new(rank, 2, sum)?;
                    let state = || Tensor::zeros(3, DType::F64, &Device::Cpu);
                    let (here, there) = (state()?, state()?);
                    for step in 0..3 {
                        let scores = scores(10 * step + rank as u64, DType::F32, 1.)?;
                        let ctx = Context::train(0, step, []).with_replicas(Some(replicas.clone()));
                        moved(&here, &scores, config, &ctx)?;
                        moved_on_device(&there, &scores, config, &ctx)?;
                    }
                    Ok([here, there])
                })
            })
            .collect();
        let found = handles.into_iter().map(|h| h.join().expect("a replica that ends"));
        let found = found.collect::<Result<Vec<_>>>()?;
        for [here, there] in &found {
            assert_close("averages", there, here, Tolerance::EXACT)?;
            assert_close("replicas", here, &found[0][0], Tolerance::EXACT)?;
        }
        Ok(())
    }
}
