//! Hosts on a real switch: TCP, forwarded ports, echoes, DHCP with a client that is not ours, faults.

use super::*;
use smoltcp::iface::SocketSet;
use smoltcp::socket::dhcpv4;
use std::net::TcpStream;

const SOON: Duration = Duration::from_secs(20);
const A: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const B: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

fn two_hosts() -> (Switch, SiteHost, SiteHost) {
    let switch = Switch::start().unwrap();
    let a = SiteHost::plug(&switch, "a", Ipv4Cidr::new(A, 24)).unwrap();
    let b = SiteHost::plug(&switch, "b", Ipv4Cidr::new(B, 24)).unwrap();
    (switch, a, b)
}

/// Answers every connection with what it received, until the listener's host is gone.
fn echo(listener: SiteListener) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut workers = Vec::new();
        while let Ok(mut stream) = listener.accept(SOON) {
            workers.push(std::thread::spawn(move || {
                let mut all = Vec::new();
                stream.read_to_end(&mut all).unwrap();
                stream.write_all(&all).unwrap();
            }));
        }
        for worker in workers {
            worker.join().unwrap();
        }
    })
}

#[test]
fn a_megabyte_comes_back_as_it_went_with_loss_and_delay() {
    let (switch, a, b) = two_hosts();
    let server = echo(b.listen(80).unwrap());
    let sent: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
    for loss in [0.0, 0.01] {
        switch.drop_frames(loss, 42);
        let mut stream = a.connect(B, 80, SOON).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(&sent).unwrap();
        stream.finish_writing().unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        assert!(
            back == sent,
            "{} of {} bytes, loss {loss}",
            back.len(),
            sent.len()
        );
    }
    assert!(switch.counters().lost > 0);
    assert_eq!(switch.frames_outside(Ipv4Cidr::new(A, 24)), 0);
    drop(b);
    server.join().unwrap();
}

#[test]
fn a_forwarded_port_carries_several_connections_at_once() {
    let (_switch, a, b) = two_hosts();
    let server = echo(b.listen(80).unwrap());
    let door = a.forward(B, 80).unwrap();
    assert!(door.ip().is_loopback());
    let mut streams: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(door).unwrap()).collect();
    for (number, stream) in streams.iter_mut().enumerate() {
        stream
            .write_all(format!("connection {number}").as_bytes())
            .unwrap();
    }
    for (number, mut stream) in streams.into_iter().enumerate().rev() {
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut back = String::new();
        stream.read_to_string(&mut back).unwrap();
        assert_eq!(back, format!("connection {number}"));
    }
    drop(b);
    server.join().unwrap();
}

#[test]
fn the_bound_on_connections_holds_and_a_closed_one_makes_room() {
    let (_switch, a, b) = two_hosts();
    let listener = b.listen(80).unwrap();
    let (accepted, count) = std::sync::mpsc::channel();
    let keeper = std::thread::spawn(move || {
        let mut kept = Vec::new();
        while let Ok(stream) = listener.accept(SOON) {
            kept.push(stream);
            accepted.send(()).unwrap();
        }
    });
    let mut open: Vec<SiteStream> = (0..MAX_CONNECTIONS).map(|_| connect_patiently(&a)).collect();
    assert_eq!(a.connect(B, 80, SOON).unwrap_err(), ConnectError::TooMany);
    // Before the listener's host goes: a connection stands before it is accepted.
    for _ in 0..MAX_CONNECTIONS {
        count.recv_timeout(SOON).unwrap();
    }
    open.clear();
    let deadline = Instant::now() + SOON;
    while a.connect(B, 80, SOON).is_err() {
        assert!(Instant::now() < deadline, "closed connections make no room");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(b);
    keeper.join().unwrap();
}

/// A listening port takes only a few at a time, so a burst may meet a reset.
fn connect_patiently(host: &SiteHost) -> SiteStream {
    let deadline = Instant::now() + SOON;
    loop {
        match host.connect(B, 80, SOON) {
            Ok(stream) => return stream,
            Err(ConnectError::Refused) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5))
            }
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn a_closed_port_refuses_and_a_silent_address_times_out() {
    let (switch, a, b) = two_hosts();
    assert_eq!(a.connect(B, 81, SOON).unwrap_err(), ConnectError::Refused);
    let short = Duration::from_millis(200);
    assert_eq!(
        a.connect(Ipv4Addr::new(10, 77, 0, 99), 80, short).unwrap_err(),
        ConnectError::TimedOut
    );
    let door = a.forward(B, 81).unwrap();
    let mut refused = TcpStream::connect(door).unwrap();
    refused.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(refused.read(&mut [0; 1]).unwrap_or(0), 0, "closed at once");
    drop(switch);
    drop(b);
    assert_eq!(a.connect(B, 80, SOON).unwrap_err(), ConnectError::Unplugged);
}

#[test]
fn a_page_is_fetched() {
    let (_switch, a, b) = two_hosts();
    let listener = b.listen(8080).unwrap();
    let server = std::thread::spawn(move || {
        let mut stream = listener.accept(SOON).unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nServer: test\r\nContent-Length: 6\r\n\r\nmoin!\n")
            .unwrap();
        String::from_utf8(request).unwrap()
    });
    let reply = a.http_get(B, 8080, "/index.html", SOON).unwrap();
    assert_eq!((reply.status, reply.body.as_slice()), (200, &b"moin!\n"[..]));
    let request = server.join().unwrap();
    assert!(
        request.starts_with("GET /index.html HTTP/1.0\r\nHost: 10.77.0.2:8080\r\n"),
        "{request}"
    );
}

#[test]
fn a_ping_is_answered_until_the_cable_is_cut() {
    let (switch, a, _b) = two_hosts();
    switch.delay(Duration::from_millis(30));
    let took = a.ping(B, SOON).unwrap().unwrap();
    assert!(took >= Duration::from_millis(60), "there and back: {took:?}");
    switch.cut("b").unwrap();
    assert_eq!(a.ping(B, Duration::from_millis(300)).unwrap(), None);
    switch.heal();
    assert!(a.ping(B, SOON).unwrap().is_some());
}

#[test]
fn a_dhcp_server_that_comes_late_serves_a_foreign_client() {
    let switch = Switch::start().unwrap();
    let a = SiteHost::plug(&switch, "a", Ipv4Cidr::new(A, 24)).unwrap();
    let mut plug = FrameSocket::new(UnixStream::connect(switch.port("client").unwrap()).unwrap()).unwrap();
    let card = EthernetAddress([0x52, 0x54, 0, 0, 0, 7]);
    let mut cable = Cable::default();
    let started = Instant::now();
    let now = || smoltcp::time::Instant::from_micros(i64::try_from(started.elapsed().as_micros()).unwrap());
    let mut interface = Interface::new(Config::new(HardwareAddress::Ethernet(card)), &mut cable, now());
    let mut sockets = SocketSet::new(Vec::new());
    let client = sockets.add(dhcpv4::Socket::new());
    let mut wait_for_address = |patience: Duration| {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            plug.receive(|frame| cable.push(frame)).unwrap();
            interface.poll(now(), &mut cable, &mut sockets);
            while let Some(frame) = cable.pop() {
                plug.send(&frame);
            }
            plug.flush().unwrap();
            if let Some(dhcpv4::Event::Configured(c)) = sockets.get_mut::<dhcpv4::Socket>(client).poll() {
                return Some((c.address, c.router, c.dns_servers.to_vec()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    };
    assert_eq!(wait_for_address(Duration::from_millis(500)), None);
    assert!(a.dhcp_leases().unwrap().is_empty());
    let mut pool = DhcpPool::new(Ipv4Addr::new(10, 77, 0, 50), 10);
    pool.router = Some(A);
    pool.dns = vec![A];
    a.dhcp_on(pool).unwrap();
    let (address, router, dns) = wait_for_address(Duration::from_secs(40)).unwrap();
    assert_eq!(address, Ipv4Cidr::new(Ipv4Addr::new(10, 77, 0, 50), 24));
    assert_eq!((router, dns), (Some(A), vec![A]));
    assert_eq!(a.dhcp_leases().unwrap(), [(card, Ipv4Addr::new(10, 77, 0, 50))]);
}

#[test]
fn an_address_that_is_no_host_s_is_refused() {
    let switch = Switch::start().unwrap();
    let error = SiteHost::plug(&switch, "a", Ipv4Cidr::new(Ipv4Addr::new(224, 0, 0, 1), 24)).unwrap_err();
    assert!(error.to_string().contains("`224.0.0.1` is no address for a host"));
}
