//! The laws for parameters of any size, shape and scale.
//!
//! Sizes are log-uniform up to 512 rows, widths a uniform part of the rows, scales log-uniform over nine decades.

mod common;

use candle_core::{DType, Result, Tensor, bail};
use common::{CASES, Case, check_mask, check_orthonormal, gradient};
use proptest::prelude::*;
use vkd_testkit::{
    StiefelCases, Tolerance, assert_close, check_stiefel, dimension, max_abs_difference, normal,
    normal_scaled, scale, to_f64,
};

const LARGEST: usize = 512;

/// One drawn parameter; what it is is in the message of a failure.
#[derive(Clone, Debug)]
struct Drawn {
    n: usize,
    k: usize,
    scale: f64,
    seed: u64,
    dtype: DType,
}

impl Drawn {
    fn raw(&self) -> Result<Tensor> {
        normal_scaled(&[self.n, self.k], self.dtype, self.seed, self.scale)
    }
}

fn drawn(largest: usize) -> impl Strategy<Value = Drawn> {
    let dtype = prop_oneof![Just(DType::F32), Just(DType::F64)];
    (dimension(largest), 0f64..1., scale(1e-6, 1e3), 0u64..1000, dtype).prop_map(
        |(n, part, scale, seed, dtype)| {
            let k = ((n as f64 * part) as usize + 1).min(n);
            Drawn { n, k, scale, seed, dtype }
        },
    )
}

fn each(d: &Drawn, law: impl Fn(&Case) -> Result<()>) -> std::result::Result<(), TestCaseError> {
    for case in &CASES {
        if let Err(e) = law(case) {
            return Err(TestCaseError::fail(format!("{} {d:?}: {e}", case.name)));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn orthonormal(d in drawn(LARGEST)) {
        each(&d, |case| check_orthonormal(case.name, case.op, &d.raw()?).map(|_| ()))?;
    }

    #[test]
    fn the_gradient_arrives_and_is_finite(d in drawn(LARGEST)) {
        each(&d, |case| {
            let raw = d.raw()?;
            let grad = gradient(case.op, &raw)?;
            if grad.dims() != raw.dims() || grad.dtype() != raw.dtype() {
                bail!("expected {:?} {:?}, got {grad:?}", raw.dims(), raw.dtype())
            }
            if let Some(x) = to_f64(&grad)?.iter().find(|x| !x.is_finite()) {
                bail!("expected a finite gradient, got {x}")
            }
            check_mask(&grad)
        })?;
    }

    #[test]
    fn noise_above_the_diagonal_changes_no_bit(d in drawn(LARGEST)) {
        each(&d, |case| {
            let raw = d.raw()?;
            let noise = normal(&[d.n, d.k], d.dtype, d.seed + 1)?;
            let mask: Vec<u8> = (0..d.n * d.k).map(|at| u8::from(at / d.k > at % d.k)).collect();
            let mask = Tensor::from_vec(mask, (d.n, d.k), raw.device())?;
            let noisy = mask.where_cond(&raw, &noise)?;
            assert_close("bits", &(case.op)(&noisy)?, &(case.op)(&raw)?, Tolerance::EXACT)
        })?;
    }

    #[test]
    fn a_batch_is_its_loop(d in drawn(128), count in 1usize..4) {
        each(&d, |case| {
            let raw = normal_scaled(&[count, d.n, d.k], d.dtype, d.seed, d.scale)?;
            let q = (case.op)(&raw)?;
            for i in 0..count {
                assert_close("bits", &q.get(i)?, &(case.op)(&raw.get(i)?)?, Tolerance::EXACT)?;
            }
            Ok(())
        })?;
    }

    #[test]
    fn a_transposed_parameter_is_the_same_parameter(d in drawn(LARGEST)) {
        each(&d, |case| {
            let raw = d.raw()?;
            let turned = raw.t()?.contiguous()?.t()?;
            assert_close("bits", &(case.op)(&turned)?, &(case.op)(&raw)?, Tolerance::EXACT)
        })?;
    }

    #[test]
    fn f32_agrees_with_f64(d in drawn(128)) {
        each(&d, |case| {
            // Where the map itself is well conditioned: f32 kernels may form products in f32.
            let scale = d.scale.min(0.1);
            let raw = normal_scaled(&[d.n, d.k], DType::F32, d.seed, scale)?;
            let want = (case.op)(&raw.to_dtype(DType::F64)?)?;
            let off = max_abs_difference(&(case.op)(&raw)?, &want)?;
            if !(off <= 1e-5) {
                bail!("expected f64 within 1e-5, got a difference of {off:e} at scale {scale:e}")
            }
            Ok(())
        })?;
    }

    #[test]
    fn differences_agree(d in drawn(96)) {
        // All laws and finite differences at a drawn shape; a scale at which differences have digits.
        each(&d, |case| {
            check_stiefel(case.op, &StiefelCases {
                shapes: vec![(d.n, d.k)],
                batches: vec![vec![2]],
                scales: vec![d.scale],
                gradient_scales: vec![d.scale.min(2.)],
                at_zero: Some(case.at_zero),
                seed: d.seed,
                ..StiefelCases::new(case.name)
            })
        })?;
    }
}
