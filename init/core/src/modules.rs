//! Which kernel modules a device needs and in which order: `modules.dep`, `modules.alias` and `modules.softdep` as
//! depmod(8) writes them. Pure; loads nothing.
//!
//! Invariant: in every answer a module comes after all that it depends on, and none comes twice.

use std::collections::{BTreeMap, BTreeSet};

/// The longest index file that is read, in bytes.
pub const INDEX_LIMIT: usize = 8 << 20;
/// What modules ask the kernel for by name while they start, without saying so in `modules.softdep`: module, what it
/// asks for. The kernel would start one program after the other to look for each.
const UNDECLARED: [(&str, &str); 1] = [("crc64_rocksoft", "crc64_rocksoft_generic")];

/// Why an index file is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIndex {
    /// Past [`INDEX_LIMIT`].
    #[error("`{0}` has {1} bytes: at most {INDEX_LIMIT} are read")]
    TooLong(&'static str, usize),
    /// A line without a colon.
    #[error("`modules.dep` line {0}: expected `path.ko: dependencies`")]
    Dependency(usize),
}

/// Where something stands in its file.
type Place = std::ops::Range<usize>;

struct Module {
    path: Place,
    needs: Place,
}

/// The three index files, ready to be asked. Parsing only marks lines: most of them are never looked at, and every
/// loader of a boot does this anew.
pub struct ModuleIndex {
    dep: String,
    alias: String,
    modules: BTreeMap<String, Module>,
    /// Lines by what stands before the first `:` of the pattern (the bus), or the whole pattern where there is none;
    /// below the empty string those whose bus is itself a pattern (`acpi*:PNP0C0C:*`).
    aliases: BTreeMap<String, Vec<Place>>,
    before: BTreeMap<String, Vec<String>>,
}

impl ModuleIndex {
    /// Reads the texts of `modules.dep`, `modules.alias` and `modules.softdep` (the last two may be empty).
    ///
    /// # Errors
    /// [`InvalidIndex`].
    pub fn parse(dep: String, alias: String, softdep: &str) -> Result<Self, InvalidIndex> {
        for (name, length) in [
            ("modules.dep", dep.len()),
            ("modules.alias", alias.len()),
            ("modules.softdep", softdep.len()),
        ] {
            if length > INDEX_LIMIT {
                return Err(InvalidIndex::TooLong(name, length));
            }
        }
        let mut modules = BTreeMap::new();
        for (number, (at, line)) in lines(&dep).enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let (path, _) = line.split_once(':').ok_or(InvalidIndex::Dependency(number + 1))?;
            let colon = at + path.len();
            modules.insert(
                name_of(path),
                Module {
                    path: at..colon,
                    needs: colon + 1..at + line.len(),
                },
            );
        }
        let mut aliases: BTreeMap<String, Vec<Place>> = BTreeMap::new();
        for (at, line) in lines(&alias) {
            let Some(rest) = line.strip_prefix("alias ") else {
                continue;
            };
            let bus = rest.split([':', ' ']).next().unwrap_or_default();
            let key = if bus.contains(['*', '?', '[']) { "" } else { bus };
            let place = at..at + line.len();
            match aliases.get_mut(key) {
                Some(places) => places.push(place),
                None => drop(aliases.insert(key.to_owned(), vec![place])),
            }
        }
        let mut before = BTreeMap::new();
        for line in softdep.lines() {
            let mut words = line.split_whitespace();
            if let (Some("softdep"), Some(module)) = (words.next(), words.next()) {
                let first: Vec<String> = words
                    .skip_while(|word| *word != "pre:")
                    .skip(1)
                    .take_while(|word| *word != "post:")
                    .map(str::to_owned)
                    .collect();
                before.insert(name_of(module), first);
            }
        }
        for (module, first) in UNDECLARED {
            before
                .entry(module.to_owned())
                .or_default()
                .push(first.to_owned());
        }
        Ok(Self {
            dep,
            alias,
            modules,
            aliases,
            before,
        })
    }

    /// The files to load, dependencies first, for a modalias (`pci:v00008086d...`), an alias (`fs-vfat`) or a
    /// module's name. Empty: no module of this system serves it.
    #[must_use]
    pub fn plan_load(&self, request: &str) -> Vec<&str> {
        let mut plan = Plan {
            index: self,
            order: Vec::new(),
            seen: BTreeSet::new(),
        };
        plan.request(request);
        plan.order
    }

    fn names(&self, request: &str) -> Vec<String> {
        let name = name_of(request);
        if self.modules.contains_key(&name) {
            return vec![name];
        }
        let mut names: Vec<String> = Vec::new();
        let candidates = [bus_of(request), ""]
            .into_iter()
            .filter_map(|bus| self.aliases.get(bus));
        for place in candidates.flatten() {
            let mut words = text_at(&self.alias, place).split_whitespace().skip(1);
            let (Some(pattern), Some(module)) = (words.next(), words.next()) else {
                continue;
            };
            if matches(pattern.as_bytes(), request.as_bytes()) {
                let module = name_of(module);
                if !names.contains(&module) {
                    names.push(module);
                }
            }
        }
        names
    }
}

struct Plan<'a> {
    index: &'a ModuleIndex,
    order: Vec<&'a str>,
    seen: BTreeSet<String>,
}

impl Plan<'_> {
    fn request(&mut self, request: &str) {
        for name in self.index.names(request) {
            self.module(&name);
        }
    }

    /// Depth is bounded by the number of modules: each is entered once.
    fn module(&mut self, name: &str) {
        let Some(module) = self.index.modules.get(name) else {
            return;
        };
        if !self.seen.insert(name.to_owned()) {
            return;
        }
        for first in self.index.before.get(name).into_iter().flatten() {
            self.request(first);
        }
        for need in text_at(&self.index.dep, &module.needs).split_whitespace() {
            self.module(&name_of(need));
        }
        self.order.push(text_at(&self.index.dep, &module.path).trim());
    }
}

/// The parameters that the kernel's command line gives to a module (`name.parameter=value`, `-` and `_` being the same in
/// a name), as modprobe(8) hands them over.
#[must_use]
pub fn parameters(command_line: &str, module: &str) -> String {
    let of_module = |word: &&str| {
        let name = word.split_once('.').map(|(name, _)| name);
        name.is_some_and(|name| !name.contains('=') && name_of(name) == name_of(module))
    };
    let words = command_line.split_whitespace().filter(of_module);
    let given: Vec<&str> = words.filter_map(|word| Some(word.split_once('.')?.1)).collect();
    given.join(" ")
}

/// What stands below this urgency is loaded before the boot goes on; the rest follows at low priority.
pub const URGENT: u8 = 3;
/// The most urgent: what a disk or a stick hangs on.
pub const DISKS: u8 = 0;
/// What the state volume needs besides its disk; asked for early, since each takes a while.
pub const STATE_VOLUME: [&str; 4] = ["dm-crypt", "fs-ext4", "xts", "crypto-aes"];
/// What the first pod of a boot needs; loaded with the rest, so that it need not wait for them.
pub const PODS: [&str; 2] = ["veth", "overlay"];

/// How urgent a modalias is: the smaller, the sooner. What the agent waits for comes first: the TPM and the disks,
/// then the network, then the buses below which those may sit, then the rest.
#[must_use]
pub fn urgency(modalias: &str) -> u8 {
    // PCI classes: 01 storage, 02 network, 0805 SD and eMMC, 0c03 USB; virtio types 1 network, 2 block, 8 SCSI.
    match pci_class(modalias) {
        // The stick: its bus, hub and disk follow one after the other.
        Some(class)
            if ["01", "08sc05", "0Csc03", "0csc03"]
                .iter()
                .any(|c| class.starts_with(c)) =>
        {
            return DISKS;
        }
        Some(class) if class.starts_with("02") => return 2,
        _ => {}
    }
    // Other than virtio's generic PCI function, whose class says nothing: it carries disks.
    let disks = [
        "pci:v00001AF4",
        "virtio:d00000002",
        "virtio:d00000008",
        "scsi:t-0x00",
        "mmc:",
        // SD and eMMC controllers of systems on a chip. Source: linux `drivers/mmc/host/sdhci-acpi.c`.
        "acpi:80860F14",
        "acpi:INT33BB",
        "acpi:INT33C6",
        "acpi:INT3436",
        "acpi:INT344D",
        "acpi:PNP0D40",
        "acpi:PNP0FFE",
        "acpi:AMDI0040",
    ];
    if disks.iter().any(|disk| modalias.starts_with(disk)) {
        DISKS
    } else if STATE_VOLUME.contains(&modalias) || modalias.contains("MSFT0101") || modalias.starts_with("tpm")
    {
        1
    } else if modalias.starts_with("virtio:") || modalias.starts_with("usb:") || is_power_button(modalias) {
        2
    } else if modalias.starts_with("pci:") {
        4
    } else {
        5
    }
}

/// The lines of a text, each with where it begins.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.split_inclusive('\n').scan(0, |next, line| {
        let at = std::mem::replace(next, *next + line.len());
        Some((at, line.trim_end()))
    })
}

fn text_at<'a>(text: &'a str, place: &Place) -> &'a str {
    text.get(place.clone()).unwrap_or_default()
}

/// The button, and the input device that its driver makes (KEY_POWER is 0x74): who presses it early shall be heard.
fn is_power_button(modalias: &str) -> bool {
    modalias.starts_with("acpi:LNXPWRBN")
        || modalias.starts_with("acpi:PNP0C0C")
        || (modalias.starts_with("input:") && modalias.contains("k74,"))
}

/// Whether a modalias is that of a storage controller on PCI (class 01).
#[must_use]
pub fn is_disk_controller(modalias: &str) -> bool {
    pci_class(modalias).is_some_and(|class| class.starts_with("01"))
}

fn pci_class(modalias: &str) -> Option<&str> {
    let (_, class) = modalias.strip_prefix("pci:")?.split_once("bc")?;
    Some(class)
}

fn bus_of(pattern: &str) -> &str {
    pattern.split_once(':').map_or(pattern, |(bus, _)| bus)
}

/// `kernel/fs/fat/vfat.ko` and `vfat` are the module `vfat`; `-` and `_` are one in module names.
fn name_of(path: &str) -> String {
    let file = path.trim().rsplit('/').next().unwrap_or_default();
    let stem = file.split_once(".ko").map_or(file, |(stem, _)| stem);
    stem.replace('-', "_")
}

/// fnmatch(3) without flags: `*`, `?`, `[abc]`, `[a-f]`. Linear in memory, at most |pattern| x |text| steps.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let step = match (pattern.get(p), text.get(t)) {
            (None, None) => return true,
            (Some(b'*'), _) => {
                retry = Some((p + 1, t));
                p += 1;
                continue;
            }
            (Some(b'?'), Some(_)) => Some(1),
            (Some(b'['), Some(byte)) => class(pattern.get(p..).unwrap_or_default(), *byte),
            (Some(a), Some(b)) if a == b => Some(1),
            _ => None,
        };
        match (step, retry) {
            (Some(width), _) => {
                p += width;
                t += 1;
            }
            (None, Some((after_star, at))) if at < text.len() => {
                retry = Some((after_star, at + 1));
                (p, t) = (after_star, at + 1);
            }
            _ => return false,
        }
    }
}

/// The width of the bracket expression at the start of `pattern` if `byte` is in it.
fn class(pattern: &[u8], byte: u8) -> Option<usize> {
    let end = pattern.iter().position(|b| *b == b']')?;
    let inner = pattern.get(1..end)?;
    let mut rest = inner;
    let mut found = false;
    loop {
        rest = match rest {
            [low, b'-', high, tail @ ..] => {
                found |= (*low..=*high).contains(&byte);
                tail
            }
            [one, tail @ ..] => {
                found |= *one == byte;
                tail
            }
            [] => return found.then_some(end + 1),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DEP: &str = "kernel/net/virtio_net.ko: kernel/net/core/failover.ko kernel/drivers/net/net_failover.ko\n\
        kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko\n\
        kernel/net/core/failover.ko:\n\
        kernel/fs/fat/vfat.ko: kernel/fs/fat/fat.ko\nkernel/fs/fat/fat.ko:\n\
        kernel/a-b.ko: kernel/c.ko\nkernel/c.ko: kernel/a-b.ko\nkernel/lib/crc.ko:\n";
    const ALIAS: &str = "# Aliases\nalias virtio:d00000001v* virtio_net\nalias fs-vfat vfat\n\
        alias pci:v00008086d000010D3sv*sd*bc*sc*i* a-b\nalias crypto-crc crc\n\
        alias input:b*v*p*e*-e*1,*k*7[3-4],*r* vfat\n\
        alias acpi*:LNXPWRBN:* crc\n";
    const SOFT: &str = "softdep vfat pre: crypto-crc nothing post: c\n";

    fn index() -> ModuleIndex {
        ModuleIndex::parse(DEP.to_owned(), ALIAS.to_owned(), SOFT).unwrap()
    }

    #[test]
    fn dependencies_come_first_and_once() {
        assert_eq!(
            index().plan_load("virtio:d00000001v00001AF4"),
            [
                "kernel/net/core/failover.ko",
                "kernel/drivers/net/net_failover.ko",
                "kernel/net/virtio_net.ko"
            ]
        );
    }

    #[test]
    fn soft_dependency_comes_before_and_a_missing_one_is_skipped() {
        assert_eq!(
            index().plan_load("fs-vfat"),
            [
                "kernel/lib/crc.ko",
                "kernel/fs/fat/fat.ko",
                "kernel/fs/fat/vfat.ko"
            ]
        );
    }

    #[test]
    fn name_is_found_with_either_dash() {
        assert_eq!(index().plan_load("a_b").last(), index().plan_load("a-b").last());
        assert!(!index().plan_load("a_b").is_empty());
    }

    #[test]
    fn cycle_ends() {
        assert_eq!(index().plan_load("c").len(), 2);
    }

    #[test]
    fn bracket_expressions_match_ranges() {
        assert_eq!(index().plan_load("input:b0019v0p1e0-e0,1,k74,r").len(), 3);
        assert!(index().plan_load("input:b0019v0p1e0-e0,1,k75,r").is_empty());
    }

    #[test]
    fn pattern_in_place_of_the_bus_is_found() {
        assert_eq!(index().plan_load("acpi:LNXPWRBN:"), ["kernel/lib/crc.ko"]);
    }

    #[test]
    fn unknown_device_needs_nothing() {
        assert!(index().plan_load("pci:v0000FFFFd0000").is_empty());
    }

    #[test]
    fn line_without_colon_is_named() {
        assert_eq!(
            ModuleIndex::parse("a.ko:\nb.ko\n".to_owned(), String::new(), "").err(),
            Some(InvalidIndex::Dependency(2))
        );
    }

    #[test]
    fn index_past_the_limit_is_refused() {
        let long = "\n".repeat(INDEX_LIMIT + 1);
        assert!(matches!(
            ModuleIndex::parse(String::new(), long, ""),
            Err(InvalidIndex::TooLong("modules.alias", _))
        ));
    }

    #[test]
    fn command_line_gives_a_module_its_own_parameters_only() {
        let line = "quiet usb-storage.delay_use=0 softdog.soft_panic=1 softdog.soft_margin=9 root=a.softdog.x=1 panic=3";
        assert_eq!(parameters(line, "softdog"), "soft_panic=1 soft_margin=9");
        assert_eq!(parameters(line, "usb_storage"), "delay_use=0");
        assert_eq!(parameters(line, "root"), "");
    }

    #[test]
    fn storage_is_more_urgent_than_sound() {
        let disk = urgency("pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01");
        assert!(disk < urgency("pci:v00008086d0000293Esv0sd0bc04sc03i00"));
        assert!(disk < urgency("cpu:type:x86,ven0000fam0006mod0097"));
        for other in [
            "scsi:t-0x00",
            "mmc:block",
            "acpi:PNP0D40:",
            "pci:v00008086d00005ACCsv0sd0bc08sc05i01",
        ] {
            assert_eq!(urgency(other), DISKS, "{other}");
        }
    }

    fn reference(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                reference(rest, text)
                    || text
                        .split_first()
                        .is_some_and(|(_, tail)| reference(pattern, tail))
            }
            (Some((b'?', rest)), Some((_, tail))) => reference(rest, tail),
            (Some((a, rest)), Some((b, tail))) if a == b => reference(rest, tail),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_the_recursive_definition(pattern in "[ab*?]{0,10}", text in "[ab]{0,10}") {
            prop_assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), reference(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn invariant_every_plan_is_in_dependency_order(edges in proptest::collection::vec((0usize..12, 0usize..12), 0..40)) {
            // Edges from a larger to a smaller number only: no cycles.
            let mut dep = String::new();
            for module in 0..12 {
                dep.push_str(&format!("k/m{module}.ko:"));
                for (_, low) in edges.iter().filter(|(a, b)| *a == module && b < a) {
                    dep.push_str(&format!(" k/m{low}.ko"));
                }
                dep.push('\n');
            }
            let index = ModuleIndex::parse(dep, String::new(), "").unwrap();
            let plan = index.plan_load("m11");
            for (high, low) in edges.iter().filter(|(a, b)| b < a) {
                let place = |n: &usize| plan.iter().position(|p| *p == format!("k/m{n}.ko"));
                if let Some(at) = place(high) {
                    prop_assert!(place(low).is_some_and(|before| before < at));
                }
            }
            prop_assert_eq!(plan.iter().collect::<BTreeSet<_>>().len(), plan.len());
        }
    }
}
