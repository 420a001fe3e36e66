//! Results that are there already, put on the tape: for ops of several kernels and products.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, InplaceOp1, Layout, Result, Shape, Storage,
    Tensor, bail,
};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, DType};
use std::sync::Mutex;

/// `ys` on the tape, as what an op `name` made of one to three `inputs`.
///
/// `ys` is dense and off the tape, and shares its values with nobody: they move into the result without a copy. `backward` gets the
/// inputs, which are on the tape, so that it can tell which of them are tracked, and detaches what it computes with; the result; and the
/// gradient, which is dense. It returns a gradient for each input.
///
/// # Errors
/// Another number of inputs, and `ys` that is not dense.
pub fn taped(
    name: &'static str,
    inputs: &[&Tensor],
    ys: Tensor,
    backward: impl Fn(&[&Tensor], &Tensor, &Tensor) -> Result<Vec<Option<Tensor>>>
    + Send
    + Sync
    + 'static,
) -> Result<Tensor> {
    if ys.layout().contiguous_offsets().is_none_or(|(start, _)| start != 0) {
        bail!("{name}: expected a dense result, got {:?}", ys.layout())
    }
    if !inputs.iter().any(|input| input.track_op()) {
        return Ok(ys);
    }
    let taken = Taken { name, values: Mutex::new(None) };
    ys.inplace_op1(&taken)?;
    let op = Taped { taken, shape: ys.shape().clone(), backward };
    match inputs {
        [a] => a.apply_op1(op),
        [a, b] => a.apply_op2(b, op),
        [a, b, c] => a.apply_op3(b, c, op),
        _ => bail!("{name}: expected one to three inputs, got {}", inputs.len()),
    }
}

/// Takes the values out of a tensor that nobody looks at again.
struct Taken {
    name: &'static str,
    values: Mutex<Option<Storage>>,
}

impl Taken {
    fn put(&self, values: Storage) {
        // A lock is only poisoned by a panic.
        if let Ok(mut place) = self.values.lock() {
            *place = Some(values);
        }
    }

    fn take(&self) -> Option<Storage> {
        self.values.lock().ok().and_then(|mut place| place.take())
    }
}

impl InplaceOp1 for Taken {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        self.put(Storage::Cpu(std::mem::replace(storage, CpuStorage::U8(Vec::new()))));
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> Result<()> {
        let nothing = super::cuda::uninitialised(&storage.device, DType::U8, 1)?;
        self.put(Storage::Cuda(std::mem::replace(storage, nothing)));
        Ok(())
    }
}

/// All has been computed.
struct Taped<B> {
    taken: Taken,
    shape: Shape,
    /// Of the inputs, the result and its dense gradient.
    backward: B,
}

impl<B: Fn(&[&Tensor], &Tensor, &Tensor) -> Result<Vec<Option<Tensor>>>> Taped<B> {
    fn on_cpu(&self) -> Result<(CpuStorage, Shape)> {
        match self.taken.take() {
            Some(Storage::Cpu(values)) => Ok((values, self.shape.clone())),
            _ => bail!("{}: expected all tensors on one device", self.taken.name),
        }
    }

    #[cfg(feature = "cuda")]
    fn on_cuda(&self) -> Result<(CudaStorage, Shape)> {
        match self.taken.take() {
            Some(Storage::Cuda(values)) => Ok((values, self.shape.clone())),
            _ => bail!("{}: expected all tensors on one device", self.taken.name),
        }
    }

    /// As many gradients as inputs.
    fn grads<const N: usize>(
        &self,
        inputs: [&Tensor; N],
        ys: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; N]> {
        match (self.backward)(&inputs, ys, &grad.contiguous()?)?.try_into() {
            Ok(grads) => Ok(grads),
            Err(grads) => {
                bail!("{}: expected {N} gradients, got {}", self.taken.name, grads.len())
            }
        }
    }
}

impl<B> CustomOp1 for Taped<B>
where
    B: Fn(&[&Tensor], &Tensor, &Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync,
{
    fn name(&self) -> &'static str {
        self.taken.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(&self, a: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [a] = self.grads([a], ys, grad)?;
        Ok(a)
    }
}

impl<B> CustomOp2 for Taped<B>
where
    B: Fn(&[&Tensor], &Tensor, &Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync,
{
    fn name(&self) -> &'static str {
        self.taken.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = self.grads([a, b], ys, grad)?;
        Ok((a, b))
    }
}

impl<B> CustomOp3 for Taped<B>
where
    B: Fn(&[&Tensor], &Tensor, &Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync,
{
    fn name(&self) -> &'static str {
        self.taken.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = self.grads([a, b, c], ys, grad)?;
        Ok((a, b, c))
    }
}

#[cfg(test)]
mod tests {
    use super::taped;
    use candle_core::{Device, Result, Tensor, Var, bail};

    /// `a b + c` with the wrong sign for `b`, which only this backward pass has.
    fn op(inputs: &[&Tensor]) -> Result<Tensor> {
        let [a, b, c] = inputs else { bail!("three") };
        let ys = ((a.detach() * b.detach())? + c.detach())?;
        taped("test", inputs, ys, |inputs, ys, grad| {
            let [a, b, c] = inputs else { bail!("three") };
            assert_eq!(ys.dims(), a.dims());
            let of_a = (grad * b.detach())?;
            let of_b = (grad * a.detach())?.neg()?;
            Ok(vec![
                a.track_op().then_some(of_a),
                b.track_op().then_some(of_b),
                c.track_op().then_some(grad.clone()),
            ])
        })
    }

    #[test]
    fn results_and_gradients_are_those_that_were_given() -> Result<()> {
        let new = |x: &[f64]| Tensor::new(x, &Device::Cpu);
        let (a, b) = (Var::from_tensor(&new(&[1., 2.])?)?, Var::from_tensor(&new(&[3., 5.])?)?);
        let c = new(&[7., 11.])?;
        let ys = op(&[&a, &b, &c])?;
        assert_eq!(ys.to_vec1::<f64>()?, [10., 21.]);
        let grads = (&ys * 2.)?.sum_all()?.backward()?;
        let of = |x: &Tensor| grads.get(x).map(Tensor::to_vec1::<f64>).transpose();
        assert_eq!(of(&a)?, Some(vec![6., 10.]));
        assert_eq!(of(&b)?, Some(vec![-2., -4.]));
        assert_eq!(of(&c)?, None);
        // Again, as nothing that was kept is gone.
        assert!(ys.sum_all()?.backward()?.get(&a).is_some());
        // Nobody tracks: no tape.
        assert!(!op(&[&c, &c, &c])?.track_op());
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_refused() -> Result<()> {
        let var = Var::ones((2, 2), candle_core::DType::F64, &Device::Cpu)?;
        let ys = Tensor::ones((2, 2), candle_core::DType::F64, &Device::Cpu)?;
        let none = |_: &[&Tensor], _: &Tensor, _: &Tensor| Ok(vec![]);
        assert!(taped("test", &[&var], ys.narrow(0, 1, 1)?, none).is_err());
        assert!(taped("test", &[var.as_tensor(); 4], ys.copy()?, none).is_err());
        let short = taped("test", &[&var], ys.copy()?, none)?.sum_all()?.backward();
        let words = short.map(|_| ()).unwrap_err().to_string();
        assert!(words.contains("expected 1 gradients, got 0"), "{words}");
        Ok(())
    }
}
