//! Inception-v3 against torchvision and the FID's network, and bad files.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use candle_core::{DType, Device, Result, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use vkd_models::{InceptionConfig, InceptionV3, InceptionVariant, Model};
use vkd_nn::{Context, VarStore};
use vkd_testkit::{Golden, Tolerance, assert_close, normal, to_f64};

const VARIANTS: [InceptionVariant; 2] = [InceptionVariant::Torchvision, InceptionVariant::Fid];

fn narrow(variant: InceptionVariant) -> InceptionConfig {
    InceptionConfig { image_size: 75, width: 2, ..InceptionConfig::new(variant) }
}

/// As `make_inception.py` has it: FNV-1a of the name, then SplitMix64 at every place.
fn uniform(name: &str, dims: &[usize]) -> Result<Tensor> {
    let start = name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
    });
    let value = |place: u64| {
        let mut z = start.wrapping_add(place.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 * 2f64.powi(-53)
    };
    let count = dims.iter().product::<usize>() as u64;
    Tensor::from_vec((1..=count).map(value).collect::<Vec<_>>(), dims, &Device::Cpu)
}

fn weights(key: &str, dims: &[usize]) -> Result<Tensor> {
    let u = uniform(key, dims)?;
    if key.ends_with("running_var") {
        return u + 0.5;
    }
    if dims.len() > 1 {
        let bound = (6. / dims[1..].iter().product::<usize>() as f64).sqrt();
        return u.affine(2. * bound, -bound);
    }
    let gain = if key.ends_with("bn.weight") { 1. } else { 0. };
    u.affine(0.4, gain - 0.2)
}

/// The network by the recording's weights, in f64, and its variables.
fn drawn(config: &InceptionConfig) -> Result<(InceptionV3, VarStore)> {
    let store = VarStore::new(0, DType::F64, &Device::Cpu);
    InceptionV3::new(config, store.builder())?;
    let draw = |(name, t): (String, Tensor)| Ok((name.clone(), weights(&name, t.dims())?));
    store.load(&store.tensors().into_iter().map(draw).collect::<Result<HashMap<_, _>>>()?)?;
    Ok((InceptionV3::new(config, store.frozen())?, store))
}

#[test]
fn both_variants_give_the_recorded_features_and_logits() -> Result<()> {
    let golden = Golden::open("inception")?;
    for variant in VARIANTS {
        let config = InceptionConfig::new(variant);
        let (network, _) = drawn(&config)?;
        let compare = |case: &str, images: &Tensor| -> Result<()> {
            let output = network.forward(images, &Context::eval())?;
            for (name, got) in [("pooled", output.tap("pooled")?), ("logits", &output.logits)] {
                let key = format!("{}.{case}.{name}", variant.name());
                // What f64 loses by being stored in f32.
                let stored = Tolerance::for_op(DType::F64, DType::F32, 1);
                assert_close(&key, got, &golden.get(&key)?, stored)?;
            }
            let grid = output.tap("grid")?;
            assert_eq!(grid.dim(1)?, config.features());
            Ok(())
        };
        compare("small", &uniform("small", &[2, 3, 75, 75])?.affine(2., -1.)?)?;
        let given: &[usize] = match variant {
            InceptionVariant::Torchvision => &[1, 3, 32, 32],
            InceptionVariant::Fid => &[1, 1, 28, 28],
        };
        compare("whole", &config.prepare(&uniform("whole", given)?.affine(2., -1.)?)?)?;
    }
    Ok(())
}

#[test]
fn keys_shapes_and_costs_are_torchs() -> Result<()> {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../vkd-testkit/golden/inception_keys.txt");
    let text = std::fs::read_to_string(path)?;
    for variant in VARIANTS {
        let (mut want, mut auxiliary, mut multiply_adds) = (BTreeMap::new(), 0, 0);
        for line in text.lines() {
            let [of, key, numbers] = line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            let numbers: Vec<usize> = numbers.split('x').map(|n| n.parse().unwrap()).collect();
            match key {
                _ if of != variant.name() => {}
                "multiply_adds" => multiply_adds = numbers[0],
                _ if !key.starts_with("AuxLogits.") => drop(want.insert(key.to_owned(), numbers)),
                _ if key.contains("running") => {}
                _ => auxiliary += numbers.iter().product::<usize>(),
            }
        }
        let config = InceptionConfig::new(variant);
        let got: BTreeMap<_, _> =
            config.variables()?.into_iter().map(|(n, s)| (n, s.into_dims())).collect();
        assert_eq!(got, want, "{variant:?}");
        let cost = config.cost()?;
        assert_eq!(cost.multiply_adds, multiply_adds, "{variant:?}");
        let (parameters, whole) = match variant {
            InceptionVariant::Torchvision => (23_834_568, 27_161_264),
            InceptionVariant::Fid => (23_850_960, 23_850_960),
        };
        assert_eq!((cost.parameters, cost.parameters + auxiliary), (parameters, whole));
        // And narrower.
        let small = narrow(variant);
        let store = VarStore::new(0, DType::F32, &Device::Cpu);
        InceptionV3::new(&small, store.builder())?;
        assert_eq!(small.cost()?.parameters, store.parameter_count());
        assert_eq!(small.features(), 128);
    }
    Ok(())
}

#[test]
fn images_are_prepared_as_stated() -> Result<()> {
    let config = narrow(InceptionVariant::Fid);
    let grey = normal(&[2, 1, 75, 75], DType::F64, 1)?;
    let prepared = config.prepare(&grey)?;
    assert_eq!(prepared.dims(), [2, 3, 75, 75]);
    for channel in 0..3 {
        assert_eq!(
            to_f64(&prepared.narrow(1, channel, 1)?)?,
            to_f64(&grey)?,
            "repeated, not blurred"
        );
    }
    // Between the pixels' middles: a doubled row of two goes from one to the other in quarters.
    let pair = Tensor::new(&[[[[-1f64, 1.]]]], &Device::Cpu)?;
    let wide = InceptionConfig { image_size: 76, ..config }.prepare(&pair)?;
    let row = to_f64(&wide.narrow(1, 0, 1)?.narrow(2, 0, 1)?)?;
    for (at, value) in row.iter().enumerate() {
        let want = ((at as f64 + 0.5) / 38. - 0.5).clamp(0., 1.) * 2. - 1.;
        assert!((value - want).abs() < 1e-12, "{at}: {value} {want}");
    }
    let wrong = config.prepare(&normal(&[1, 2, 75, 75], DType::F64, 1)?).unwrap_err();
    assert!(wrong.to_string().contains("(B, 1 or 3, H, W), got [1, 2, 75, 75]"), "{wrong}");
    Ok(())
}

#[test]
fn a_file_comes_back_and_another_is_refused_by_name() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = narrow(InceptionVariant::Torchvision);
    let (network, store) = drawn(&config)?;
    let images = normal(&[1, 3, 75, 75], DType::F32, 3)?;
    let mut tensors: HashMap<String, Tensor> = store.tensors().into_iter().collect();
    // What torchvision's file has beside.
    tensors
        .insert("AuxLogits.fc.weight".into(), Tensor::zeros((1000, 48), DType::F32, &Device::Cpu)?);
    let path = folder.path().join("inception.safetensors");
    let write = |tensors: &HashMap<String, Tensor>| candle_core::safetensors::save(tensors, &path);
    write(&tensors)?;
    let loaded = InceptionV3::load(&config, &path, &Device::Cpu)?;
    let got = loaded.forward(&images, &Context::eval())?;
    let want = network.forward(&images.to_dtype(DType::F64)?, &Context::eval())?;
    assert!(!got.logits.track_op());
    // The bound of the other models in f32.
    assert_close("f32", &got.logits, &want.logits, Tolerance::relative(1e-4))?;

    let says = |config: InceptionConfig| {
        let found = InceptionV3::load(&config, &path, &Device::Cpu);
        found.map(|_| ()).unwrap_err().to_string()
    };
    let other = says(narrow(InceptionVariant::Fid));
    assert!(other.contains("variant fid with 1008 classes"), "{other}");
    assert!(other.contains("fc.weight expected [1008, 128], got [1000, 128]"), "{other}");
    let wide = says(InceptionConfig { width: 4, ..config });
    assert!(wide.contains("Conv2d_1a_3x3.conv.weight expected [4, 3, 3, 3]"), "{wide}");
    for (key, value, part) in [
        ("Mixed_6c.branch7x7_2.conv.weight", f64::NAN, "expected finite weights, got NaN"),
        ("Mixed_5b.branch1x1.bn.running_var", -1., "expected variances of at least 0, got -1"),
    ] {
        let mut broken = tensors.clone();
        let whole = &tensors[key];
        broken.insert(key.into(), (whole.zeros_like()? + value)?);
        write(&broken)?;
        let message = says(config);
        assert!(message.contains(&format!("{key}: {part}")), "{message}");
    }
    tensors.remove("Mixed_7c.branch_pool.bn.bias");
    write(&tensors)?;
    let missing = says(config);
    assert!(missing.contains("1 missing (Mixed_7c.branch_pool.bn.bias)"), "{missing}");
    std::fs::write(&path, b"no tensors")?;
    assert!(says(config).contains("expected a whole safetensors file"));

    for (config, part) in [
        (InceptionConfig { image_size: 74, ..config }, "image_size: expected at least 75, got 74"),
        (InceptionConfig { width: 3, ..config }, "width: expected an even number above 0, got 3"),
        (InceptionConfig { width: 0, ..config }, "width: expected an even number above 0, got 0"),
    ] {
        let store = VarStore::new(0, DType::F32, &Device::Cpu);
        let e = InceptionV3::new(&config, store.builder()).map(|_| ()).unwrap_err().to_string();
        assert!(e.contains(part), "{e}");
    }
    let small = network.forward(&normal(&[1, 3, 74, 80], DType::F64, 1)?, &Context::eval());
    assert!(small.unwrap_err().to_string().contains("at least 75 pixels, got 74x80"));
    Ok(())
}
