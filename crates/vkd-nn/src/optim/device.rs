//! Updates off the CPU: AdamW by its kernel where there is one, all else from plain tensor ops, with the same arithmetic.

use super::optimizer::At;
use super::{AdamWConfig, LambConfig, Rule, SgdConfig};
use crate::ops::adamw::{self, Step};
use crate::ops::native_dtype;
use candle_core::{DType, Device, Result, Tensor, Var};

/// Flat buffers of `var`, on its device: `count` of zeros, and for a half type a master of itself.
pub(super) fn slots(var: &Var, count: usize) -> Result<Vec<Tensor>> {
    let dtype = native_dtype(var.dtype());
    let zeros = Tensor::zeros(var.elem_count(), dtype, var.device())?;
    let mut slots = vec![zeros; count];
    if var.dtype() != dtype {
        slots.push(var.as_detached_tensor().to_dtype(dtype)?.flatten_all()?);
    }
    Ok(slots)
}

/// One update of `var`; `grad` is in the dtype of the slots.
pub(super) fn step<R: Rule>(
    rule: &R,
    at: &At,
    var: &Var,
    grad: &Tensor,
    slots: &mut [Tensor],
) -> Result<()> {
    let value = var.as_detached_tensor().flatten_all()?;
    let grad = grad.detach().flatten_all()?;
    let new = if value.dtype() == grad.dtype() {
        rule.update_on_device(at, &value, &grad, slots)?
    } else {
        let Some((master, slots)) = slots.split_last_mut() else { return Ok(()) };
        // A value that was set from outside is where its master goes on.
        let same = master.to_dtype(value.dtype())?.eq(&value)?;
        let from = same.where_cond(master, &value.to_dtype(grad.dtype())?)?;
        *master = rule.update_on_device(at, &from, &grad, slots)?;
        master.to_dtype(value.dtype())?
    };
    var.set(&new.reshape(var.shape())?)
}

/// [`Rule::update_on_device`] of AdamW.
pub(super) fn adamw(
    rule: &AdamWConfig,
    at: &At,
    p: &Tensor,
    g: &Tensor,
    slots: &mut [Tensor],
) -> Result<Tensor> {
    let AdamWConfig { beta1, beta2, eps, .. } = *rule;
    let [m, v] = slots else { return Ok(p.clone()) };
    let numbers = Step {
        beta1,
        beta2,
        scale: at.scale,
        keep: 1. - at.lr * at.weight_decay,
        step_size: at.lr / (1. - beta1.powi(at.step)),
        root: (1. - beta2.powi(at.step)).sqrt().recip(),
        eps,
    };
    let [new, first, second] = adamw::step(numbers, [p, g, m, v])?;
    (*m, *v) = (first, second);
    Ok(new)
}

/// [`Rule::update_on_device`] of SGD.
pub(super) fn sgd(
    rule: &SgdConfig,
    at: &At,
    p: &Tensor,
    g: &Tensor,
    slots: &mut [Tensor],
) -> Result<Tensor> {
    let g = ((g * at.scale)? + (p * at.weight_decay)?)?;
    let [momentum] = slots else { return p - (g * at.lr)? };
    *momentum = ((&*momentum * rule.momentum)? + &g)?;
    let direction =
        if rule.nesterov { (g + (&*momentum * rule.momentum)?)? } else { momentum.clone() };
    p - (direction * at.lr)?
}

/// [`Rule::update_on_device`] of LAMB.
pub(super) fn lamb(
    rule: &LambConfig,
    at: &At,
    p: &Tensor,
    g: &Tensor,
    slots: &mut [Tensor],
) -> Result<Tensor> {
    let LambConfig { beta1, beta2, eps, .. } = *rule;
    let [m, v] = slots else { return Ok(p.clone()) };
    let of_m = (1. - beta1.powi(at.step)).recip();
    let of_v = (1. - beta2.powi(at.step)).recip();
    let numbers = Step { beta1, beta2, scale: at.scale, keep: 1., step_size: at.lr, root: 1., eps };
    [*m, *v] = adamw::moments([g, m, v], numbers)?;
    let direction = ((&*m * of_m)? / ((&*v * of_v)?.sqrt()? + eps)?)?;
    let direction = (direction + (p * at.weight_decay)?)?;
    let squares = |xs: &Tensor| xs.to_dtype(DType::F64)?.sqr()?.sum_all();
    let (of_p, of_r) = (squares(p)?, squares(&direction)?);
    // One where either is zero, decided on the device.
    let both = (of_p.gt(0.)?.to_dtype(DType::F64)? * of_r.gt(0.)?.to_dtype(DType::F64)?)?;
    let defined = both.gt(0.)?;
    let one = of_r.ones_like()?;
    let trust = defined.where_cond(&(&of_p / defined.where_cond(&of_r, &one)?)?, &one)?.sqrt()?;
    p - direction.broadcast_mul(&(trust * at.lr)?.to_dtype(p.dtype())?)?
}

/// Sums of squares of `grads` in f64, each on its device, copied to the host together.
pub(super) fn squares(grads: &[Tensor]) -> Result<Vec<f64>> {
    let sums = grads
        .iter()
        .map(|grad| grad.detach().to_dtype(DType::F64)?.sqr()?.sum_all())
        .collect::<Result<Vec<_>>>()?;
    Tensor::stack(&sums, 0)?.to_device(&Device::Cpu)?.to_vec1()
}
