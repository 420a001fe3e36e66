//! With the feature `cuda`: the kernels beside the ops to PTX. Without it: nothing.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/ops");
    #[cfg(feature = "cuda")]
    {
        // vkd-norm's build script says where the header is that the kernels share.
        let include = std::env::var("DEP_VKD_NORM_KERNELS_INCLUDE")?;
        // One .ptx a file into OUT_DIR, from where `cuda.rs` includes it.
        cudaforge::KernelBuilder::new()
            .source_glob("src/ops/*/*.cu")
            .watch(["src/ops/inverse.cuh", "src/ops/matrices.cuh"])
            .watch([format!("{include}/common.cuh"), format!("{include}/tiles.cuh")])
            .include_path(include)
            .args(["-std=c++17", "-O3"])
            .build_ptx()?;
    }
    Ok(())
}
