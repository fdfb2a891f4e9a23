//! ICMP echoes of a host. Invariant: an echo is forgotten when it is answered or its time is over.

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::icmp;
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, IpAddress};
use std::net::Ipv4Addr;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

const IDENT: u16 = 0xbee5;

struct Ping {
    number: u16,
    sent: Instant,
    until: Instant,
    answer: SyncSender<Duration>,
}

pub(super) struct Echo {
    socket: SocketHandle,
    pings: Vec<Ping>,
    next: u16,
}

impl Echo {
    pub(super) fn new(sockets: &mut SocketSet<'static>) -> Self {
        let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 16], vec![0; 4096]);
        let mut socket = icmp::Socket::new(buffer(), buffer());
        // It cannot fail: the socket is new and the identifier is not zero.
        let _ = socket.bind(icmp::Endpoint::Ident(IDENT));
        Self {
            socket: sockets.add(socket),
            pings: Vec::new(),
            next: 1,
        }
    }

    /// Sends one; `answer` hears how long it took, unless nothing comes until `until`.
    pub(super) fn send(
        &mut self,
        sockets: &mut SocketSet<'_>,
        to: Ipv4Addr,
        until: Instant,
        answer: SyncSender<Duration>,
    ) {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        let echo = Icmpv4Repr::EchoRequest {
            ident: IDENT,
            seq_no: number,
            data: b"beemesh",
        };
        let socket = sockets.get_mut::<icmp::Socket>(self.socket);
        if let Ok(buffer) = socket.send(echo.buffer_len(), IpAddress::Ipv4(to)) {
            echo.emit(
                &mut Icmpv4Packet::new_unchecked(buffer),
                &ChecksumCapabilities::default(),
            );
            self.pings.push(Ping {
                number,
                sent: Instant::now(),
                until,
                answer,
            });
        }
    }

    /// Notes the answers that came.
    pub(super) fn collect(&mut self, sockets: &mut SocketSet<'_>) {
        let socket = sockets.get_mut::<icmp::Socket>(self.socket);
        while let Ok((payload, _)) = socket.recv() {
            let Ok(packet) = Icmpv4Packet::new_checked(payload) else {
                continue;
            };
            if let Some(at) = self.pings.iter().position(|p| p.number == packet.echo_seq_no()) {
                let ping = self.pings.swap_remove(at);
                // The caller may have given up.
                let _ = ping.answer.send(ping.sent.elapsed());
            }
        }
        let now = Instant::now();
        self.pings.retain(|p| p.until > now);
    }
}
