//! Against results recorded from PyTorch, value and gradient.

use candle_core::{DType, Result, Tensor, Var, bail};
use vkd_norm::{layer_norm, standardize, whiten_cholesky};
use vkd_testkit::{Golden, Tolerance, assert_close};

/// Output of `f` and gradient of `sum(f(x) * cot)`.
fn run(
    f: impl Fn(&Tensor) -> Result<Tensor>,
    x: &Tensor,
    cot: &Tensor,
    dtype: DType,
) -> Result<(Tensor, Tensor)> {
    let var = Var::from_tensor(&x.to_dtype(dtype)?)?;
    let y = f(&var)?;
    let grads = (&y * cot.to_dtype(dtype)?)?.sum_all()?.backward()?;
    let Some(grad) = grads.get(&var) else { bail!("no gradient") };
    Ok((y.detach(), grad.clone()))
}

#[test]
fn cholesky_whitening() -> Result<()> {
    let golden = Golden::open("whitening")?;
    let eps = golden.get("eps")?.to_scalar::<f64>()?;
    let cases = [
        ("n64", "cholesky", eps),
        ("n16", "cholesky", eps),
        ("n10", "cholesky", eps),
        ("n64", "cholesky_eps0", 0.),
    ];
    for (case, method, eps) in cases {
        let x = golden.get(&format!("{case}.x"))?;
        let cot = golden.get(&format!("{case}.cot"))?;
        let y = golden.get(&format!("{case}.{method}.y"))?;
        let grad_x = golden.get(&format!("{case}.{method}.grad_x"))?;
        // Condition numbers up to 4e6 set the f64 figure; in f32 only the storage rounds.
        for (dtype, value, gradient) in [(DType::F64, 1e-9, 1e-9), (DType::F32, 1e-7, 1e-6)] {
            let what = format!("{case} {method} {dtype:?}");
            let (got, grad) = run(|x| whiten_cholesky(x, eps), &x, &cot, dtype)?;
            assert_close(&what, &got, &y, Tolerance::relative(value))?;
            assert_close(
                &format!("{what} gradient"),
                &grad,
                &grad_x,
                Tolerance::relative(gradient),
            )?;
        }
        // w is the linear map from the centred input to y.
        if eps > 0. {
            let x = x.to_dtype(DType::F64)?;
            let centred = x.broadcast_sub(&x.mean_keepdim(0)?)?;
            let w = golden.get(&format!("{case}.cholesky.w"))?;
            let y = whiten_cholesky(&x, eps)?;
            assert_close("w", &centred.matmul(&w.t()?)?, &y, Tolerance::relative(1e-9))?;
        }
    }
    Ok(())
}

#[test]
fn teacher_of_the_published_classification_loss() -> Result<()> {
    let golden = Golden::open("kd_losses")?;
    let pooled = golden.get("in.map_t")?.to_dtype(DType::F64)?.mean((2, 3))?;
    let want = golden.get("vkd_smooth_l1_layernorm.teacher_normed")?;
    assert_close("teacher", &layer_norm(&pooled, 1e-5)?, &want, Tolerance::relative(1e-12))?;
    let single = layer_norm(&pooled.to_dtype(DType::F32)?, 1e-5)?;
    assert_close("teacher f32", &single, &want, Tolerance::relative(1e-6))
}

/// Smooth-L1 with beta 1 from plain ops: the loss crate is not a dependency.
fn smooth_l1(d: &Tensor) -> Result<Tensor> {
    let d = d.abs()?;
    let c = d.minimum(1.)?;
    ((c.sqr()? * 0.5)? + (d - c)?)?.mean_all()
}

#[test]
fn published_detection_loss() -> Result<()> {
    let golden = Golden::open("kd_losses")?;
    let rows = |key: &str| -> Result<Tensor> {
        let x = golden.get(key)?.to_dtype(DType::F64)?;
        let x = if key.contains("patch") { x.permute((0, 2, 3, 1))? } else { x };
        let channels = x.dim(x.rank() - 1)?;
        x.contiguous()?.reshape(((), channels))
    };
    for part in ["tok_patch0", "tok_patch1", "tok_body", "tok_neck"] {
        // No eps there: a small guard here must not show.
        let student = Var::from_tensor(&rows(&format!("in.{part}_s"))?)?;
        let teacher = standardize(&rows(&format!("in.{part}_t"))?, 1e-7)?;
        let loss = smooth_l1(&(standardize(&student, 1e-7)? - teacher)?)?;
        let want = golden.get(&format!("vkd_detection_part.{part}.value"))?;
        assert_close(part, &loss, &want, Tolerance::relative(1e-11))?;
        let grads = loss.backward()?;
        let want = golden.get(&format!("vkd_detection_part.{part}.grad.{part}_s"))?;
        let want =
            if part.contains("patch") { want.permute((0, 2, 3, 1))?.contiguous()? } else { want };
        let want = want.reshape(student.shape())?;
        assert_close(part, grads.get(&student).unwrap(), &want, Tolerance::relative(1e-10))?;
    }
    Ok(())
}
