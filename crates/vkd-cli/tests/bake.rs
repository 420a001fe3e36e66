//! `vkd bake` and `vkd inspect` as a user meets them, on files that torch saved.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Output};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../vkd-testkit/golden");

fn vkd(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vkd")).current_dir(dir).args(args).output().unwrap()
}

fn good(dir: &Path, args: &[&str]) -> (String, String) {
    let out = vkd(dir, args);
    let err = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "vkd {args:?}: {err}");
    (String::from_utf8_lossy(&out.stdout).into_owned(), err)
}

fn bad(dir: &Path, args: &[&str]) -> String {
    let out = vkd(dir, args);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success(), "vkd {args:?} must fail");
    assert!(!text.contains("panicked") && !text.contains("internal fault"), "{text}");
    text
}

fn load(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn gap(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

#[test]
fn a_state_dict_of_torch_becomes_plain_weights() {
    let dir = tempfile::tempdir().unwrap();
    let golden = load(Path::new(&format!("{GOLDEN}/torch_state.safetensors")));
    let (flat, nested) =
        (format!("{GOLDEN}/torch_state.pth"), format!("{GOLDEN}/torch_state_nested.pth"));
    let (table, _) = good(dir.path(), &["bake", &flat, "a.safetensors"]);
    assert!(table.contains("householder (default)") && table.contains("matrix_exp (default)"));
    good(dir.path(), &["bake", &nested, "b.safetensors", "--key", "model"]);
    for file in ["a.safetensors", "b.safetensors"] {
        let baked = load(&dir.path().join(file));
        assert!(baked.keys().all(|k| !k.contains("parametrizations")));
        for name in ["tall.weight", "square.weight", "wide.weight"] {
            // The rounding of PyTorch's own f32 run.
            assert!(gap(&baked[name], &golden[&format!("pth.{name}")]) <= 1e-6, "{name}");
        }
        assert_eq!(gap(&baked["plain.weight"], &golden["pth.plain.weight"]), 0.);
        assert!(baked.contains_key("norm.num_batches_tracked"));
    }
    let (list, _) = good(dir.path(), &["inspect", &flat]);
    assert!(list.contains("square.weight: built with matrix_exp"), "{list}");
    let (list, _) = good(dir.path(), &["inspect", "a.safetensors"]);
    assert!(list.contains("residual"), "{list}");

    assert!(bad(dir.path(), &["bake", &flat, "a.safetensors"]).contains("--overwrite"));
    good(dir.path(), &["bake", &flat, "a.safetensors", "--overwrite"]);
    let same = ["bake", "a.safetensors", "./a.safetensors", "--overwrite"];
    assert!(bad(dir.path(), &same).contains("other than the input"));
    assert!(bad(dir.path(), &["bake", "a.safetensors", "c.safetensors"]).contains("got none"));
    assert!(bad(dir.path(), &["bake", &nested, "c.safetensors"]).contains("--key model"));
    assert!(bad(dir.path(), &["inspect", &nested, "--key", "nope"]).contains("nope"));
}

#[test]
fn a_weight_of_ours_is_baked_with_the_map_that_is_named() {
    use candle_core::{DType, Var};
    use vkd_ortho::{OrthogonalConfig, OrthogonalMap, Stiefel};
    let dir = tempfile::tempdir().unwrap();
    let store = candle_nn::VarMap::new();
    let vb = candle_nn::VarBuilder::from_varmap(&store, DType::F32, &Device::Cpu);
    let config = OrthogonalConfig::new(OrthogonalMap::Cayley, 3);
    let ours = Stiefel::new(9, 4, config, vb.pp("p")).unwrap();
    let raw: Var = store.data().lock().unwrap()["p.raw"].clone();
    raw.set(
        &(Tensor::arange(0f32, 36., &Device::Cpu).unwrap().reshape((9, 4)).unwrap() * 0.1).unwrap(),
    )
    .unwrap();
    store.save(dir.path().join("own.safetensors")).unwrap();

    let (list, _) = good(dir.path(), &["inspect", "own.safetensors"]);
    assert!(list.contains("of raw and base; the map is not stored"), "{list}");
    assert!(bad(dir.path(), &["bake", "own.safetensors", "o.safetensors"]).contains("--map"));
    good(dir.path(), &["bake", "own.safetensors", "o.safetensors", "--map", "cayley"]);
    let baked = load(&dir.path().join("o.safetensors"));
    assert_eq!(baked.keys().collect::<Vec<_>>(), ["p.weight"]);
    assert_eq!(gap(&baked["p.weight"], &ours.weight().unwrap()), 0.);
    let (list, _) = good(dir.path(), &["inspect", "o.safetensors"]);
    assert!(list.contains("residual"), "{list}");
    good(dir.path(), &["bake", "own.safetensors", "other.safetensors", "--map", "householder"]);
    let other = load(&dir.path().join("other.safetensors"));
    assert!(gap(&other["p.weight"], &ours.weight().unwrap()) > 1e-3, "another map, another weight");
}

#[test]
fn a_dead_projector_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let golden = load(Path::new(&format!("{GOLDEN}/torch_state.safetensors")));
    let state = HashMap::from([
        ("p.parametrizations.weight.original", golden["fault.decay.original"].clone()),
        ("p.parametrizations.weight.0.base", golden["fault.decay.base"].clone()),
    ]);
    candle_core::safetensors::save(&state, dir.path().join("dead.safetensors")).unwrap();
    let (_, err) = good(dir.path(), &["bake", "dead.safetensors", "out.safetensors"]);
    assert!(err.contains("warning: p.weight") && err.contains("4 of 4 columns are zero"), "{err}");
    let (_, err) = good(dir.path(), &["inspect", "dead.safetensors"]);
    assert!(err.contains("4 of 4 columns are zero"), "{err}");
}

#[test]
fn bad_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("no.pth"), b"not a zip").unwrap();
    assert!(bad(dir.path(), &["inspect", "no.pth"]).contains("expected a zip of torch.save"));
    std::fs::write(at("cut.safetensors"), [9, 0, 0, 0, 0, 0, 0, 0, b'{']).unwrap();
    assert!(bad(dir.path(), &["inspect", "cut.safetensors"]).contains("whole safetensors file"));
    assert!(bad(dir.path(), &["inspect", "none.safetensors"]).contains("none.safetensors"));
    assert!(bad(dir.path(), &["inspect", "x.bin"]).contains(".safetensors, .pth or .pt"));
    let zeros = |n: usize, k: usize| Tensor::zeros((n, k), candle_core::DType::F32, &Device::Cpu);
    let save = |parts: &[(&str, Tensor)]| {
        let parts: HashMap<&str, Tensor> = parts.iter().cloned().collect();
        candle_core::safetensors::save(&parts, at("s.safetensors")).unwrap();
        bad(dir.path(), &["bake", "s.safetensors", "o.safetensors", "--map", "cayley"])
    };
    let (original, base) =
        ("p.parametrizations.weight.original", "p.parametrizations.weight.0.base");
    assert!(save(&[(base, zeros(3, 3).unwrap())]).contains(original));
    let text = save(&[(original, zeros(3, 2).unwrap()), (base, zeros(2, 2).unwrap())]);
    assert!(text.contains("[3, 3]") && text.contains("[2, 2]"), "{text}");
    let ints = zeros(3, 2).unwrap().to_dtype(candle_core::DType::I64).unwrap();
    assert!(save(&[(original, ints)]).contains("expected a float dtype, got I64"));
    assert!(!at("o.safetensors").exists());
}
