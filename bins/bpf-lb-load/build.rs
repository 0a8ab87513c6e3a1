//! Builds the kernel side with a toolchain that has the sources of `core`, and puts it beside the loader.
//!
//! Without such a toolchain an empty file takes its place, so that the rest can be checked; the loader refuses it.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const TOOLCHAIN: &str = "BPF_RUSTC";
/// A directory that builds of other profiles share, so that the programs, which are the same for all, are built once.
const SHARED: &str = "BPF_TARGET_DIR";

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let target_dir = env::var_os(SHARED).map_or_else(|| out.join("target"), PathBuf::from);
    let object = out.join("bpf-lb");
    println!("cargo::rerun-if-changed=abi");
    println!("cargo::rerun-if-changed=ebpf");
    println!("cargo::rerun-if-env-changed={TOOLCHAIN}");
    println!("cargo::rustc-check-cfg=cfg(bpf_lb_missing)");
    if let Err(missing) = build(&target_dir, &object) {
        println!("cargo::warning=the socket load balancer's kernel side was not built: {missing}");
        println!("cargo::rustc-env=BPF_LB_MISSING={missing}");
        println!("cargo::rustc-cfg=bpf_lb_missing");
        // No such file: look again at the next build.
        println!("cargo::rerun-if-changed={}", out.join("missing").display());
        if let Err(error) = fs::write(&object, []) {
            println!("cargo::error={}: {error}", object.display());
        }
    }
}

fn build(target_dir: &Path, object: &Path) -> Result<(), String> {
    if Command::new("bpf-linker").arg("--version").output().is_err() {
        return Err("bpf-linker is not on the PATH: cargo install --locked bpf-linker".into());
    }
    let rustc = rustc_with_core().ok_or(
        "no rustc with the sources of core: rustup toolchain install nightly --component rust-src, \
         or Debian's packages rustc-web and rust-web-src, or set BPF_RUSTC",
    )?;
    let target = if env::var("CARGO_CFG_TARGET_ENDIAN").is_ok_and(|endian| endian == "big") {
        "bpfeb-unknown-none"
    } else {
        "bpfel-unknown-none"
    };
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let arch = format!("--cfg=bpf_target_arch=\"{arch}\"");
    // Paths that the build is asked not to show are not shown by the programs' line numbers either.
    let asked = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let hidden = asked.split('\x1f').filter(|flag| flag.starts_with("--remap-path-prefix="));
    let flags: Vec<_> = ["-Cdebuginfo=2", "-Clink-arg=--btf", &arch].into_iter().chain(hidden).collect();
    let flags = flags.join("\x1f");
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "build",
            "--release",
            "--package",
            "bpf-lb-ebpf",
            "-Zbuild-std=core",
            "--target",
            target,
            "--target-dir",
        ])
        .arg(target_dir)
        // The profile of the workspace is for the size of the tools; the linker does the rest of the work here.
        .args(
            ["opt-level=3", "lto=false", "strip=\"none\""]
                .iter()
                .flat_map(|set| ["--config".into(), format!("profile.release.{set}")]),
        )
        .env("RUSTC", &rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        // Nor is a profile that the environment sets: what the verifier says of a program depends on it.
        .env_remove("CARGO_PROFILE_RELEASE_LTO")
        .env_remove("CARGO_PROFILE_RELEASE_CODEGEN_UNITS")
        .env_remove("CARGO_PROFILE_RELEASE_INCREMENTAL")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTUP_TOOLCHAIN")
        .status()
        .map_err(|error| format!("cargo did not start: {error}"))?;
    if !status.success() {
        return Err("cargo could not build it, see its messages above".into());
    }
    let built = target_dir.join(target).join("release/bpf-lb");
    fs::copy(&built, object).map_err(|error| format!("{}: {error}", built.display()))?;
    Ok(())
}

/// The first compiler whose own sources are installed: the one that is asked for, those on the PATH, rustup's nightly.
fn rustc_with_core() -> Option<PathBuf> {
    let asked = env::var_os(TOOLCHAIN).map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<_> =
        env::split_paths(&path).map(|folder| folder.join("rustc")).filter(|rustc| rustc.is_file()).collect();
    let plain = asked.into_iter().chain(on_path.clone()).map(|rustc| (rustc, None));
    let nightly = on_path.into_iter().map(|rustc| (rustc, Some("+nightly")));
    plain.chain(nightly).find_map(|(rustc, toolchain)| {
        let sysroot = sysroot(&rustc, toolchain)?;
        let core = sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs");
        let own = sysroot.join("bin/rustc");
        (core.is_file() && own.is_file()).then_some(own)
    })
}

fn sysroot(rustc: &Path, toolchain: Option<&str>) -> Option<PathBuf> {
    let output = Command::new(rustc)
        .env_remove("RUSTUP_TOOLCHAIN")
        .args(toolchain)
        .args(["--print", "sysroot"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(OsString::from(text.trim())))
}
