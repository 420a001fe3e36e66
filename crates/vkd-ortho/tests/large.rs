//! Orthonormality at the sizes that networks have.
//!
//! A fixed grid: twelve shapes, four scales, two dtypes, three maps. What takes long (`LONG`) is ignored by default and run
//! by `cargo xtask ci --full`.

mod common;

use candle_core::{DType, Result};
use common::{CASES, Case, DTYPES, check_mask, check_orthonormal, gradient, tau_off};
use vkd_testkit::{normal_scaled, to_f64};

const SHAPES: [(usize, usize); 12] = [
    (1, 1),
    (257, 250),
    (512, 512),
    (768, 384),
    (1024, 1000),
    (2048, 256),
    (3024, 192),
    (3024, 384),
    (4096, 1),
    (4096, 64),
    (4096, 512),
    (4096, 1024),
];

const SCALES: [f64; 4] = [1e-6, 1e-2, 1., 1e3];

/// The widest frame for all maps, and wide ones for the exponential, whose eigenproblem has twice the width.
fn long(case: &Case, (n, k): (usize, usize)) -> bool {
    (n, k) == (4096, 1024) || case.name == "matrix_exp" && k >= 384
}

fn check(case: &Case, shape: (usize, usize)) -> Result<()> {
    for dtype in DTYPES {
        for (seed, scale) in (1..).zip(SCALES) {
            let raw = normal_scaled(&[shape.0, shape.1], dtype, seed, scale)?;
            check_orthonormal(case.name, case.op, &raw)
                .map_err(|e| e.context(format!("scale {scale:e}, seed {seed}")))?;
        }
    }
    Ok(())
}

fn check_gradient(case: &Case, shape: (usize, usize)) -> Result<()> {
    let raw = normal_scaled(&[shape.0, shape.1], DType::F32, 9, 0.1)?;
    let grad = gradient(case.op, &raw)?;
    check_mask(&grad)?;
    assert!(to_f64(&grad)?.iter().all(|x| x.is_finite()), "{} {shape:?}", case.name);
    Ok(())
}

fn check_all(name: &str, want_long: bool) -> Result<()> {
    for case in CASES.iter().filter(|case| case.name == name) {
        for shape in SHAPES.into_iter().filter(|shape| long(case, *shape) == want_long) {
            check(case, shape)?;
            check_gradient(case, shape)?;
        }
    }
    Ok(())
}

#[test]
fn reflectors_one_per_cent_off_fail_at_a_real_width() -> Result<()> {
    for dtype in DTYPES {
        let off = check_orthonormal("off", tau_off, &normal_scaled(&[3024, 192], dtype, 1, 1.)?);
        assert!(off.is_err_and(|e| e.to_string().contains("residual")));
    }
    Ok(())
}

#[test]
fn householder() -> Result<()> {
    check_all("householder", false)
}

#[test]
fn cayley() -> Result<()> {
    check_all("cayley", false)
}

#[test]
fn matrix_exp() -> Result<()> {
    check_all("matrix_exp", false)
}

#[test]
#[ignore = "minutes; cargo xtask ci --full runs it"]
fn householder_long() -> Result<()> {
    check_all("householder", true)
}

#[test]
#[ignore = "minutes; cargo xtask ci --full runs it"]
fn cayley_long() -> Result<()> {
    check_all("cayley", true)
}

#[test]
#[ignore = "minutes; cargo xtask ci --full runs it"]
fn matrix_exp_long() -> Result<()> {
    check_all("matrix_exp", true)
}
