#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use std::collections::BTreeMap;

use vkd_simt::Module;

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
