//! Attention on a CUDA device.

use super::launch::Attention;
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage,
    Tensor, bail,
};
use std::sync::Mutex;
use vkd_norm::program::{Source, run, run_on_tensors};

const OP: &str = super::OP;

const SOURCE: Source = Source {
    module: "vkd_nn::attention",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/attention.ptx")),
};

/// Attention of dense operands, in the order of [`Attention`].
pub(super) fn attention(attention: Attention, operands: &[&Tensor]) -> Result<Tensor> {
    let op = OnDevice { attention, logs: Mutex::new(None) };
    match *operands {
        [a] => a.apply_op1(op),
        [a, b] => a.apply_op2(b, op),
        [a, b, c] => a.apply_op3(b, c, op),
        _ => bail!("{OP}: expected one to three operands, got {}", operands.len()),
    }
}

struct OnDevice {
    attention: Attention,
    /// Of each row of scores; left by the forward pass and freed by the backward pass.
    logs: Mutex<Option<Tensor>>,
}

fn refuse() -> Result<(CpuStorage, Shape)> {
    bail!("{OP}: expected a tensor on a CUDA device, got one on the CPU")
}

impl OnDevice {
    fn forward(&self, operands: &[(&CudaStorage, &Layout)]) -> Result<(CudaStorage, Shape)> {
        let s = self.attention.sizes;
        let mut buffers = run(SOURCE, &self.attention.forward()?, operands)?;
        let logs = Storage::Cuda(buffers.swap_remove(1));
        let shape = (s.batch, s.heads, s.queries);
        let logs = Tensor::from_storage(logs, shape, BackpropOp::none(), false);
        // A lock is only poisoned by a panic; without the logarithms the backward pass makes them again.
        if let Ok(mut kept) = self.logs.lock() {
            *kept = Some(logs);
        }
        Ok((buffers.swap_remove(0), (s.batch, s.queries, s.width()).into()))
    }

    /// The gradients of the operands that want one.
    fn backward<const N: usize>(
        &self,
        operands: [&Tensor; N],
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; N]> {
        let grad = grad.contiguous()?;
        let logs = match self.logs.lock().ok().and_then(|mut kept| kept.take()) {
            Some(logs) => logs,
            None => {
                let program = self.attention.forward()?;
                run_on_tensors(SOURCE, &program, &operands)?.swap_remove(1)
            }
        };
        let program = self.attention.backward(&operands.map(Tensor::track_op))?;
        let mut inputs = operands.to_vec();
        inputs.extend([out, &grad, &logs]);
        let buffers = run_on_tensors(SOURCE, &program, &inputs)?;
        let mut gradients: [Option<Tensor>; N] = std::array::from_fn(|_| None);
        for ((gradient, operand), buffer) in gradients.iter_mut().zip(operands).zip(&buffers) {
            if operand.track_op() {
                *gradient = Some(buffer.reshape(operand.shape())?);
            }
        }
        Ok(gradients)
    }
}

impl CustomOp1 for OnDevice {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        refuse()
    }

    fn cuda_fwd(&self, s: &CudaStorage, l: &Layout) -> Result<(CudaStorage, Shape)> {
        self.forward(&[(s, l)])
    }

    fn bwd(&self, a: &Tensor, out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [a] = self.backward([a], out, grad)?;
        Ok(a)
    }
}

impl CustomOp2 for OnDevice {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        refuse()
    }

    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.forward(&[(s1, l1), (s2, l2)])
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = self.backward([a, b], out, grad)?;
        Ok((a, b))
    }
}

impl CustomOp3 for OnDevice {
    fn name(&self) -> &'static str {
        OP
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
        refuse()
    }

    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
        s3: &CudaStorage,
        l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.forward(&[(s1, l1), (s2, l2), (s3, l3)])
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = self.backward([a, b, c], out, grad)?;
        Ok((a, b, c))
    }
}
