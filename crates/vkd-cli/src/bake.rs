//! `vkd bake`: parametrised weights to plain ones.

use crate::tensor_file::Parametrised;
use candle_core::{Error, Result, bail};
use std::path::PathBuf;
use vkd_models::{TensorEntry, TensorFile, write_atomically};
use vkd_ortho::OrthogonalMap;

/// A baked weight that is further from orthonormal than half types round is worth a warning.
const LARGEST: f64 = 1e-2;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// File to read: .safetensors, or .pth and .pt of torch.save
    input: PathBuf,
    /// Safetensors file to write
    output: PathBuf,
    /// Key of the state dict inside a .pth or .pt file, `model` for one
    #[arg(long)]
    key: Option<String>,
    /// Map of every weight: householder, cayley or matrix_exp [default for PyTorch's: matrix_exp if square, else householder]
    #[arg(long, value_parser = map)]
    map: Option<OrthogonalMap>,
    /// Replace an existing output
    #[arg(long)]
    overwrite: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let out = args.output.display();
    if same(args) {
        bail!("bake: expected an output other than the input, got {out} for both")
    }
    if args.output.extension().is_none_or(|e| e != "safetensors") {
        bail!("{out}: expected an output named .safetensors")
    }
    if args.output.exists() && !args.overwrite {
        bail!("{out}: expected a new file, got one that exists; --overwrite replaces it")
    }
    let mut file = TensorFile::read(&args.input, args.key.as_deref())?;
    let found = Parametrised::find(&file.entries)?;
    if found.is_empty() {
        bail!(
            "{}: expected parametrised weights (X.parametrizations.weight.original, or X.raw with X.base), got none",
            args.input.display()
        )
    }
    let mut table = format!("{:<32} {:<14} {:<22} residual\n", "weight", "shape", "map");
    for weight in &found {
        let built = weight.build(&file.entries, args.map)?;
        let map = format!("{}{}", built.map, if args.map.is_none() { " (default)" } else { "" });
        let shape = format!("{:?}", built.weight.dims());
        table.push_str(&format!(
            "{:<32} {shape:<14} {map:<22} {:.1e}\n",
            weight.name, built.residual
        ));
        if let Some(fault) = built.fault {
            crate::note(&format!("warning: {}: not orthonormal: {fault}", weight.name));
        } else if !(built.residual <= LARGEST) {
            crate::note(&format!(
                "warning: {}: not orthonormal: residual {:.1e}",
                weight.name, built.residual
            ));
        }
        if let (false, [n, k]) = (weight.torch, built.weight.dims())
            && n != k
        {
            crate::note(&format!(
                "warning: {}: written as {n} x {k}; a layer from {n} to {k} features needs its transpose, which the file does not tell",
                weight.name
            ));
        }
        if weight.torch && weight.keys.len() == 1 {
            crate::note(&format!(
                "warning: {}: has no base; taken for orthogonal without trivialisation, which the file does not say",
                weight.name
            ));
        }
        for key in &weight.keys {
            file.entries.remove(key);
        }
        file.entries.insert(weight.name.clone(), TensorEntry::of(&built.weight)?);
    }
    let views = file.entries.iter().map(|(k, e)| Ok((k, e.view()?))).collect::<Result<Vec<_>>>()?;
    let bytes = safetensors::serialize(views, file.metadata).map_err(Error::wrap)?;
    write_atomically(&args.output, &bytes)?;
    crate::print(&format!("{table}{} tensors written to {out}\n", file.entries.len()))
}

/// Whether input and output are one file, whatever their spelling.
fn same(args: &Args) -> bool {
    let full = |p: &PathBuf| p.canonicalize().ok();
    args.input == args.output
        || full(&args.input).is_some_and(|input| full(&args.output) == Some(input))
}

fn map(name: &str) -> std::result::Result<OrthogonalMap, String> {
    name.parse().map_err(|e| vkd_train::plain(&e))
}
