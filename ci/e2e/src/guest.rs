//! Guests that boot the product's kernel without firmware, around a root file system that a story makes by hand.

use crate::binaries::{Binaries, expect_success};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a tool of the host; what it prints.
///
/// # Errors
/// It is missing or fails; the error carries what it said.
pub fn tool(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .context("a tool is missing: run `cargo xtask setup`")?;
    expect_success(&format!("{command:?}"), &output)
}

/// The modules of the built image's kernel, as its package has them: `<…>/kernel`. The package's digest names the folder.
pub fn kernel_modules(binaries: &Binaries) -> Result<PathBuf> {
    let release = binaries.release()?;
    let packages = release["packages"].as_array().into_iter().flatten();
    let mut digests = packages.filter_map(|package| {
        let name = package["name"].as_str()?;
        let version = name.strip_prefix("linux-image-")?;
        let digest = package["digest"].as_str()?.strip_prefix("sha256:")?;
        version
            .starts_with(|c: char| c.is_ascii_digit())
            .then_some(digest)
    });
    let digest = digests.next().context("the release names no kernel package")?;
    let version = release["kernel"]
        .as_str()
        .context("the release names no kernel")?;
    let cache = binaries
        .target
        .join("image/cache")
        .join(format!("unpacked-{digest}"));
    Ok(cache.join("lib/modules").join(version).join("kernel"))
}

/// Copies modules (paths below `kernel/`) to `to`; one that the kernel has built in is passed over.
pub fn copy_modules(binaries: &Binaries, modules: &[&str], to: &Path) -> Result<()> {
    let from = kernel_modules(binaries)?;
    fs::create_dir_all(to)?;
    for module in modules {
        let file = from.join(module);
        let name = file.file_name().context("a module has a name")?;
        if file.exists() {
            fs::copy(&file, to.join(name)).with_context(|| format!("failed to copy `{}`", file.display()))?;
        }
    }
    Ok(())
}

/// Copies a program to the same place below `root`, with the libraries that it is linked with.
pub fn copy_program(program: &Path, root: &Path) -> Result<()> {
    let linked = Command::new("ldd").arg(program).output()?;
    let text = expect_success("ldd", &linked)?;
    let libraries = text
        .split_whitespace()
        .filter(|word| word.starts_with('/') && word.contains(".so"))
        .map(Path::new);
    for file in libraries.chain([program]) {
        let place = root.join(file.strip_prefix("/").unwrap_or(file));
        fs::create_dir_all(place.parent().context("a file lies in a folder")?)?;
        fs::copy(file, &place).with_context(|| format!("failed to copy `{}`", file.display()))?;
    }
    Ok(())
}

/// Packs `root` as an initramfs.
pub fn pack(root: &Path, initrd: &Path) -> Result<()> {
    let line = "find . | LC_ALL=C sort | cpio --quiet -o -H newc > \"$0\"";
    let mut sh = Command::new("sh");
    let packed = sh
        .arg("-c")
        .arg(line)
        .arg(initrd)
        .current_dir(root)
        .output()
        .context("failed to start sh")?;
    expect_success("packing the initramfs", &packed).map(drop)
}
