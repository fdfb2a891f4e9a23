//! Published ports: TCP connections to a port of the node are carried to a port of the pod, in user space.
//!
//! It filters nothing. Invariants: at most [`CONNECTIONS_MOST`] connections on the node at a time (further ones wait in the
//! kernel's queue); each direction is closed on its own, so half-closed protocols work; dropping the [`Forwarder`] frees
//! the port and ends its connections.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

/// Most connections through published ports of the node.
pub const CONNECTIONS_MOST: usize = 4096;
const QUEUE: u32 = 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a port is not published.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// Something listens there.
    #[error("port {port} of the node is in use")]
    Taken {
        /// The port.
        port: u16,
    },
    /// The port cannot be opened.
    #[error("failed to listen on port {port}")]
    Listen {
        /// The port.
        port: u16,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The published ports of one pod.
#[derive(Debug)]
pub struct Forwarder {
    tasks: Vec<JoinHandle<()>>,
    ports: Vec<(u16, u16)>,
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Forwarder {
    /// Listens on each node port of `ports` (node port, pod port), on all IPv4 and IPv6 addresses. All or none are opened.
    /// The node port 0 means any free one: [`Self::ports`] tells which.
    pub fn open(
        ports: &[(u16, u16)],
        pod: Ipv4Addr,
        connections: &Arc<Semaphore>,
    ) -> Result<Self, ForwardError> {
        let mut listeners = Vec::new();
        let mut opened = Vec::new();
        for &(port, inside) in ports {
            let listener = listen(port)?;
            let address = listener
                .local_addr()
                .map_err(|source| ForwardError::Listen { port, source })?;
            opened.push((address.port(), inside));
            listeners.push((listener, SocketAddr::from((pod, inside))));
        }
        let task = |(listener, target)| tokio::spawn(accept(listener, target, connections.clone()));
        Ok(Self {
            tasks: listeners.into_iter().map(task).collect(),
            ports: opened,
        })
    }

    /// What is open: node port, pod port.
    pub fn ports(&self) -> &[(u16, u16)] {
        &self.ports
    }
}

fn listen(port: u16) -> Result<TcpListener, ForwardError> {
    let open = |socket: io::Result<TcpSocket>, address: SocketAddr| {
        let socket = socket?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(QUEUE)
    };
    // An IPv6 socket takes IPv4 as well (net.ipv6.bindv6only is 0); the second is for kernels without IPv6.
    match open(TcpSocket::new_v6(), (Ipv6Addr::UNSPECIFIED, port).into()) {
        Ok(listener) => Ok(listener),
        Err(err) if err.kind() == io::ErrorKind::AddrInUse => Err(ForwardError::Taken { port }),
        Err(_) => match open(TcpSocket::new_v4(), (Ipv4Addr::UNSPECIFIED, port).into()) {
            Ok(listener) => Ok(listener),
            Err(err) if err.kind() == io::ErrorKind::AddrInUse => Err(ForwardError::Taken { port }),
            Err(source) => Err(ForwardError::Listen { port, source }),
        },
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, connections: Arc<Semaphore>) {
    // Owned here, so that aborting this task ends them.
    let mut open = JoinSet::new();
    loop {
        while open.try_join_next().is_some() {}
        let Ok(permit) = connections.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((client, _)) => {
                open.spawn(async move {
                    carry(client, target).await;
                    drop(permit);
                });
            }
            // Out of descriptors, or the client is gone already: neither ends the service.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn carry(mut client: TcpStream, target: SocketAddr) {
    let Ok(Ok(mut pod)) = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(target)).await else {
        return;
    };
    let _ = client.set_nodelay(true);
    let _ = pod.set_nodelay(true);
    let _ = copy_bidirectional(&mut client, &mut pod).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
            .port()
    }

    /// Answers with the number of bytes it got before the client closed its side.
    async fn counting_server() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut all = Vec::new();
                    stream.read_to_end(&mut all).await.unwrap();
                    stream.write_all(all.len().to_string().as_bytes()).await.unwrap();
                });
            }
        });
        port
    }

    async fn ask(port: u16, host: &str, bytes: usize) -> String {
        let mut stream = TcpStream::connect((host, port)).await.unwrap();
        stream.write_all(&vec![7; bytes]).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_half_closed_connection_still_gets_its_answer() {
        let (inside, port) = (counting_server().await, free_port().await);
        let all = Arc::new(Semaphore::new(CONNECTIONS_MOST));
        let _forwarder = Forwarder::open(&[(port, inside)], Ipv4Addr::LOCALHOST, &all).unwrap();
        assert_eq!(ask(port, "127.0.0.1", 300_000).await, "300000");
    }

    #[tokio::test]
    async fn node_port_zero_is_any_free_port_and_is_told() {
        let inside = counting_server().await;
        let all = Arc::new(Semaphore::new(CONNECTIONS_MOST));
        let first = Forwarder::open(&[(0, inside)], Ipv4Addr::LOCALHOST, &all).unwrap();
        let second = Forwarder::open(&[(0, inside)], Ipv4Addr::LOCALHOST, &all).unwrap();
        let (one, two) = (first.ports()[0].0, second.ports()[0].0);
        assert!(one != 0 && two != 0 && one != two);
        assert_eq!(ask(two, "127.0.0.1", 10).await, "10");
    }

    #[tokio::test]
    async fn a_taken_port_is_told_apart_and_freed_by_dropping() {
        let (inside, port) = (counting_server().await, free_port().await);
        let all = Arc::new(Semaphore::new(CONNECTIONS_MOST));
        let first = Forwarder::open(&[(port, inside)], Ipv4Addr::LOCALHOST, &all).unwrap();
        let second = Forwarder::open(&[(port, inside)], Ipv4Addr::LOCALHOST, &all);
        assert!(matches!(second, Err(ForwardError::Taken { port: taken }) if taken == port));
        drop(first);
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if Forwarder::open(&[(port, inside)], Ipv4Addr::LOCALHOST, &all).is_ok() {
                return;
            }
        }
        panic!("the port was not freed");
    }

    #[tokio::test]
    async fn connections_beyond_the_bound_wait_for_a_free_place() {
        let (inside, port) = (counting_server().await, free_port().await);
        let all = Arc::new(Semaphore::new(1));
        let _forwarder = Forwarder::open(&[(port, inside)], Ipv4Addr::LOCALHOST, &all).unwrap();
        let mut first = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        first.write_all(b"x").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let waiting = ask(port, "127.0.0.1", 2);
        tokio::pin!(waiting);
        assert!(
            tokio::time::timeout(Duration::from_millis(200), &mut waiting)
                .await
                .is_err()
        );
        drop(first);
        assert_eq!(waiting.await, "2");
    }
}
