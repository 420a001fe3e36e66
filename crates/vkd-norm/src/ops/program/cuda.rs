//! Programs on a CUDA device: the one place of this crate that launches kernels.
#![allow(unsafe_code, reason = "a launch takes addresses; what it relies on stands beside it")]

use super::{Arg, Last, Launch, Program, Runner, Word};
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::cudarc::driver::{
    CudaStream, DevicePtr, DevicePtrMut, LaunchConfig, PushKernelArg, SyncOnDrop,
};
use candle_core::cuda_backend::{CudaDevice, CudaStorageSlice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, Error, Layout, Result, Shape, Storage, Tensor, bail,
};
use std::sync::Mutex;

/// Compiled kernels of one file. The name is the full path of the op: a device keeps modules by it.
#[derive(Clone, Copy)]
pub struct Source {
    /// As `vkd_norm::layer_norm`.
    pub module: &'static str,
    /// What nvcc made of the file.
    pub ptx: &'static str,
}

/// A device address, and what holds its buffer and marks it as used once the launch is queued.
type Pointer<'a> = (u64, SyncOnDrop<'a>);

/// Carries `program` out on the stream of the inputs' device, without waiting for it, and returns its buffers.
///
/// # Errors
/// No input, an input that is not dense, or whatever the driver says.
pub fn run(
    source: Source,
    program: &Program,
    inputs: &[(&CudaStorage, &Layout)],
) -> Result<Vec<CudaStorage>> {
    let Some((first, _)) = inputs.first() else {
        bail!("{}: expected an input that says which device, got none", source.module)
    };
    let device = first.device().clone();
    let mut starts = Vec::with_capacity(inputs.len());
    for (storage, layout) in inputs {
        let Some((start, _)) = layout.contiguous_offsets() else {
            bail!("{}: expected a contiguous layout, got {layout:?}", source.module)
        };
        starts.push((start * storage.dtype().size_in_bytes()) as u64);
    }
    let mut buffers = Vec::with_capacity(program.buffers.len());
    for (dtype, len) in &program.buffers {
        buffers.push(uninitialised(&device, *dtype, *len)?);
    }
    for launch in &program.launches {
        queue(source, &device, (launch, &program.tables), inputs, &starts, &mut buffers)?;
    }
    Ok(buffers)
}

/// A buffer of which nothing is known.
pub(super) fn uninitialised(device: &CudaDevice, dtype: DType, len: usize) -> Result<CudaStorage> {
    // SAFETY: the programs write a buffer before they read it; on the host, where buffers start as NaN, that is tested.
    unsafe { device.alloc_uninit(&Shape::from(len.max(1)), dtype) }
}

/// [`run`] on tensors; the buffers come as tensors of one dimension, without a tape: for backward passes.
///
/// # Errors
/// As [`run`], and a tensor that is on no CUDA device.
pub fn run_on_tensors(
    source: Source,
    program: &Program,
    inputs: &[&Tensor],
) -> Result<Vec<Tensor>> {
    let guards: Vec<_> = inputs.iter().map(|input| input.storage_and_layout()).collect();
    let mut storages = Vec::with_capacity(inputs.len());
    for (storage, layout) in &guards {
        match &**storage {
            Storage::Cuda(storage) => storages.push((storage, *layout)),
            other => bail!(
                "{}: expected every tensor on one CUDA device, got one on {:?}; move it with to_device",
                source.module,
                other.device()
            ),
        }
    }
    let buffers = run(source, program, &storages)?;
    let tensor = |(buffer, (_, len)): (CudaStorage, &(_, usize))| {
        let whole =
            Tensor::from_storage(Storage::Cuda(buffer), (*len).max(1), BackpropOp::none(), false);
        whole.narrow(0, 0, *len)
    };
    buffers.into_iter().zip(&program.buffers).map(tensor).collect()
}

impl Runner for Source {
    fn run(&self, program: &Program, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        run_on_tensors(*self, program, inputs)
    }
}

/// An op of several kernels and products on the tape, under `name`: the result has the shape of `xs`.
///
/// `forward` hands over its last program, which is not run yet, and what `backward` needs. That is kept for the first backward pass
/// and freed by it; a second one computes it again.
///
/// # Errors
/// Those of the two, and of [`run`].
pub fn recorded<K: Send + 'static>(
    name: &'static str,
    source: Source,
    xs: &Tensor,
    forward: impl Fn(&dyn Runner, &Tensor) -> Result<(Last, K)> + Send + Sync + 'static,
    backward: impl Fn(&dyn Runner, &K, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let xs = xs.contiguous()?;
    let (last, kept) = forward(&source, &xs.detach())?;
    let kept = Mutex::new(xs.track_op().then_some(kept));
    let backward = move |xs: &Tensor, grad: &Tensor| {
        // A lock is only poisoned by a panic.
        let kept = match kept.lock().ok().and_then(|mut kept| kept.take()) {
            Some(kept) => kept,
            None => forward(&source, &xs.detach())?.1,
        };
        backward(&source, &kept, grad)
    };
    xs.apply_op1(Recorded { name, source, last, backward })
}

/// All but the last program have run already.
struct Recorded<B> {
    name: &'static str,
    source: Source,
    last: Last,
    /// The gradient of the input, from the input and the gradient of the result, which is dense.
    backward: B,
}

impl<B: Fn(&Tensor, &Tensor) -> Result<Tensor> + Send + Sync> CustomOp1 for Recorded<B> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("{}: expected a tensor on a CUDA device, got one on the CPU", self.name)
    }

    fn cuda_fwd(&self, _: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let guards: Vec<_> = self.last.inputs.iter().map(|t| t.storage_and_layout()).collect();
        let mut storages = Vec::with_capacity(guards.len());
        for (storage, layout) in &guards {
            match &**storage {
                Storage::Cuda(storage) => storages.push((storage, *layout)),
                _ => bail!("{}: expected every tensor on one CUDA device", self.name),
            }
        }
        let mut buffers = run(self.source, &self.last.program, &storages)?;
        Ok((buffers.swap_remove(0), layout.shape().clone()))
    }

    fn bwd(&self, arg: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        (self.backward)(arg, &grad.contiguous()?).map(Some)
    }
}

/// Puts one launch on the device's stream, and before it the tables that it reads.
fn queue(
    source: Source,
    device: &CudaDevice,
    (launch, tables): (&Launch, &[Vec<Word>]),
    inputs: &[(&CudaStorage, &Layout)],
    starts: &[u64],
    buffers: &mut [CudaStorage],
) -> Result<()> {
    let function = device.get_or_load_custom_func(&launch.kernel, source.module, source.ptx)?;
    let stream = device.cuda_stream();
    let missing = |what: &dyn std::fmt::Debug| {
        Error::Msg(format!("{}: {} has no {what:?}", source.module, launch.kernel)).bt()
    };
    let (mut reads, mut writes) = (vec![false; inputs.len()], vec![false; buffers.len()]);
    for arg in &launch.args {
        match arg {
            Arg::Input(i) => *reads.get_mut(*i).ok_or_else(|| missing(arg))? = true,
            Arg::Buffer(i) => *writes.get_mut(*i).ok_or_else(|| missing(arg))? = true,
            Arg::Table(i) => {
                for word in tables.get(*i).ok_or_else(|| missing(arg))? {
                    if let Word::Input(i) | Word::InPlace(i) = word {
                        *reads.get_mut(*i).ok_or_else(|| missing(word))? = true;
                    }
                }
            }
            Arg::Null | Arg::U32(_) | Arg::F64(_) => {}
        }
    }
    // An input that is written in place is held as if it were read: there is no more than a shared lock on a tensor to be had,
    // and on one stream the two are the same.
    let read: Vec<Option<Pointer<'_>>> = inputs
        .iter()
        .zip(reads)
        .map(|((input, _), used)| used.then(|| reading(input, &stream)).transpose())
        .collect::<Result<_>>()?;
    let written: Vec<Option<Pointer<'_>>> = buffers
        .iter_mut()
        .zip(writes)
        .map(|(buffer, used)| used.then(|| writing(buffer, &stream)).transpose())
        .collect::<Result<_>>()?;
    let address = |found: &[Option<Pointer<'_>>], i: usize| match found.get(i) {
        Some(Some((address, _))) => *address,
        // All that the launch names are there.
        _ => 0,
    };
    let of_input = |i: usize| match (address(&read, i), starts.get(i)) {
        (address, Some(start)) => address + start,
        (address, None) => address,
    };
    let mut uploads = Vec::new();
    let mut addresses = Vec::with_capacity(launch.args.len());
    for arg in &launch.args {
        addresses.push(match arg {
            Arg::Input(i) => of_input(*i),
            Arg::Buffer(i) => address(&written, *i),
            Arg::Table(i) => {
                let words: Vec<u64> =
                    tables.get(*i).into_iter().flatten().map(|w| w.bits(&of_input)).collect();
                let upload = device.clone_htod(&words)?;
                let (address, _) = upload.device_ptr(&stream);
                uploads.push(upload);
                address
            }
            Arg::Null | Arg::U32(_) | Arg::F64(_) => 0,
        });
    }
    let mut builder = function.builder();
    for (arg, address) in launch.args.iter().zip(&addresses) {
        match arg {
            Arg::U32(n) => builder.arg(n),
            Arg::F64(x) => builder.arg(x),
            _ => builder.arg(address),
        };
    }
    let config = LaunchConfig {
        grid_dim: launch.grid.into(),
        block_dim: launch.block.into(),
        shared_mem_bytes: launch.shared,
    };
    // SAFETY: arguments, sizes and buffers are those that the tests run on the host, where the emulator compares them
    // with the kernel's own signature and a sanitizer with the bounds; inputs are dense and at least as long as the
    // program's op has checked; all work is on the device's one stream, on which the tables are freed after it.
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}

macro_rules! pointer {
    ($slice:expr, $call:ident, $stream:expr) => {
        match $slice {
            CudaStorageSlice::U8(s) => s.$call($stream),
            CudaStorageSlice::U32(s) => s.$call($stream),
            CudaStorageSlice::F16(s) => s.$call($stream),
            CudaStorageSlice::BF16(s) => s.$call($stream),
            CudaStorageSlice::F32(s) => s.$call($stream),
            CudaStorageSlice::F64(s) => s.$call($stream),
            _ => bail!("kernels take u8, u32, f16, bf16, f32 and f64 only"),
        }
    };
}

fn reading<'a>(storage: &'a CudaStorage, stream: &'a CudaStream) -> Result<Pointer<'a>> {
    Ok(pointer!(&storage.slice, device_ptr, stream))
}

fn writing<'a>(storage: &'a mut CudaStorage, stream: &'a CudaStream) -> Result<Pointer<'a>> {
    Ok(pointer!(&mut storage.slice, device_ptr_mut, stream))
}
