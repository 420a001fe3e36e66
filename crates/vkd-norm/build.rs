//! With the feature `cuda`: the kernels beside the ops to PTX. Without it: nothing but where their headers are.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/ops");
    // vkd-loss and vkd-nn include the same header; cargo hands them this as DEP_VKD_NORM_KERNELS_INCLUDE.
    println!("cargo::metadata=include={}/src/ops", std::env::var("CARGO_MANIFEST_DIR")?);
    #[cfg(feature = "cuda")]
    {
        // One .ptx a file into OUT_DIR, from where `cuda.rs` includes it.
        cudaforge::KernelBuilder::new()
            .source_glob("src/ops/*/*.cu")
            .watch(["src/ops/common.cuh", "src/ops/moments.cuh", "src/ops/tiles.cuh"])
            .watch(["polynomial", "shrink", "spectrum"].map(|n| format!("src/ops/whiten/{n}.cuh")))
            .include_path("src/ops")
            .args(["-std=c++17", "-O3"])
            .build_ptx()?;
    }
    Ok(())
}
