//! Files as `torch.save` writes them: what is read, what is named, and where the model's keys lie.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use candle_core::{DType, Device, Result, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use vkd_models::{
    Architecture, CnnConfig, LoadOptions, LoadReport, ModelConfig, TensorFile, load_weights,
};
use vkd_nn::VarStore;
use vkd_testkit::to_f64;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../vkd-testkit/golden").join(name)
}

fn says<T>(result: Result<T>) -> String {
    result.err().map(|e| vkd_models::plain(&e)).unwrap_or_default()
}

#[test]
fn tensors_of_every_layout_and_dtype_are_what_torch_shows() -> Result<()> {
    let got = TensorFile::read(&golden("torch_saved.pth"), Some("model"))?.entries;
    let want = TensorFile::read(&golden("torch_saved.safetensors"), None)?.entries;
    assert!(want.len() > 25);
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    for (key, want) in &want {
        let got = &got[key];
        assert_eq!((got.dtype, &got.shape), (want.dtype, &want.shape), "{key}");
        assert_eq!(got.bytes, want.bytes, "{key}");
    }
    // A dict in a dict.
    let inner = TensorFile::read(&golden("torch_saved.pth"), Some("ema.model"))?.entries;
    assert_eq!(to_f64(&inner["weight"].float("weight")?)?, [7., 7.]);
    Ok(())
}

#[test]
fn what_cannot_be_read_is_named_with_a_way_out() {
    let read = |key| says(TensorFile::read(&golden("torch_saved.pth"), key));
    for message in [read(None), read(Some("epoch")), read(Some("ema")), read(Some("nope"))] {
        assert!(message.contains("torch_saved.pth: "), "{message}");
        assert!(message.contains("under model (30), double (2), sparse (2), ema.model (1): "));
        assert!(message.contains("as in --key model"), "{message}");
    }
    assert!(read(None).contains("expected a dict of tensors, got 1 at its top"), "{}", read(None));
    assert!(read(Some("nope")).contains("key nope: expected it in the file"));
    assert!(read(Some("ema")).contains("key ema: expected a dict of tensors, got a dict of none"));
    let message = read(Some("double"));
    assert!(message.contains("complex: expected a dtype that safetensors has too, got Complex"));
    let message = read(Some("sparse"));
    assert!(message.contains("sparse: expected a dense tensor, got what _rebuild_sparse_tensor"));
    let legacy = says(TensorFile::read(&golden("torch_legacy.pth"), None));
    assert!(legacy.contains("torch_legacy.pth: expected a zip of torch.save"), "{legacy}");
    assert!(legacy.contains("before PyTorch 1.6: load it with torch.load and save it again"));
}

/// The archive with a member changed, or left out.
fn changed(from: &Path, to: &Path, name: &str, with: Option<&dyn Fn(Vec<u8>) -> Vec<u8>>) {
    let mut old = zip::ZipArchive::new(std::fs::File::open(from).unwrap()).unwrap();
    let mut new = zip::ZipWriter::new(std::fs::File::create(to).unwrap());
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for i in 0..old.len() {
        let mut member = old.by_index(i).unwrap();
        let path = member.name().unwrap().into_owned();
        let mut bytes = Vec::new();
        member.read_to_end(&mut bytes).unwrap();
        let bytes = match (path.ends_with(name), with) {
            (true, None) => continue,
            (true, Some(change)) => change(bytes),
            _ => bytes,
        };
        new.start_file(path, stored).unwrap();
        new.write_all(&bytes).unwrap();
    }
    new.finish().unwrap();
}

#[test]
fn broken_archives_name_what_is_wrong() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("broken.pth");
    let from = golden("torch_saved.pth");
    let read = || says(TensorFile::read(&path, Some("model")));
    let whole = std::fs::read(&from)?;
    for cut in [0, 3, 50, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut])?;
        assert!(read().contains("broken.pth: expected a zip of torch.save"), "{cut}: {}", read());
    }
    // The storage that `dense` and its views share.
    changed(&from, &path, "data/1", None);
    assert!(read().contains("expected the whole of torch_saved/data/1 in the zip"), "{}", read());
    changed(&from, &path, "data/1", Some(&|bytes| bytes[..100].to_vec()));
    assert!(read().contains("got a storage of 25"), "{}", read());
    assert!(read().contains("expected shape"), "{}", read());
    changed(&from, &path, "byteorder", Some(&|_| b"big".to_vec()));
    assert!(read().contains("big-endian"), "{}", read());
    changed(&from, &path, "data.pkl", None);
    assert!(read().contains("a zip without data.pkl"), "{}", read());
    for at in [0, 1, 200, 1000] {
        changed(&from, &path, "data.pkl", Some(&|bytes| bytes[..at].to_vec()));
        assert!(read().contains("expected a zip of torch.save"), "{at}: {}", read());
    }
    // Every byte of the pickle turned: an error or a reading, never a panic.
    for at in 0..600 {
        let turn = |mut bytes: Vec<u8>| {
            bytes[at] ^= 0x15;
            bytes
        };
        changed(&from, &path, "data.pkl", Some(&turn));
        read();
    }
    Ok(())
}

#[test]
fn a_module_or_a_list_is_told_from_a_state_dict() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("other.pth");
    let read = || says(TensorFile::read(&path, None));
    let pickles: [(&[u8], &str); 3] = [
        (b"\x80\x02cmodels\nVit\n)\x81}b.", "an object of class models.Vit: save its state_dict()"),
        (b"\x80\x02].", "got a list"),
        (b"\x80\x02K\x03.", "got another value"),
    ];
    for (pickle, expected) in pickles {
        changed(&golden("torch_saved.pth"), &path, "data.pkl", Some(&|_| pickle.to_vec()));
        assert!(read().contains(expected), "{}", read());
    }
    Ok(())
}

fn cnn() -> Result<(VarStore, BTreeMap<String, Tensor>)> {
    let architecture = Architecture::Cnn(CnnConfig { widths: vec![3, 4] });
    let config = ModelConfig { image_size: 8, channels: 1, classes: 3, architecture };
    let store = VarStore::new(1, DType::F32, &Device::Cpu);
    config.build(store.builder())?;
    let tensors = store.tensors().into_iter().map(|(n, t)| Ok((n, (t + 1.)?)));
    let tensors = tensors.collect::<Result<_>>()?;
    Ok((store, tensors))
}

/// Loads a file whose keys are the model's behind `before`, with more beside them.
fn load(before: &str, more: &[&str], under: Option<&str>) -> Result<LoadReport> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("weights.safetensors");
    let (store, tensors) = cnn()?;
    let mut file: HashMap<String, Tensor> =
        tensors.iter().map(|(n, t)| (format!("{before}{n}"), t.clone())).collect();
    for name in more {
        file.insert((*name).to_owned(), Tensor::zeros(1, DType::F32, &Device::Cpu)?);
    }
    candle_core::safetensors::save(&file, &path)?;
    let options = LoadOptions { under: under.map(str::to_owned), ..LoadOptions::default() };
    let report = load_weights(&store, &path, &options)?;
    assert_eq!(report.matched, tensors.keys().cloned().collect::<Vec<_>>());
    for (name, tensor) in store.tensors() {
        assert_eq!(to_f64(&tensor)?, to_f64(&tensors[&name])?, "{name}");
    }
    Ok(report)
}

#[test]
fn wrappers_around_all_keys_are_passed_over() -> Result<()> {
    for before in ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."] {
        let report = load(before, &[], None)?;
        assert_eq!((report.unexpected.len(), report.elsewhere.len()), (0, 0), "{before}");
    }
    assert_eq!(load("module.", &["n_averaged"], None)?.elsewhere, ["n_averaged"]);
    // One key without it: then the wrapper is a name like another.
    let message = says(load("module.", &["other"], None));
    assert!(message.contains("0 matched") && message.contains("lie under module: "), "{message}");
    Ok(())
}

#[test]
fn only_keys_under_a_prefix_are_taken_and_the_others_listed() -> Result<()> {
    let more = ["student.head.weight", "teacher.extra", "step"];
    for under in ["teacher", "teacher."] {
        let report = load("teacher.", &more, Some(under))?;
        assert_eq!(report.unexpected, ["teacher.extra"]);
        assert_eq!(report.elsewhere, ["step", "student.head.weight"]);
        assert!(report.to_string().contains("2 elsewhere (step, student.head.weight)"), "{report}");
    }
    // A wrapper may stand before the prefix, after it, or be it.
    load("module.teacher.", &["module.step"], Some("teacher"))?;
    load("teacher.module.", &["step"], Some("teacher"))?;
    load("module.", &[], Some("module"))?;
    load("a.b.", &more, Some("a.b"))?;
    let message = says(load("teacher.", &more, Some("encoder")));
    assert!(message.contains("expected keys under encoder, got some under student, teacher"));
    // Without the option the prefix is found and named.
    let message = says(load("teacher.", &more, None));
    assert!(message.contains("of its names lie under teacher: name that prefix"), "{message}");
    Ok(())
}
