//! The emulator finds what it is there to find, and its half types round as everybody's do.

use super::{KernelHost, Sanitizer};
use crate::{Tolerance, assert_close, normal_scaled};
use candle_core::{DType, Device, Result, Tensor};

const FAULTY: &str = r#"
extern "C" __global__ void twice(const float* xs, float* ys, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) ys[i] = 2.f * xs[i];
}
extern "C" __global__ void neighbour(const float* xs, float* ys, unsigned n, unsigned barrier) {
    __shared__ float tile[64];
    tile[threadIdx.x] = threadIdx.x < n ? xs[threadIdx.x] : 0.f;
    if (barrier) __syncthreads();
    if (threadIdx.x < n) ys[threadIdx.x] = tile[63 - threadIdx.x];
}
extern "C" __global__ void parted(const float* xs, float* ys, unsigned n) {
    if (threadIdx.x < n) __syncthreads();
    if (threadIdx.x == 0) ys[0] = xs[0];
}
extern "C" __global__ void halves(const float* xs, __half* ys, __nv_bfloat16* zs, float* back, unsigned n) {
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
        ys[i] = __float2half(xs[i]);
        zs[i] = __float2bfloat16(xs[i]);
        back[i] = __half2float(ys[i]) + __bfloat162float(zs[i]);
    }
}
extern "C" __global__ void many(const uint64_t* table) {
    const uint64_t* words = table + 3 * blockIdx.y;
    float* ys = reinterpret_cast<float*>(words[0]);
    const float* xs = reinterpret_cast<const float*>(words[1]);
    for (unsigned i = threadIdx.x; i < words[2]; i += blockDim.x) ys[i] += xs[i];
}
extern "C" __global__ void votes(const float* xs, unsigned* ys, unsigned n) {
    unsigned bits = __ballot_sync(0xffffffffu, threadIdx.x < n && xs[threadIdx.x] > 0.f);
    ys[threadIdx.x] = bits;
}
VKD_EXPORT(many)
VKD_EXPORT(votes)
VKD_EXPORT(twice)
VKD_EXPORT(neighbour)
VKD_EXPORT(parted)
VKD_EXPORT(halves)
"#;

fn compiled(sanitizer: Sanitizer) -> Result<Option<KernelHost>> {
    let folder = tempfile::tempdir()?;
    let source = folder.path().join("faulty.cu");
    std::fs::write(&source, FAULTY)?;
    KernelHost::compile(&source, &[], sanitizer)
}

#[test]
fn steps_outside_and_parted_threads_are_found() -> Result<()> {
    let Some(host) = compiled(Sanitizer::Memory)? else { return Ok(()) };
    let xs = Tensor::arange(0f32, 37., &Device::Cpu)?;
    let run = |n: u32| {
        let script = format!("buffer 148\nlaunch twice 1 1 1 64 1 1 0 3 i0 b0 d{n}\n");
        host.run(&script, &[&xs], &[(0, DType::F32, vec![37])])
    };
    assert_close("twice", &run(37)?[0], &(&xs * 2.)?, Tolerance::EXACT)?;
    let message = run(38).unwrap_err().to_string();
    assert!(message.contains("heap-buffer-overflow"), "{message}");
    // What no thread writes is NaN.
    assert!(run(36)?[0].to_vec1::<f32>()?[36].is_nan());
    let script = "buffer 4\nlaunch parted 1 1 1 64 1 1 0 3 i0 b0 d40\n";
    let message = host.run(script, &[&xs], &[]).unwrap_err().to_string();
    assert!(message.contains("wait at different places"), "{message}");
    let script = "buffer 4\nlaunch twice 1 1 1 40 1 1 0 3 i0 b0 d1\n";
    assert!(host.run(script, &[&xs], &[]).unwrap_err().to_string().contains("whole warps"));
    Ok(())
}

#[test]
fn a_missing_barrier_is_found() -> Result<()> {
    let Some(host) = compiled(Sanitizer::Races)? else { return Ok(()) };
    let xs = Tensor::arange(0f32, 64., &Device::Cpu)?;
    let run = |barrier: u32| {
        let script =
            format!("buffer 256\nlaunch neighbour 1 1 1 64 1 1 0 4 i0 b0 d64 d{barrier}\n");
        host.run(&script, &[&xs], &[(0, DType::F32, vec![64])])
    };
    let want = (Tensor::full(63f32, 64, &Device::Cpu)? - &xs)?;
    assert_close("neighbour", &run(1)?[0], &want, Tolerance::EXACT)?;
    let message = run(0).unwrap_err().to_string();
    assert!(message.contains("data race"), "{message}");
    Ok(())
}

#[test]
fn half_types_round_as_candle_s() -> Result<()> {
    let Some(host) = compiled(Sanitizer::Memory)? else { return Ok(()) };
    let mut parts = vec![Tensor::new(
        &[
            0f32, 1., 65504., 65519.9, 65520., 5.96e-8, 2.98e-8, 2.99e-8, 6.1e-5, 6.09e-5, 2049.,
            2051., 1e38, 1e-40,
        ],
        &Device::Cpu,
    )?];
    for (seed, scale) in [(1, 1.), (2, 1e-6), (3, 3e4), (4, 1e-4)] {
        parts.push(normal_scaled(&[500], DType::F32, seed, scale)?);
    }
    let xs = Tensor::cat(&parts, 0)?;
    let xs = Tensor::cat(&[&xs, &xs.neg()?], 0)?;
    let n = xs.elem_count();
    let script = format!(
        "buffer {}\nbuffer {}\nbuffer {}\nlaunch halves 1 1 1 32 1 1 0 5 i0 b0 b1 b2 d{n}\n",
        2 * n,
        2 * n,
        4 * n
    );
    let outputs = [(0, DType::F16, vec![n]), (1, DType::BF16, vec![n]), (2, DType::F32, vec![n])];
    let got = host.run(&script, &[&xs], &outputs)?;
    let (half, brain) = (xs.to_dtype(DType::F16)?, xs.to_dtype(DType::BF16)?);
    for (got, want) in got.iter().zip([&half, &brain]) {
        let bits = |t: &Tensor| t.to_dtype(DType::F32)?.to_vec1::<f32>();
        assert_eq!(bits(got)?, bits(want)?);
    }
    let back = (half.to_dtype(DType::F32)? + brain.to_dtype(DType::F32)?)?;
    assert_eq!(got[2].to_vec1::<f32>()?, back.to_vec1::<f32>()?);
    Ok(())
}

#[test]
fn a_table_names_many_tensors_and_some_are_written_in_place() -> Result<()> {
    let Some(host) = compiled(Sanitizer::Memory)? else { return Ok(()) };
    let draw = |n: usize, seed| normal_scaled(&[n + 2], DType::F32, seed, 1.)?.narrow(0, 2, n);
    let tensors = [draw(3, 1)?, draw(3, 2)?, draw(70, 3)?, draw(70, 4)?];
    let inputs: Vec<&Tensor> = tensors.iter().collect();
    let script =
        |n: usize| format!("table 6 i0 i1 u{n} i2 i3 u70\nlaunch many 1 2 1 32 1 1 0 1 t0\n");
    let got = host.run_in_place(&script(3), &inputs, &[0, 2])?;
    for (i, got) in got.iter().enumerate() {
        let want = (&tensors[2 * i] + &tensors[2 * i + 1])?;
        assert_close("sum", got, &want, Tolerance::EXACT)?;
    }
    let message = host.run_in_place(&script(4), &inputs, &[0]).unwrap_err().to_string();
    assert!(message.contains("heap-buffer-overflow"), "{message}");
    Ok(())
}

#[test]
fn a_ballot_has_one_bit_a_thread_of_the_warp() -> Result<()> {
    let Some(host) = compiled(Sanitizer::Memory)? else { return Ok(()) };
    let signs: Vec<f32> = (0..64).map(|i| if i % 3 == 0 { 1. } else { -1. }).collect();
    let xs = Tensor::from_vec(signs, 64, &Device::Cpu)?;
    let script = "buffer 256\nlaunch votes 1 1 1 64 1 1 0 3 i0 b0 d40\n";
    let got = host.run(script, &[&xs], &[(0, DType::U32, vec![64])])?[0].to_vec1::<u32>()?;
    let bits = |threads: std::ops::Range<u32>| {
        let set = threads.clone().filter(|i| i % 3 == 0 && *i < 40);
        set.fold(0, |bits, i| bits | 1 << (i - threads.start))
    };
    assert_eq!(got, [vec![bits(0..32); 32], vec![bits(32..64); 32]].concat());
    Ok(())
}
