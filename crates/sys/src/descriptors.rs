//! Descriptors that change hands: by a unix socket (SCM_RIGHTS, with the sender's process id) and over exec
//! (`LISTEN_FDS`). Every descriptor that arrives is owned by someone, or closed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The first number that is passed on. Source: sd_listen_fds(3).
const FIRST: RawFd = 3;
/// Descriptors that a message can carry at most. Source: Linux `include/net/scm.h`, `SCM_MAX_FD`.
const MESSAGE_DESCRIPTORS: usize = 253;
/// Descriptors that a process takes over at most.
const INHERITED_LIMIT: usize = 64;

/// A datagram.
#[derive(Debug)]
pub struct Received {
    /// Its length; never more than the buffer's.
    pub length: usize,
    /// It was longer than the buffer.
    pub truncated: bool,
    /// The sender's process id, vouched for by the kernel, where the socket has SO_PASSCRED.
    pub sender: Option<i32>,
    /// What came along, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
}

/// Receives one datagram without waiting.
///
/// # Errors
/// `WouldBlock` when there is none; what recvmsg(2) says.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    const RIGHTS: usize = MESSAGE_DESCRIPTORS * size_of::<RawFd>();
    // Large enough for all that the kernel passes on: a list that is cut off could not be closed. Twice, for headers
    // and alignment.
    let mut control = [0u64; 2 * (RIGHTS + size_of::<libc::ucred>()).div_ceil(8)];
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: msghdr is plain data for which all zeroes is valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header points to the caller's buffer and to `control`, both alive and of the lengths given.
    let length = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, flags) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let mut received = Received {
        length,
        truncated: header.msg_flags & libc::MSG_TRUNC != 0,
        sender: None,
        descriptors: Vec::new(),
    };
    // SAFETY: the header was filled by the kernel; the macros stay within msg_controllen.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !at.is_null() {
        // SAFETY: `at` is a header within `control`, as CMSG_FIRSTHDR and CMSG_NXTHDR promise; the kernel has written
        // `cmsg_len` bytes there, which hold one ucred or so many descriptors. They are read unaligned.
        unsafe {
            let data = libc::CMSG_DATA(at);
            let bytes = ((*at).cmsg_len).saturating_sub(libc::CMSG_LEN(0) as usize);
            match ((*at).cmsg_level, (*at).cmsg_type) {
                (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                    for number in 0..bytes / size_of::<RawFd>() {
                        let raw = data.cast::<RawFd>().add(number).read_unaligned();
                        // The kernel has just made it for this process: nobody else owns it.
                        received.descriptors.push(OwnedFd::from_raw_fd(raw));
                    }
                }
                (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if bytes >= size_of::<libc::ucred>() => {
                    received.sender = Some(data.cast::<libc::ucred>().read_unaligned().pid);
                }
                _ => {}
            }
            at = libc::CMSG_NXTHDR(&raw const header, at);
        }
    }
    Ok(received)
}

/// Takes the descriptors that whoever started this process passed on, with their names; once. Source: sd_listen_fds(3).
#[must_use]
pub fn take_inherited() -> Vec<(String, OwnedFd)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    if variable("LISTEN_PID") != std::process::id().to_string() || TAKEN.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    let count = variable("LISTEN_FDS").parse::<usize>().unwrap_or(0);
    let names = variable("LISTEN_FDNAMES");
    let mut names = names.split(':');
    let mut taken = Vec::new();
    for raw in (FIRST..).take(count.min(INHERITED_LIMIT)) {
        let name = names.next().unwrap_or("unknown").to_owned();
        // SAFETY: F_SETFD touches no memory; it fails for a number that is not open.
        if unsafe { libc::fcntl(raw, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            continue;
        }
        // SAFETY: the number is open, was passed to this very process for it to own (LISTEN_PID), and is taken once.
        taken.push((name, unsafe { OwnedFd::from_raw_fd(raw) }));
    }
    taken
}

/// Moves these open descriptors to 3, 4, …, where the program that is executed next looks for them; the former numbers
/// are closed by exec. For a process that holds nothing else and is about to exec.
///
/// # Errors
/// What fcntl(2) and dup2(2) say, e.g. for a number that is not open.
pub fn pass_on(numbers: &[RawFd]) -> io::Result<()> {
    let check = |result: libc::c_int| {
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(result)
        }
    };
    let count = RawFd::try_from(numbers.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut moved = Vec::with_capacity(numbers.len());
    for raw in numbers {
        // SAFETY: both calls take numbers only and fail for one that is not open. The copy lies above all targets.
        let copy = unsafe { libc::fcntl(*raw, libc::F_DUPFD_CLOEXEC, FIRST + count) };
        moved.push(check(copy)?);
        // SAFETY: as above.
        check(unsafe { libc::fcntl(*raw, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    }
    for (target, copy) in (FIRST..).zip(moved) {
        // SAFETY: dup2 takes numbers only; what the target was, the caller has given up.
        check(unsafe { libc::dup2(copy, target) })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, setsockopt, sockopt};
    use std::io::{IoSlice, Read, Write};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    fn pair() -> (UnixDatagram, UnixDatagram) {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        setsockopt(&receiver, sockopt::PassCred, &true).unwrap();
        (sender, receiver)
    }

    #[test]
    fn descriptors_arrive_with_the_message_and_its_sender() {
        let (sender, receiver) = pair();
        let (mut near, far) = UnixStream::pair().unwrap();
        let rights = [far.as_raw_fd()];
        let parts = [IoSlice::new(b"hello")];
        let control = [ControlMessage::ScmRights(&rights)];
        sendmsg::<()>(sender.as_raw_fd(), &parts, &control, MsgFlags::empty(), None).unwrap();
        drop(far);
        let mut buffer = [0; 16];
        let mut received = receive(&receiver, &mut buffer).unwrap();
        assert_eq!(
            (&buffer[..received.length], received.truncated),
            (&b"hello"[..], false)
        );
        assert_eq!(received.sender, Some(std::process::id() as i32));
        let mut far = UnixStream::from(received.descriptors.pop().unwrap());
        near.write_all(b"x").unwrap();
        let mut byte = [0];
        far.read_exact(&mut byte).unwrap();
        assert!(received.descriptors.is_empty());
    }

    #[test]
    fn message_with_as_many_descriptors_as_the_kernel_allows_loses_none() {
        let (sender, receiver) = pair();
        let file = std::fs::File::open("/dev/null").unwrap();
        let rights = [file.as_raw_fd(); MESSAGE_DESCRIPTORS];
        let parts = [IoSlice::new(b"x")];
        let control = [ControlMessage::ScmRights(&rights)];
        sendmsg::<()>(sender.as_raw_fd(), &parts, &control, MsgFlags::empty(), None).unwrap();
        let received = receive(&receiver, &mut [0; 4]).unwrap();
        assert_eq!(received.descriptors.len(), MESSAGE_DESCRIPTORS);
    }

    #[test]
    fn long_message_is_said_to_be_cut_and_an_empty_socket_does_not_wait() {
        let (sender, receiver) = pair();
        sender.send(&[b'x'; 100]).unwrap();
        let received = receive(&receiver, &mut [0; 10]).unwrap();
        assert_eq!((received.length, received.truncated), (10, true));
        assert_eq!(
            receive(&receiver, &mut [0; 10]).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
    }

    #[test]
    fn nothing_is_taken_from_another_process() {
        assert!(take_inherited().is_empty());
    }
}
