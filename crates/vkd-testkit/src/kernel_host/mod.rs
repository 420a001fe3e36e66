//! CUDA kernels on the host, with the sanitizers of its compiler watching.
//!
//! A kernel's source is compiled as C++ together with `emulator.h`, which maps the threads of a block to threads of the
//! host. So indexing, bounds, reductions and barriers are proved on a machine that has neither a GPU nor CUDA. What it
//! can't show is speed, and what a device's own arithmetic rounds otherwise.

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

const EMULATOR: &str = include_str!("emulator.h");

/// What watches a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sanitizer {
    /// Steps outside of a buffer, use of what is freed, undefined behaviour.
    Memory,
    /// Two threads at one place without a barrier between them.
    Races,
}

/// The kernels of one source file, compiled for the host.
pub struct KernelHost {
    folder: TempDir,
    program: PathBuf,
    sanitizer: Sanitizer,
}

impl KernelHost {
    /// Compiles `source` with the folders `include`; `None`, with a line on standard error, where there is no g++ or it
    /// has no such sanitizer.
    ///
    /// # Errors
    /// A source that does not compile, with the compiler's words.
    pub fn compile(source: &Path, include: &[&Path], sanitizer: Sanitizer) -> Result<Option<Self>> {
        let folder = tempfile::tempdir()?;
        let flag = match sanitizer {
            Sanitizer::Memory => "-fsanitize=address,undefined",
            Sanitizer::Races => "-fsanitize=thread",
        };
        // A tool that is absent may skip the test; a kernel that does not compile may not.
        let probe = folder.path().join("probe.cpp");
        std::fs::write(&probe, "#include <pthread.h>\nint main() { return 0; }\n")?;
        let mut tool = Command::new("g++");
        let tool =
            tool.args([flag, "-pthread"]).arg(&probe).arg("-o").arg(folder.path().join("probe"));
        let works = tool.output().is_ok_and(|out| out.status.success())
            && Command::new(folder.path().join("probe")).output().is_ok_and(|o| o.status.success());
        if !works {
            eprintln!(
                "SKIPPED: no g++ with {flag}, so {} does not run on the host",
                source.display()
            );
            return Ok(None);
        }
        let header = folder.path().join("emulator.h");
        std::fs::write(&header, EMULATOR)?;
        let program = folder.path().join("kernels");
        let mut compiler = Command::new("g++");
        compiler.args(["-std=c++17", "-O1", "-g1", "-pthread", "-Wall", "-Wextra", "-Werror"]);
        compiler.args(["-Wno-unknown-pragmas", "-fno-sanitize-recover=all", flag]);
        compiler.arg("-include").arg(&header);
        for folder in include {
            compiler.arg("-I").arg(folder);
        }
        compiler.args(["-x", "c++"]).arg(source).arg("-o").arg(&program);
        let out = compiler.output()?;
        if !out.status.success() {
            bail!("{}: does not compile for the host:\n{}", source.display(), words(&out))
        }
        Ok(Some(Self { folder, program, sanitizer }))
    }

    /// Runs the launches of `script` on `inputs`, dense tensors that may start at an offset, and returns the buffers
    /// `outputs`: number, dtype and shape of each.
    ///
    /// The script says `buffer BYTES` for each buffer, which is not zero at first, `table COUNT` and its words of eight bytes for
    /// each table, `i0` the address of an input and `u1` a number, and for each launch
    /// `launch KERNEL GRID BLOCK SHARED COUNT` and its arguments: `i0` an input, `b0` a buffer, `t0` a table, `n` no buffer, `d1.5`
    /// a number.
    ///
    /// # Errors
    /// Whatever a sanitizer or the emulator found, with its words.
    pub fn run(
        &self,
        script: &str,
        inputs: &[&Tensor],
        outputs: &[(usize, DType, Vec<usize>)],
    ) -> Result<Vec<Tensor>> {
        self.launch(script, inputs, outputs, &[])
    }

    /// As [`run`](Self::run), of launches that write some of their inputs in place: what is in the inputs `changed` afterwards. The
    /// tensors that were given stay as they are.
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    pub fn run_in_place(
        &self,
        script: &str,
        inputs: &[&Tensor],
        changed: &[usize],
    ) -> Result<Vec<Tensor>> {
        self.launch(script, inputs, &[], changed)?;
        let read = |i: &usize| {
            let (input, bytes) = (inputs[*i], std::fs::read(self.changed(*i))?);
            let (dtype, shape) = (input.dtype(), input.shape());
            let start = bytes_of(input)?.1;
            let end = start + input.elem_count() * dtype.size_in_bytes();
            Tensor::from_raw_buffer(&bytes[start..end], dtype, shape.dims(), &Device::Cpu)
        };
        changed.iter().map(read).collect()
    }

    fn launch(
        &self,
        script: &str,
        inputs: &[&Tensor],
        outputs: &[(usize, DType, Vec<usize>)],
        changed: &[usize],
    ) -> Result<Vec<Tensor>> {
        let mut text = String::new();
        for (i, input) in inputs.iter().enumerate() {
            let (bytes, offset) = bytes_of(input)?;
            let path = self.folder.path().join(format!("input{i}"));
            std::fs::write(&path, &bytes)?;
            text += &format!("input {} {offset} {}\n", bytes.len(), path.display());
        }
        text += script;
        for (buffer, ..) in outputs {
            text += &format!("output {buffer} {}\n", self.output(*buffer).display());
        }
        for input in changed {
            text += &format!("changed {input} {}\n", self.changed(*input).display());
        }
        let path = self.folder.path().join("script");
        std::fs::write(&path, text)?;
        let mut command = Command::new(&self.program);
        // Threads are many and short: keep what each costs small, and report the first fault only.
        command.env("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0");
        command.env("TSAN_OPTIONS", "halt_on_error=1:history_size=0");
        let out = command.arg(&path).output()?;
        if !out.status.success() {
            bail!("{:?} sanitizer, {}:\n{}\n{script}", self.sanitizer, out.status, words(&out))
        }
        let read = |(buffer, dtype, shape): &(usize, DType, Vec<usize>)| {
            let bytes = std::fs::read(self.output(*buffer))?;
            let count: usize = shape.iter().product();
            let bytes = &bytes[..bytes.len().min(count * dtype.size_in_bytes())];
            Tensor::from_raw_buffer(bytes, *dtype, shape, &Device::Cpu)
        };
        outputs.iter().map(read).collect()
    }

    fn output(&self, buffer: usize) -> PathBuf {
        self.folder.path().join(format!("output{buffer}"))
    }

    fn changed(&self, input: usize) -> PathBuf {
        self.folder.path().join(format!("changed{input}"))
    }
}

fn words(out: &Output) -> String {
    let text = String::from_utf8_lossy(&out.stderr);
    text.chars().take(6000).collect()
}

/// The whole storage behind a dense tensor, and where the tensor starts in it, in bytes.
fn bytes_of(tensor: &Tensor) -> Result<(Vec<u8>, usize)> {
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, _)) = layout.contiguous_offsets() else {
        bail!("kernel host: expected a dense tensor, got {layout:?}")
    };
    let Storage::Cpu(storage) = &*storage else { bail!("kernel host: expected a CPU tensor") };
    let bytes: Vec<u8> = match storage {
        CpuStorage::U8(v) => v.clone(),
        CpuStorage::U32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        CpuStorage::F16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        CpuStorage::BF16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        CpuStorage::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        CpuStorage::F64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        _ => bail!("kernel host: no {:?} here", tensor.dtype()),
    };
    Ok((bytes, start * tensor.dtype().size_in_bytes()))
}

#[cfg(test)]
mod tests;
