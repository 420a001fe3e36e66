#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use std::collections::BTreeMap;

use vkd_simt::{Memory, Module};

use crate::support::{launch, packed};

/// Decodes every kernel of every file of the folder that `VKD_SIMT_PTX` names, and lists what isn't known.
#[test]
fn files_of_a_folder_are_known() {
    let Ok(folder) = std::env::var("VKD_SIMT_PTX") else {
        eprintln!("SKIPPED: VKD_SIMT_PTX names no folder of PTX");
        return;
    };
    let mut unknown: BTreeMap<String, usize> = BTreeMap::new();
    let mut all = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "ptx") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let started = std::time::Instant::now();
        let module = Module::parse(&text).unwrap_or_else(|fault| panic!("{path:?}: {fault}"));
        let parsed = started.elapsed();
        let names = module.kernels();
        for name in &names {
            all += 1;
            if let Err(fault) = module.kernel(name).unwrap().shared_bytes() {
                *unknown.entry(format!("{path:?}: {fault}")).or_default() += 1;
            }
        }
        let (count, took) = (names.len(), started.elapsed());
        eprintln!("{path:?}: {count} kernels, read in {parsed:?}, all decoded in {took:?}");
    }
    for fault in unknown.keys() {
        eprintln!("{fault}");
    }
    assert!(unknown.is_empty(), "{} of {all} kernels aren't known", unknown.len());
}

/// A function, and how far from Rust's a kernel may be in units in the last place: what CUDA's manual says of it, and one for Rust's own.
type Known = (&'static str, fn(f64) -> f64, f64);

const FUNCTIONS: [Known; 8] = [
    ("exp", f64::exp, 3.),
    ("log", f64::ln, 3.),
    ("sin", f64::sin, 3.),
    ("cos", f64::cos, 3.),
    ("tanh", f64::tanh, 3.),
    ("sqrt", f64::sqrt, 0.),
    ("recip", f64::recip, 0.),
    ("floor", f64::floor, 0.),
];

/// candle's functions of one number, if its kernels are in the folder, against Rust's: long chains of instructions with tables and calls.
#[test]
fn functions_of_a_file_are_those_of_rust() {
    let Ok(folder) = std::env::var("VKD_SIMT_PTX") else {
        eprintln!("SKIPPED: VKD_SIMT_PTX names no folder of PTX");
        return;
    };
    let Ok(text) = std::fs::read_to_string(std::path::Path::new(&folder).join("unary.ptx")) else {
        eprintln!("SKIPPED: no unary.ptx in the folder");
        return;
    };
    let module = Module::parse(&text).unwrap();
    let scales = [1e-6, 0.01, 1., 10., 600., 1e5, 1e15];
    let inputs: Vec<f64> = (0..7000)
        .map(|i| (f64::from(i) * 0.754_877_666).fract() * 2. - 1.)
        .enumerate()
        .map(|(i, x)| x * scales[i % scales.len()])
        .collect();
    for (name, function, most) in FUNCTIONS {
        let inputs: Vec<f64> = match name {
            "log" | "sqrt" => inputs.iter().map(|x| x.abs()).collect(),
            _ => inputs.clone(),
        };
        let memory = Memory::default();
        let run = |kind: &str, bytes: &[u8]| {
            let kernel = module.kernel(&format!("u{name}_{kind}")).unwrap();
            let (from, to) =
                (memory.allocate(bytes.len()).unwrap(), memory.allocate(bytes.len()).unwrap());
            memory.write_bytes(from, bytes).unwrap();
            let parameters = packed(&[inputs.len() as u64, 1, 0, from, to]);
            kernel.run(launch(7, 128), &parameters, &memory).unwrap();
            let mut out = vec![0; bytes.len()];
            memory.read_bytes(to, &mut out).unwrap();
            out
        };
        let bytes: Vec<u8> = inputs.iter().flat_map(|x| x.to_le_bytes()).collect();
        let got = run("f64", &bytes);
        let mut worst = (0f64, 0.);
        for (x, got) in inputs.iter().zip(got.chunks_exact(8)) {
            let (got, wanted) = (f64::from_le_bytes(got.try_into().unwrap()), function(*x));
            let unit = wanted.abs().next_up() - wanted.abs();
            let far = if got == wanted { 0. } else { (got - wanted).abs() / unit };
            if !(far <= worst.0) {
                worst = (far, *x);
            }
        }
        let bytes: Vec<u8> = inputs.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect();
        let got = run("f32", &bytes);
        let mut worst32 = (0f64, 0.);
        for (x, got) in inputs.iter().zip(got.chunks_exact(4)) {
            let x = f64::from(*x as f32);
            let (got, exact) = (f32::from_le_bytes(got.try_into().unwrap()), function(x));
            let wanted = exact as f32;
            let unit = f64::from(wanted.abs().next_up() - wanted.abs());
            let far = if got == wanted { 0. } else { (f64::from(got) - exact).abs() / unit };
            if !(far <= worst32.0) {
                worst32 = (far, x);
            }
        }
        eprintln!(
            "{name}: f64 {} units at {:e}, f32 {} at {:e}",
            worst.0, worst.1, worst32.0, worst32.1
        );
        assert!(worst.0 <= most && worst32.0 <= most, "{name}");
    }
}
