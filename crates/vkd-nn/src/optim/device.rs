//! Updates off the CPU: AdamW by one kernel for all parameters where there is one, all else from plain tensor ops, with the same
//! arithmetic.

use super::optimizer::At;
use super::{AdamWConfig, LambConfig, Rule, SgdConfig};
use crate::ops::adamw::{self, Step};
use crate::ops::native_dtype;
#[cfg(feature = "cuda")]
use crate::ops::squares;
use candle_core::{DType, Device, Result, Tensor, Var, bail};

/// One parameter's update: nothing else shares the memory of its slots.
pub struct Job<'a> {
    pub(super) at: At,
    pub(super) var: &'a Var,
    /// Dense, in the dtype of the slots.
    pub(super) grad: Tensor,
    /// One more factor of the gradient: one number in f64 on its device. NaN means that nothing is to change.
    pub(super) clip: Option<Tensor>,
    pub(super) slots: &'a mut [Tensor],
}

/// Flat buffers of `var`, on its device: `count` of zeros, and for a half type a master of itself.
pub(super) fn slots(var: &Var, count: usize) -> Result<Vec<Tensor>> {
    let dtype = native_dtype(var.dtype());
    // Each in memory of its own: they are written in place.
    let zeros = || Tensor::zeros(var.elem_count(), dtype, var.device());
    let mut slots = (0..count).map(|_| zeros()).collect::<Result<Vec<_>>>()?;
    if var.dtype() != dtype {
        slots.push(var.as_detached_tensor().to_dtype(dtype)?.flatten_all()?);
    }
    Ok(slots)
}

/// One update from plain tensor ops.
pub(super) fn step<R: Rule>(rule: &R, job: &mut Job<'_>) -> Result<()> {
    let Job { at, var, grad, clip, slots } = job;
    let value = var.as_detached_tensor().flatten_all()?;
    let grad = grad.detach().flatten_all()?;
    let grad = match clip {
        Some(clip) => grad.broadcast_mul(&clip.to_dtype(grad.dtype())?)?,
        None => grad,
    };
    // Updates replace the slots, and don't write into them.
    let before: Vec<Tensor> = slots.to_vec();
    let new = update(rule, at, &value, &grad, slots)?;
    let Some(clip) = clip else { return var.set(&new.reshape(var.shape())?) };
    // NaN is not itself.
    let made = clip.eq(&*clip)?;
    let chosen = |new: &Tensor, old: &Tensor| made.broadcast_as(new.shape())?.where_cond(new, old);
    for (slot, before) in slots.iter_mut().zip(&before) {
        *slot = chosen(slot, before)?;
    }
    var.set(&chosen(&new, &value)?.reshape(var.shape())?)
}

/// The new value, flat; the slots are replaced.
fn update<R: Rule>(
    rule: &R,
    at: &At,
    value: &Tensor,
    grad: &Tensor,
    slots: &mut [Tensor],
) -> Result<Tensor> {
    if value.dtype() == grad.dtype() {
        return rule.update_on_device(at, value, grad, slots);
    }
    let Some((master, slots)) = slots.split_last_mut() else { return Ok(value.clone()) };
    // A value that was set from outside is where its master goes on.
    let same = master.to_dtype(value.dtype())?.eq(value)?;
    let from = same.where_cond(master, &value.to_dtype(grad.dtype())?)?;
    *master = rule.update_on_device(at, &from, grad, slots)?;
    master.to_dtype(value.dtype())
}

/// The numbers of a step of AdamW.
fn numbers(rule: &AdamWConfig, at: &At) -> Step {
    let AdamWConfig { beta1, beta2, eps, .. } = *rule;
    Step {
        beta1,
        beta2,
        scale: at.scale,
        keep: 1. - at.lr * at.weight_decay,
        step_size: at.lr / (1. - beta1.powi(at.step)),
        root: (1. - beta2.powi(at.step)).sqrt().recip(),
        eps,
    }
}

/// [`Rule::update_all_on_devices`] of AdamW: a launch for all parameters of a dtype and device.
pub(super) fn adamw_all(rule: &AdamWConfig, jobs: &mut [Job<'_>]) -> Result<()> {
    #[cfg(feature = "cuda")]
    {
        let mut seen = std::collections::HashSet::new();
        // One that stands twice is updated once with the others and then by itself.
        let (fused, rest): (Vec<_>, Vec<_>) = jobs.iter_mut().partition(|job| {
            vkd_norm::program::applies(job.var)
                && job.var.is_contiguous()
                && seen.insert(job.var.id())
        });
        for group in by_kind(&fused, |job| job.var) {
            let parameters: Vec<_> = group
                .iter()
                .map(|job| {
                    let tensors = [job.var.as_tensor(), &job.grad].into_iter().chain(&*job.slots);
                    (numbers(rule, &job.at), tensors.collect::<Vec<_>>())
                })
                .collect();
            let Some(Job { var, clip, .. }) = group.first() else { continue };
            adamw::steps_in_place(var.dtype(), &parameters, clip.as_ref())?;
        }
        rest.into_iter().try_for_each(|job| step(rule, job))
    }
    #[cfg(not(feature = "cuda"))]
    jobs.iter_mut().try_for_each(|job| step(rule, job))
}

/// `items` in groups of one dtype and device, in order.
#[cfg(feature = "cuda")]
pub(super) fn by_kind<T>(items: &[T], tensor: impl Fn(&T) -> &Tensor) -> Vec<Vec<&T>> {
    let mut groups: Vec<((DType, candle_core::DeviceLocation), Vec<&T>)> = Vec::new();
    for item in items {
        let of = tensor(item);
        let kind = (of.dtype(), of.device().location());
        match groups.iter_mut().find(|(other, _)| *other == kind) {
            Some((_, group)) => group.push(item),
            None => groups.push((kind, vec![item])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

/// [`Rule::update_on_device`] of AdamW.
pub(super) fn adamw(
    rule: &AdamWConfig,
    at: &At,
    p: &Tensor,
    g: &Tensor,
    slots: &mut [Tensor],
) -> Result<Tensor> {
    let [m, v] = slots else { return Ok(p.clone()) };
    let [new, first, second] = adamw::step(numbers(rule, at), [p, g, m, v])?;
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

/// Sums of squares of `grads` in f64, each on its device, copied to the host together: by kernels, those of one dtype.
pub(super) fn squares(grads: &[Tensor]) -> Result<Vec<f64>> {
    let mut all = vec![0.; grads.len()];
    for (at, sums) in sums_of_squares(grads)? {
        let sums = sums.to_device(&Device::Cpu)?.to_vec1::<f64>()?;
        for (i, sum) in at.into_iter().zip(sums) {
            all[i] = sum;
        }
    }
    Ok(all)
}

/// Sums of squares of `grads` in f64 where they are, in groups: which gradients, and a sum of each.
fn sums_of_squares(grads: &[Tensor]) -> Result<Vec<(Vec<usize>, Tensor)>> {
    #[cfg(feature = "cuda")]
    if grads.iter().all(|grad| grad.device().is_cuda()) {
        let dense = grads.iter().map(Tensor::contiguous).enumerate();
        let dense: Vec<_> = dense.map(|(i, grad)| Ok((i, grad?))).collect::<Result<_>>()?;
        let groups = by_kind(&dense, |(_, grad)| grad).into_iter().map(|group| {
            let tensors: Vec<&Tensor> = group.iter().map(|(_, grad)| grad).collect();
            Ok((group.iter().map(|(i, _)| *i).collect(), squares::squares(&tensors)?))
        });
        return groups.collect();
    }
    let sums = grads
        .iter()
        .map(|grad| grad.detach().to_dtype(DType::F64)?.sqr()?.sum_all())
        .collect::<Result<Vec<_>>>()?;
    Ok(vec![((0..grads.len()).collect(), Tensor::stack(&sums, 0)?)])
}

/// The Euclidean norm of `grads`, at least one and all on one device, and the factor that clips it to `max_norm`: rank 0, f64, there.
/// The factor is NaN where the norm is not finite.
pub(super) fn clip(grads: &[Tensor], max_norm: f64) -> Result<[Tensor; 2]> {
    let sums = sums_of_squares(grads)?.into_iter().map(|(_, sums)| sums.sum_all());
    let norm = sums.reduce(|a, b| a? + b?).transpose()?;
    let Some(norm) = norm else { bail!("clip: expected a gradient, got none") };
    let norm = norm.sqrt()?;
    // Zero times the norm is NaN where that is not finite. No minimum: that of a device forgets NaN.
    let [most, one] = [max_norm, 1.].map(|number| norm.affine(0., number));
    let (share, one) = ((most? / (&norm + 1e-6)?)?, one?);
    let factor = share.lt(1.)?.where_cond(&share, &one)?;
    Ok([norm, factor])
}
