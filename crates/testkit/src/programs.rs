//! Where the programs are.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// A program of this workspace (`mosn`, `pilot`, `meshctl`), as cargo built it beside the running test.
pub fn own(name: &str) -> Result<PathBuf> {
    let path = build_folder()?.join(name);
    if !path.is_file() {
        bail!(
            "{} is not there: run `cargo build --workspace --bins` first",
            path.display()
        );
    }
    Ok(path)
}

/// The real Envoy: from `$MESH_TOOLS/bin`, from `PATH`, or below the target folder, where `scripts/setup test` puts it.
pub fn envoy() -> Result<PathBuf> {
    if let Some(found) = find_envoy() {
        return Ok(found);
    }
    let setup = workspace().join("scripts/setup");
    let status = Command::new(&setup)
        .arg("test")
        .env("CARGO_TARGET_DIR", target_folder()?)
        .status()
        .with_context(|| format!("{}", setup.display()))?;
    if !status.success() {
        bail!("{} test: {status}", setup.display());
    }
    find_envoy().context("envoy is not there although scripts/setup succeeded")
}

fn find_envoy() -> Option<PathBuf> {
    let tools = env::var_os("MESH_TOOLS").map(PathBuf::from);
    let below_target = target_folder().ok().map(|target| target.join("tools"));
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = tools
        .into_iter()
        .chain(below_target)
        .map(|folder| folder.join("bin"));
    folders
        .chain(env::split_paths(&path))
        .map(|folder| folder.join("envoy"))
        .find(|candidate| candidate.is_file())
}

/// A program that `make peers` builds into its cache, if it is there.
pub fn peer(name: &str) -> Option<PathBuf> {
    let home = || env::var_os("HOME").map(|home| Path::new(&home).join(".cache/sofamesh-peers"));
    let cache = env::var_os("MESH_PEERS").map(PathBuf::from).or_else(home)?;
    let program = cache.join("bin").join(name);
    program.is_file().then_some(program)
}

/// The folder of the workspace's sources.
pub fn workspace() -> &'static Path {
    let this_crate = Path::new(env!("CARGO_MANIFEST_DIR"));
    this_crate.ancestors().nth(2).unwrap_or(this_crate)
}

/// Cargo's target folder.
pub fn target_folder() -> Result<PathBuf> {
    let build = build_folder()?;
    build
        .parent()
        .map(Path::to_path_buf)
        .context("the test does not run from a target folder")
}

/// The folder of the running profile, `target/debug` usually: the test itself is in `deps` below it.
fn build_folder() -> Result<PathBuf> {
    let test = env::current_exe()?;
    let folder = test
        .ancestors()
        .nth(2)
        .context("the test does not run from a target folder")?;
    Ok(folder.to_path_buf())
}
