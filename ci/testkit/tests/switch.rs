//! The switch with real sockets: what crosses it, what a fault stops, what a hostile plug can do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_ci_testkit::{Ipv4Cidr, MAX_FRAME, Switch};
use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(10);
const NEVER: Duration = Duration::from_millis(150);

struct Card(UnixStream);

impl Card {
    fn plug(switch: &Switch, port: &str) -> Self {
        Self(UnixStream::connect(switch.port(port).unwrap()).unwrap())
    }

    fn send(&mut self, frame: &[u8]) {
        self.0
            .write_all(&u32::try_from(frame.len()).unwrap().to_be_bytes())
            .unwrap();
        self.0.write_all(frame).unwrap();
    }

    /// The next frame, or `None` when none comes for this long.
    fn receive(&mut self, patience: Duration) -> Option<Vec<u8>> {
        self.0.set_read_timeout(Some(patience)).unwrap();
        let mut head = [0; 4];
        match self.0.read_exact(&mut head) {
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return None,
            other => other.unwrap(),
        }
        let mut frame = vec![0; u32::from_be_bytes(head) as usize];
        self.0.set_read_timeout(Some(SOON)).unwrap();
        self.0.read_exact(&mut frame).unwrap();
        Some(frame)
    }
}

fn broadcast(source: u8, text: &str) -> Vec<u8> {
    let mut f = vec![0xff; 6];
    f.extend([2, 0, 0, 0, 0, source, 0x88, 0xb5]);
    f.extend(text.as_bytes());
    f
}

/// Both cards are known to be plugged in once a frame went through.
fn greet(from: &mut Card, to: &mut Card) {
    let deadline = Instant::now() + SOON;
    while Instant::now() < deadline {
        from.send(&broadcast(200, "hello"));
        if to.receive(Duration::from_millis(20)).is_some() {
            while to.receive(Duration::from_millis(20)).is_some() {}
            return;
        }
    }
    panic!("nothing crossed the switch");
}

#[test]
fn frames_cross_and_a_cut_stops_them_until_it_is_mended() {
    let switch = Switch::start().unwrap();
    let (mut a, mut b) = (Card::plug(&switch, "a"), Card::plug(&switch, "b"));
    greet(&mut a, &mut b);
    a.send(&broadcast(1, "one"));
    assert_eq!(b.receive(SOON).unwrap(), broadcast(1, "one"));
    switch.cut("b").unwrap();
    a.send(&broadcast(1, "two"));
    assert_eq!(b.receive(NEVER), None);
    switch.mend("b").unwrap();
    a.send(&broadcast(1, "three"));
    assert_eq!(b.receive(SOON).unwrap(), broadcast(1, "three"));
    assert!(switch.counters().blocked >= 1);
}

#[test]
fn a_delay_holds_frames_back_and_keeps_their_order() {
    let switch = Switch::start().unwrap();
    let (mut a, mut b) = (Card::plug(&switch, "a"), Card::plug(&switch, "b"));
    greet(&mut a, &mut b);
    switch.delay(Duration::from_millis(200));
    let sent = Instant::now();
    for text in ["one", "two", "three"] {
        a.send(&broadcast(1, text));
    }
    for text in ["one", "two", "three"] {
        assert_eq!(b.receive(SOON).unwrap(), broadcast(1, text));
    }
    assert!(
        sent.elapsed() >= Duration::from_millis(200),
        "{:?}",
        sent.elapsed()
    );
}

#[test]
fn an_oversized_frame_closes_its_port_and_no_other() {
    let switch = Switch::start().unwrap();
    let (mut a, mut b) = (Card::plug(&switch, "a"), Card::plug(&switch, "b"));
    let mut hostile = Card::plug(&switch, "hostile");
    greet(&mut a, &mut b);
    hostile
        .0
        .write_all(&u32::try_from(MAX_FRAME + 1).unwrap().to_be_bytes())
        .unwrap();
    hostile.0.set_read_timeout(Some(SOON)).unwrap();
    let mut rest = Vec::new();
    hostile.0.read_to_end(&mut rest).expect("the switch hangs up");
    assert_eq!(switch.counters().oversized, 1);
    a.send(&broadcast(1, "still here"));
    assert_eq!(b.receive(SOON).unwrap(), broadcast(1, "still here"));
    // The port itself lives on: the next plug works.
    let mut again = Card::plug(&switch, "hostile");
    greet(&mut a, &mut again);
}

#[test]
fn a_plug_that_reads_nothing_loses_frames_and_delays_nobody() {
    let switch = Switch::start().unwrap();
    let (mut a, mut b) = (Card::plug(&switch, "a"), Card::plug(&switch, "b"));
    let _deaf = Card::plug(&switch, "deaf");
    greet(&mut a, &mut b);
    let padding = "x".repeat(1400);
    for i in 0..4000 {
        a.send(&broadcast(1, &format!("{i} {padding}")));
        assert_eq!(
            b.receive(SOON).unwrap()[14..18],
            *format!("{i} {padding}").as_bytes().first_chunk::<4>().unwrap()
        );
    }
    assert!(switch.counters().overrun > 0, "{:?}", switch.counters());
}

#[test]
fn what_would_leave_the_site_is_counted_even_when_a_fault_takes_it() {
    let switch = Switch::start().unwrap();
    let (mut a, mut b) = (Card::plug(&switch, "a"), Card::plug(&switch, "b"));
    greet(&mut a, &mut b);
    let site = Ipv4Cidr::new(Ipv4Addr::new(10, 77, 0, 0), 24);
    assert_eq!(switch.frames_outside(site), 0);
    switch.cut("b").unwrap();
    let mut frame = vec![0xff; 6];
    frame.extend([
        2, 0, 0, 0, 0, 7, 8, 0, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 10, 77, 0, 7, 8, 8, 4, 4,
    ]);
    a.send(&frame);
    let deadline = Instant::now() + SOON;
    while switch.frames_outside(site) == 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let outsiders = switch.outsiders(site);
    assert_eq!(outsiders.len(), 1);
    assert_eq!(outsiders[0].source.to_string(), "02-00-00-00-00-07");
    assert_eq!(outsiders[0].destination.to_string(), "8.8.4.4");
}

#[test]
fn a_recording_holds_the_frames() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("site.pcap");
    let switch = Switch::start().unwrap();
    let (mut a, mut b) = (Card::plug(&switch, "a"), Card::plug(&switch, "b"));
    greet(&mut a, &mut b);
    switch.record(&path).unwrap();
    a.send(&broadcast(1, "for the record"));
    b.receive(SOON).unwrap();
    assert_eq!(switch.stop_recording().unwrap(), 0);
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes.ends_with(&broadcast(1, "for the record")));
}

#[test]
fn wrong_names_are_refused_with_what_to_do() {
    let switch = Switch::start().unwrap();
    switch.port("a").unwrap();
    assert!(switch.port("../a").unwrap_err().to_string().contains("`a-z`"));
    assert!(
        switch
            .cut("b")
            .unwrap_err()
            .to_string()
            .contains("no port `b`, only: a")
    );
    assert!(
        switch
            .partition(&[&["a"], &["a"]])
            .unwrap_err()
            .to_string()
            .contains("named twice")
    );
}
