//! One box of the product on its worst day: its clock says 2099, its state disk runs full and then fails, its kernel dies of a
//! hardware fault, the mains fail, and then its clock says 1970. It stays a member, says what is wrong, and keeps its log.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_agent_runtime::fixture::{Archive, Layer};
use beemesh_ci_e2e::site::wait_until;
use beemesh_ci_e2e::{Binaries, Ctl, Site, SiteOptions, nginx};
use beemesh_ci_testkit::{Machine, MachineConfig};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, Instant};

const BOOT: Duration = Duration::from_secs(180);
const REACTION: Duration = Duration::from_secs(45);
/// Small, so that it is soon full.
const DISK: u64 = 96 << 20;
/// Bytes of an image of which one fits, and not two.
const LARGE: usize = 24 << 20;
/// An uncorrected error of the processor: valid, uncorrected, enabled, context corrupt. Source: Intel SDM, volume 3B, 16.3.2.2.
const FATAL: &str = "mce -b 0 1 0xb200000000000000 0x4 0 0";

struct Story {
    site: Site,
    start: Instant,
}

impl Story {
    fn machine(&self) -> &Machine {
        &self.site.nodes[0].machine
    }

    fn ctl(&self) -> Ctl {
        self.site.ctl(0).unwrap()
    }

    fn waits(&self, text: &str, limit: Duration) {
        let line = self.machine().wait_for(text, limit).unwrap();
        println!("{:>4} s  {}", self.start.elapsed().as_secs(), line.text);
    }

    /// The box is a member that answers.
    fn member(&self) {
        self.site.wait_members(0, 1, BOOT).unwrap();
        println!("{:>4} s  a member", self.start.elapsed().as_secs());
    }

    fn text(&self, arguments: &[&str]) -> String {
        let output = self.ctl().run(arguments).unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The clock is believed by nobody and set to what is certainly past.
    fn time_is_the_floors(&self) -> Value {
        let time = self.ctl().json(&["time"]).unwrap()["status"].take();
        assert_eq!(time["source"], "floor", "{time}");
        // What the firmware makes of such a year differs.
        assert!(
            ["behind", "ahead"].map(Value::from).contains(&time["rtc"]),
            "{time}"
        );
        time
    }

    /// The same disk, firmware and TPM; its clock shows this.
    fn comes_back(&mut self, clock: &str) {
        let node = &mut self.site.nodes[0];
        node.machine.kill().unwrap();
        let config = MachineConfig {
            clock: Some(clock.to_owned()),
            ..node.machine.config().clone()
        };
        node.machine = Machine::start(config).unwrap();
    }

    /// How many variables of the firmware hold the kernel's last messages, and whether any has ever.
    fn variables_of_the_fault(&self) -> (usize, bool) {
        let bytes = fs::read(self.machine().config().folder.join("vars.fd")).unwrap();
        let name: Vec<u8> = "dump-type0".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let named = |&at: &usize| bytes[at..].starts_with(&name);
        // The state is the third byte of a header of 60 (EDK II, `AUTHENTICATED_VARIABLE_HEADER`); 0x3f: in use.
        let states: Vec<u8> = (60..bytes.len()).filter(named).map(|at| bytes[at - 58]).collect();
        let used = states.iter().filter(|state| **state == 0x3f).count();
        (used, !states.is_empty())
    }

    fn image(&self, number: u64, bytes: usize) -> PathBuf {
        // Nothing that can be compressed.
        let mut state = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(number + 1);
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .take(bytes / 8)
        .flatten()
        .collect();
        let layer = Layer::default().file("data", 0o644, &bytes).unwrap();
        let archive = Archive::default().layer(layer).unwrap();
        let path = self.site.folder.join(format!("large-{number}.oci.tar"));
        fs::write(&path, archive.name(&format!("large:{number}")).build().unwrap()).unwrap();
        path
    }

    /// Images are brought until one does not fit; nothing of that one is left, so that a smaller one still does.
    fn disk_runs_full(&self) {
        for (number, bytes, fits) in [(0, LARGE, true), (1, LARGE, false), (2, LARGE / 4, true)] {
            let path = self.image(number, bytes);
            let output = self
                .ctl()
                .run(&["images", "import", &path.display().to_string()])
                .unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            println!("{:>4} s  image {number}: {error}", self.start.elapsed().as_secs());
            assert_eq!(output.status.success(), fits, "{error}");
            assert!(fits || error.contains("No space left on device"), "{error}");
        }
    }

    /// A change, which every node writes down before it acts on it.
    fn changes(&self, name: &str) -> Output {
        let manifest = self.site.folder.join(format!("{name}.yaml"));
        fs::write(
            &manifest,
            nginx::deployment(0, 8080).replace("name: web", &format!("name: {name}")),
        )
        .unwrap();
        self.ctl()
            .run(&["apply", "-f", &manifest.display().to_string()])
            .unwrap()
    }
}

#[test]
fn box_stays_a_member_and_keeps_its_log_whatever_happens_to_clock_kernel_disk_and_mains() {
    let binaries = Binaries::find().unwrap();
    let options = SiteOptions {
        nodes: 1,
        images: Vec::new(),
        create: Vec::new(),
    };
    let mut site = Site::create(&binaries.target.join("e2e/faults"), options).unwrap();
    let stick = site.stick("stick", Some(&site.folder.join("pack"))).unwrap();
    let mut config = site.machine(1, &stick).unwrap();
    config.clock = Some("2099-06-01T12:00:00".to_owned());
    config.disks[0].bytes = DISK;
    let start = Instant::now();
    site.start_machine(1, config).unwrap();
    let mut story = Story { site, start };

    // 2099: the stick is taken, the pack has not expired, the clock is what the pack vouches for.
    story.waits("joined fabric", BOOT);
    story.member();
    let first = story.time_is_the_floors();
    // The board's own.
    // It is among the drivers that nobody waits for.
    wait_until(REACTION, "the watchdog", || {
        let log = story.text(&["logs", "--unit", "init"]);
        let held = log.contains("the watchdog is `iTCO_wdt`, 60 s");
        Ok(if held { Ok(()) } else { Err(log) })
    })
    .unwrap();

    // Full: what does not fit is refused in words, and the box goes on.
    story.disk_runs_full();
    let applied = story.changes("full");
    assert!(applied.status.success(), "{applied:?}");
    story.member();

    // What was said is on the disk 5 s later; then the disk fails.
    let before = story.text(&["logs", "--system"]);
    std::thread::sleep(Duration::from_secs(6));
    story.machine().fail_writes("state").unwrap();
    // It takes no change that it could not write down, says so, and answers whoever asks for its log.
    let refused = story.changes("bad");
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(error.contains("its state volume failed"), "{refused:?}");
    story.waits(
        "beemesh: the state volume takes no records (failed to write ",
        REACTION,
    );
    let log = story.text(&["logs", "--unit", "agent", "--tail", "5"]);
    assert!(log.contains("the state volume takes no records"), "{log}");

    // The kernel dies, and while it still shows why, the mains fail.
    let command = json!({ "command-line": FATAL });
    story.machine().execute("human-monitor-command", command).unwrap();
    story.waits("Kernel panic - not syncing: Fatal ", REACTION);
    std::thread::sleep(Duration::from_secs(4));
    story.comes_back("1970-01-01T00:00:00");

    // 1970: told why it died, and still the member it was, with its log up to the last sync.
    story.waits(
        "beemesh: this machine was started again after a fault: Fatal ",
        BOOT,
    );
    story.member();
    let second = story.time_is_the_floors();
    assert!(
        second["floor"].as_i64() >= first["floor"].as_i64(),
        "{first} {second}"
    );
    let kept = story.text(&["logs", "--system", "--boot", "-1"]);
    for line in before.lines() {
        assert!(kept.contains(line), "lost: {line}");
    }
    let log = story.text(&["logs", "--unit", "init"]);
    assert!(log.contains("] Kernel panic - not syncing: Fatal "), "{log}");
    // The firmware has its room back.
    assert_eq!(story.variables_of_the_fault(), (0, true));
    let machine = &mut story.site.nodes[0].machine;
    machine.power_off(Duration::from_secs(60)).unwrap();
    println!("measured story of faults: {} s", start.elapsed().as_secs());
}
