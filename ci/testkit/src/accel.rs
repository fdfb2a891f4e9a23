//! What executes a machine: the CPU itself (KVM) or QEMU's translator (TCG).
//!
//! `/dev/kvm` alone proves nothing: there are hosts where it opens and then no kernel gets anywhere. So KVM is used
//! only after a kernel has reached user space with it. Invariant: nothing here returns [`Accel::Kvm`] without that
//! proof, for this kernel and since this host was started.

use crate::machine::{Machine, MachineConfig};
use crate::probe;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::{Duration, Instant, UNIX_EPOCH};

/// How long the probe's kernel has.
pub const PROBE: Duration = Duration::from_secs(10);

/// What executes a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// QEMU's translator: works everywhere, and is slow.
    Tcg,
    /// The host's CPU.
    Kvm,
}

/// What was chosen, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// What to use.
    pub accel: Accel,
    /// A sentence for the person who wonders.
    pub reason: String,
}

/// The choice on disk, with what it was made for.
#[derive(Debug, Serialize, Deserialize)]
struct Cached {
    choice: Choice,
    evidence: String,
}

impl Accel {
    /// Chooses for machines that run `kernel`, by a probe with it whose result is kept in the file `cache`. The
    /// environment's `BEEMESH_ACCEL=tcg` skips the probe; `BEEMESH_ACCEL=kvm` insists on KVM: it probes again and
    /// fails where KVM does not work.
    ///
    /// # Errors
    /// When the kernel or the cache cannot be used, `BEEMESH_ACCEL` has another value, or KVM is insisted on in vain.
    pub fn choose(kernel: &Path, cache: &Path) -> Result<Choice> {
        let wish = std::env::var("BEEMESH_ACCEL").ok();
        Self::choose_with(wish.as_deref(), kernel, cache, Self::probe)
    }

    fn choose_with(
        wish: Option<&str>,
        kernel: &Path,
        cache: &Path,
        probe: impl Fn(&Path) -> Result<Choice>,
    ) -> Result<Choice> {
        match wish {
            Some("tcg") => {
                return Ok(Choice {
                    accel: Self::Tcg,
                    reason: "`BEEMESH_ACCEL=tcg` asks for it".to_owned(),
                });
            }
            Some("kvm") => {
                let choice = probe(kernel)?;
                if choice.accel != Self::Kvm {
                    bail!("`BEEMESH_ACCEL=kvm` insists on kvm, but {}", choice.reason);
                }
                return Ok(choice);
            }
            None | Some("") => {}
            Some(other) => bail!("`BEEMESH_ACCEL` is `{other}`: use `tcg`, `kvm`, or leave it out"),
        }
        let evidence = evidence(kernel)?;
        let cached = std::fs::read(cache)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Cached>(&bytes).ok());
        if let Some(cached) = cached
            && cached.evidence == evidence
        {
            return Ok(cached.choice);
        }
        let choice = probe(kernel)?;
        let text = serde_json::to_vec_pretty(&Cached {
            choice: choice.clone(),
            evidence,
        })?;
        if let Some(folder) = cache.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("failed to make `{}`", folder.display()))?;
        }
        std::fs::write(cache, text).with_context(|| format!("failed to write `{}`", cache.display()))?;
        Ok(choice)
    }

    /// Boots `kernel` under KVM with a program that says one line and powers off. The answer is TCG, with the
    /// reason, when that does not happen within [`PROBE`].
    ///
    /// # Errors
    /// When the probe itself cannot be prepared.
    pub fn probe(kernel: &Path) -> Result<Choice> {
        let tcg = |reason: String| {
            Ok(Choice {
                accel: Self::Tcg,
                reason,
            })
        };
        if let Err(e) = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
        {
            return tcg(format!("`/dev/kvm` cannot be used: {e}"));
        }
        let started = Instant::now();
        match reaches_user_space(kernel, Self::Kvm, PROBE)? {
            Ok(()) => Ok(Choice {
                accel: Self::Kvm,
                reason: format!(
                    "a kernel reached user space with kvm in {} ms",
                    started.elapsed().as_millis()
                ),
            }),
            Err(why) => tcg(format!("no kernel reached user space with kvm: {why}")),
        }
    }
}

/// Boots the probe; the inner error says why it did not get there.
pub(crate) fn reaches_user_space(
    kernel: &Path,
    accel: Accel,
    timeout: Duration,
) -> Result<std::result::Result<(), String>> {
    if !kernel.exists() {
        bail!("there is no kernel `{}` to probe with", kernel.display());
    }
    let folder = tempfile::tempdir().context("failed to make a folder for the probe")?;
    let initrd = folder.path().join("initrd");
    std::fs::write(&initrd, probe::initrd()).context("failed to write the probe's initrd")?;
    let append = "console=ttyS0 panic=-1 rdinit=/init";
    let config = MachineConfig::direct("probe", folder.path(), kernel, Some(&initrd), append)
        .tpm(None)
        .memory_mib(512)
        .accel(accel);
    let mut machine = match Machine::start(config) {
        Ok(machine) => machine,
        Err(e) => return Ok(Err(format!("{e:#}"))),
    };
    let seen = machine.wait_for(probe::GREETING, timeout);
    machine.kill()?;
    Ok(match seen {
        Ok(_) => Ok(()),
        Err(_) => Err(format!(
            "nothing from its first program within {} s, after {} console lines",
            timeout.as_secs(),
            machine.console().tail(1000).len()
        )),
    })
}

/// What a cached result holds for: this kernel file, and this start of the host.
fn evidence(kernel: &Path) -> Result<String> {
    let about =
        std::fs::metadata(kernel).with_context(|| format!("failed to look at `{}`", kernel.display()))?;
    let modified = about
        .modified()
        .ok()
        .and_then(|t| t.duration_since(UNIX_EPOCH).ok())
        .unwrap_or_default();
    let boot =
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("failed to read the boot id")?;
    Ok(format!(
        "{} {} {} {}",
        kernel.display(),
        about.len(),
        modified.as_nanos(),
        boot.trim()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn works(accel: Accel) -> Result<Choice> {
        Ok(Choice {
            accel,
            reason: "tried".to_owned(),
        })
    }

    #[test]
    fn the_result_is_kept_for_this_kernel_only() {
        let dir = tempfile::tempdir().unwrap();
        let (kernel, cache) = (dir.path().join("vmlinuz"), dir.path().join("x/accel.json"));
        std::fs::write(&kernel, "one").unwrap();
        let probes = Cell::new(0);
        let probe = |_: &Path| {
            probes.set(probes.get() + 1);
            works(Accel::Kvm)
        };
        for _ in 0..3 {
            assert_eq!(
                Accel::choose_with(None, &kernel, &cache, probe).unwrap().accel,
                Accel::Kvm
            );
        }
        assert_eq!(probes.get(), 1);
        std::fs::write(&kernel, "another").unwrap();
        Accel::choose_with(None, &kernel, &cache, probe).unwrap();
        assert_eq!(probes.get(), 2);
        std::fs::write(&cache, "{").unwrap();
        Accel::choose_with(None, &kernel, &cache, probe).unwrap();
        assert_eq!(probes.get(), 3);
    }

    #[test]
    fn insisting_on_kvm_does_not_make_it_work() {
        let kernel = Path::new("/dev/null");
        let cache = Path::new("/nonexistent/cache");
        let insist = Accel::choose_with(Some("kvm"), kernel, cache, |_| works(Accel::Tcg));
        assert!(
            insist
                .unwrap_err()
                .to_string()
                .contains("insists on kvm, but tried")
        );
        let asked = Accel::choose_with(Some("tcg"), kernel, cache, |_| panic!("no probe is wanted")).unwrap();
        assert_eq!(asked.accel, Accel::Tcg);
        let wrong = Accel::choose_with(Some("hvf"), kernel, cache, |_| works(Accel::Tcg));
        assert!(wrong.unwrap_err().to_string().contains("`hvf`: use `tcg`, `kvm`"));
    }

    #[test]
    fn a_missing_kernel_is_an_error_and_not_a_reason_for_tcg() {
        let error = reaches_user_space(Path::new("/no/vmlinuz"), Accel::Tcg, PROBE).unwrap_err();
        assert!(error.to_string().contains("`/no/vmlinuz`"));
    }

    /// Needs `BEEMESH_PROBE_KERNEL=<a bzImage>`: the workspace's stories run it with the image's own kernel.
    #[test]
    #[ignore = "needs a kernel in `BEEMESH_PROBE_KERNEL`"]
    fn the_probe_s_program_runs_under_emulation() {
        let kernel = std::env::var("BEEMESH_PROBE_KERNEL").unwrap();
        let seen = reaches_user_space(Path::new(&kernel), Accel::Tcg, Duration::from_secs(60)).unwrap();
        assert_eq!(seen, Ok(()));
        let choice = Accel::probe(Path::new(&kernel)).unwrap();
        println!("{choice:?}");
    }
}
