//! Identities that hold for every input: whitening, and what all normalisers share.

use candle_core::{DType, Device, Result, Tensor};
use proptest::prelude::*;
use vkd_norm::{Context, Normalizer, layer_norm, standardize, whiten_cholesky};
use vkd_testkit::{
    Tolerance, assert_close, dimension, gram_residual, holds, normal, permutation, scale, to_f64,
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn whitened_covariance_is_the_identity(
        channels in dimension(24), extra in 2usize..40, seed: u64, spread in scale(1., 1e8), wide: bool,
    ) {
        let rows = 2 * channels + extra;
        let (dtype, accuracy) = if wide { (DType::F64, 1e-10) } else { (DType::F32, 1e-5) };
        holds((|| {
            // Correlated channels with a mean, the last one `spread` times the others.
            let mix = normal(&[channels, channels], DType::F64, seed ^ 7)?;
            let xs = (normal(&[rows, channels], DType::F64, seed)?
                + (normal(&[rows, channels], DType::F64, seed ^ 3)?.matmul(&mix)? * 0.3)?)?;
            let mut factors = vec![1f64; channels];
            factors[channels - 1] = spread;
            let xs = (xs + 1.)?.broadcast_mul(&Tensor::new(factors, &Device::Cpu)?)?.to_dtype(dtype)?;
            let ys = whiten_cholesky(&xs, 0.)?;
            let residual = gram_residual(&(ys.to_dtype(DType::F64)? / ((rows - 1) as f64).sqrt())?)?;
            if residual > accuracy { candle_core::bail!("max |cov - I| = {residual:e}") }
            Ok(())
        })())?;
    }

    #[test]
    fn the_order_of_the_batch_does_not_matter(rows in 8usize..40, channels in 1usize..7, seed: u64) {
        holds((|| {
            let xs = normal(&[rows, channels], DType::F64, seed)?;
            let order = permutation(rows, seed ^ 5)?;
            let ctx = Context::eval();
            for name in ["identity", "layer_norm", "standardize", "whiten"] {
                let normalizer: Normalizer = name.parse()?;
                let after = normalizer.forward(&xs, &ctx)?.index_select(&order, 0)?;
                let before = normalizer.forward(&xs.index_select(&order, 0)?, &ctx)?;
                assert_close(name, &before, &after, Tolerance::relative(1e-10))?;
            }
            Ok(())
        })())?;
    }

    #[test]
    fn large_finite_values_stay_finite(rows in 1usize..9, channels in dimension(40), seed: u64, top in scale(1e-4, 1e30)) {
        holds((|| {
            let xs = (normal(&[rows, channels], DType::F32, seed)? * top)?;
            for ys in [layer_norm(&xs, 1e-5)?, standardize(&xs, 1e-6)?] {
                if !to_f64(&ys)?.iter().all(|y| y.is_finite()) { candle_core::bail!("not finite") }
            }
            Ok(())
        })())?;
    }
}

#[test]
fn normalizer_names_shapes_and_identity() -> Result<()> {
    let xs = normal(&[9, 4], DType::F32, 1)?;
    let ctx = Context::train(1, 2, [3]);
    let same = Normalizer::Identity.forward(&xs, &ctx)?;
    assert_close("identity", &same, &xs, Tolerance::EXACT)?;
    assert_eq!("layer_norm".parse::<Normalizer>()?, Normalizer::LayerNorm { eps: 1e-5 });
    let e = "zca".parse::<Normalizer>().unwrap_err().to_string();
    assert!(e.contains("\"zca\"") && e.contains("whiten"), "{e}");
    for name in ["identity", "layer_norm", "standardize", "whiten"] {
        let normalizer: Normalizer = name.parse()?;
        assert_eq!(normalizer.forward(&xs, &ctx)?.dims(), xs.dims());
        assert!(normalizer.forward(&xs.unsqueeze(0)?, &ctx).is_err());
    }
    Ok(())
}
