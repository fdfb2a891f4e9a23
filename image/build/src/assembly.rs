//! The build from beginning to end: packages, root, initrd, UKI, disk, manifest.
//!
//! Each step is in its own file; here is their order. Results appear in the output folder under their final name only
//! when they are complete, `release.json` last.

use crate::{
    apt,
    cache::{self, Cache},
    initrd,
    kernel::Kernel,
    lock::{Lock, Package},
    modules,
    packages::Wanted,
    profile::Profile,
    release::{Artefact, Release},
    rootfs::{self, Packages},
    squashfs,
    tree::{Content, Node, Tree},
    usb,
};
use anyhow::{Context, Result, bail};
use beemesh_firmware_measure::{check_stub, predict_pcr11};
use beemesh_firmware_uki::{Section, SectionName, assemble, sections};
use beemesh_ids::Digest;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

/// What a build is made from.
pub struct Inputs {
    /// Pinned packages.
    pub lock: Lock,
    /// What is taken from them.
    pub wanted: Wanted,
    /// For which machines.
    pub profile: Profile,
    /// Folders with our binaries.
    pub binaries: Vec<PathBuf>,
    /// Where results go.
    pub out: PathBuf,
    /// Where intermediate results are kept.
    pub cache: PathBuf,
    /// Version of the release.
    pub version: String,
}

/// The largest UKI, bytes: three fit on the default ESP.
const MAX_UKI: usize = 80_000_000;
const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";
const BOOT_LOADER: &str = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";
const LOADER_CONF: &str = "timeout 0\nconsole-mode keep\neditor no\n";

/// Builds everything.
pub fn build(inputs: &Inputs) -> Result<()> {
    let start = Instant::now();
    check_version(&inputs.version)?;
    inputs.lock.check_wanted(&inputs.wanted.resolve)?;
    let cache = Cache::open(&inputs.cache, cache::MAX_BYTES)?;
    let kernel_package = inputs.lock.only("linux-image-")?;
    let mut packages = Packages { roots: Vec::new() };
    for package in &inputs.lock.packages {
        packages.roots.push(unpack(package, &cache)?);
    }
    let kernel_root = unpack(kernel_package, &cache)?;
    let kernel = Kernel::open(&kernel_root, &kernel_package.digest, &cache)?;
    let time = inputs.lock.resolved;

    let mut root = rootfs::compose(&packages, &inputs.wanted.root, &inputs.binaries)?;
    let root_modules = modules::install(
        &kernel,
        &inputs.profile.root,
        &cache,
        &mut root,
        "usr/lib/modules",
    )?;
    let mut initrd_tree = initrd_tree(inputs)?;
    let initrd_modules = modules::install(
        &kernel,
        &inputs.profile.initrd,
        &cache,
        &mut initrd_tree,
        "lib/modules",
    )?;

    let vmlinuz = read(&kernel.image)?;
    let build_id = build_id(inputs, &root, &initrd_tree, &vmlinuz)?;
    let os_release = os_release(&inputs.version, &build_id);
    root.text("usr/lib/os-release", &os_release)?;
    // Its time is the earliest that a machine believes, as systemd and others read it.
    root.text("usr/lib/clock-epoch", "")?;
    let root_image = squashfs::pack(&root, time, &cache)?;
    initrd_tree.copy("root.img", 0o400, &root_image)?;
    let initrd = initrd::pack(&initrd_tree, time)?;

    let find = |path| {
        packages
            .find(path)
            .with_context(|| format!("no locked package has `{path}`"))
    };
    let stub = read(&find(STUB)?)?;
    let uki = assemble(
        &stub,
        &[
            Section {
                name: SectionName::Osrel,
                content: os_release.as_bytes(),
            },
            Section {
                name: SectionName::Cmdline,
                content: inputs.profile.cmdline.as_bytes(),
            },
            Section {
                name: SectionName::Uname,
                content: kernel.release.as_bytes(),
            },
            Section {
                name: SectionName::Initrd,
                content: &initrd,
            },
            Section {
                name: SectionName::Linux,
                content: &vmlinuz,
            },
        ],
    )
    .context("failed to assemble the UKI")?;
    if uki.len() > MAX_UKI {
        bail!(
            "the UKI has {} bytes, more than {MAX_UKI}: ship fewer modules or smaller binaries",
            uki.len()
        );
    }

    let pcr11 = predict(&stub, &uki)?;
    let names = Names::of(&inputs.version);
    fs::create_dir_all(&inputs.out).with_context(|| format!("failed to make `{}`", inputs.out.display()))?;
    put(&inputs.out, "vmlinuz", &vmlinuz)?;
    put(&inputs.out, "initrd.cpio", &initrd)?;
    put(&inputs.out, &names.uki, &uki)?;
    let seed = Digest::of(&uki);
    let mut esp = Tree::default();
    esp.copy("EFI/BOOT/BOOTX64.EFI", 0o644, &find(BOOT_LOADER)?)?;
    esp.copy(
        &format!("EFI/Linux/{}", names.uki),
        0o644,
        &inputs.out.join(&names.uki),
    )?;
    esp.text("loader/loader.conf", LOADER_CONF)?;
    let plan = beemesh_image_disk::plan_usb(inputs.profile.disk.sizes(), seed.as_bytes())?;
    let file = tempfile::NamedTempFile::new_in(&inputs.out)?;
    usb::write(file.path(), &plan, &esp, time)?;
    persist(file, &inputs.out.join(&names.disk))?;

    let artefacts = [names.uki.as_str(), "vmlinuz", "initrd.cpio", &names.disk];
    let release = Release {
        version: inputs.version.clone(),
        build_id,
        profile: inputs.profile.description.clone(),
        kernel: kernel.release.clone(),
        pcr11,
        artefacts: artefacts
            .iter()
            .map(|name| Artefact::of(&inputs.out, name))
            .collect::<Result<_>>()?,
        packages: inputs.lock.packages.clone(),
    };
    release.write(&inputs.out)?;
    cache.trim()?;
    println!(
        "{} ({}), kernel {}",
        inputs.version, release.build_id, kernel.release
    );
    println!(
        "{} modules in the root, {} in the initrd",
        root_modules.len(),
        initrd_modules.len()
    );
    for artefact in &release.artefacts {
        println!(
            "{:>12} {} {}",
            artefact.size,
            artefact.digest,
            inputs.out.join(&artefact.name).display()
        );
    }
    println!("built in {:.1} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// PCR 11 after the stub has measured the image that it is in.
fn predict(stub: &[u8], uki: &[u8]) -> Result<Digest> {
    let stub = sections(stub).context("failed to read the stub")?;
    let magic = stub.iter().find(|section| section.name == ".sdmagic");
    check_stub(magic.map(|section| section.content).unwrap_or_default())
        .context("PCR 11 cannot be predicted")?;
    let uki = sections(uki).context("failed to read the UKI back")?;
    Ok(predict_pcr11(
        uki.iter().map(|section| (section.name.as_str(), section.content)),
    ))
}

struct Names {
    uki: String,
    disk: String,
}

impl Names {
    fn of(version: &str) -> Self {
        Self {
            uki: format!("beemesh_{version}.efi"),
            disk: format!("beemesh_{version}.img"),
        }
    }
}

/// The version becomes a file name on the ESP, where `+` starts a boot counter.
fn check_version(version: &str) -> Result<()> {
    let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '~' | '^');
    if version.is_empty() || version.len() > 64 || !version.chars().all(sound) {
        bail!("`{version}` is not a version: 1 to 64 of a-z, A-Z, 0-9, `.`, `-`, `~` and `^`");
    }
    Ok(())
}

fn unpack(package: &Package, cache: &Cache) -> Result<PathBuf> {
    let unpack_from_archive = |target: &Path| {
        let deb = cache.get("deb", &package.digest, |path| apt::download(package, path))?;
        fs::create_dir(target)?;
        apt::output(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(target)).map(drop)
    };
    let unpacked = cache.get("unpacked", &package.digest, unpack_from_archive);
    unpacked.with_context(|| format!("failed to get package `{}`", package.name))
}

fn initrd_tree(inputs: &Inputs) -> Result<Tree> {
    let mut tree = Tree::default();
    for path in ["dev", "proc", "run", "sys", "newroot"] {
        tree.directory(path, 0o755)?;
    }
    // The kernel opens it for PID 1 before anything can be mounted.
    tree.insert(
        "dev/console",
        Node::CharDevice {
            mode: 0o600,
            major: 5,
            minor: 1,
        },
    )?;
    tree.copy(
        "init",
        0o755,
        &rootfs::find_binary(&inputs.binaries, "beemesh-init")?,
    )?;
    Ok(tree)
}

fn build_id(inputs: &Inputs, root: &Tree, initrd: &Tree, vmlinuz: &[u8]) -> Result<String> {
    let all = format!(
        "{} {} {} {} {} {}",
        inputs.version,
        inputs.profile.cmdline,
        inputs.lock.resolved,
        root.fingerprint()?,
        initrd.fingerprint()?,
        Digest::of(vmlinuz)
    );
    Ok(Digest::of(all.as_bytes()).hex().chars().take(12).collect())
}

fn os_release(version: &str, build_id: &str) -> String {
    format!(
        "NAME=\"Beemesh OS\"\nID=beemesh\nPRETTY_NAME=\"Beemesh OS {version}\"\nVERSION_ID={version}\n\
         BUILD_ID={build_id}\nIMAGE_ID=beemesh\nIMAGE_VERSION={version}\n"
    )
}

fn read(path: &Path) -> Result<Vec<u8>> {
    Content::File(path.to_owned()).read()
}

fn put(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    std::io::Write::write_all(&mut file, bytes).with_context(|| format!("failed to write `{name}`"))?;
    persist(file, &folder.join(name))
}

fn persist(file: tempfile::NamedTempFile, target: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.as_file()
        .set_permissions(fs::Permissions::from_mode(0o644))?;
    file.persist(target)
        .with_context(|| format!("failed to put `{}` in place", target.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_would_confuse_the_boot_counter_are_refused() {
        for good in ["0.1.0", "1.2.3~rc1", "2026-11"] {
            check_version(good).unwrap();
        }
        for bad in ["", "1+3", "1/2", "1 2", "ä", &"1".repeat(65)] {
            assert!(check_version(bad).is_err(), "{bad}");
        }
    }
}
