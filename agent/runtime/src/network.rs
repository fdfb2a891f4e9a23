//! A pod's link to its node: a veth pair without an address on the node's side, a /32 route there, a default route in the pod.
//!
//! There is no bridge, no forwarding and no packet filter: pods reach the node's side and the node reaches them, nothing else
//! does. Invariant: each operation runs on a thread of its own, which alone enters the pod's network namespace; the agent's
//! threads never leave theirs.

use crate::address::GATEWAY;
use futures::TryStreamExt;
use nix::sched::{CloneFlags, setns};
use rtnetlink::packet_route::address::AddressScope;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoVeth, LinkAttribute,
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::fs::File;
use std::future::Future;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Name of the link inside of the pod.
const INSIDE: &str = "eth0";
/// The kernel answers at once; a netlink socket that does not is broken.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why a pod was not linked.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The pod's namespace cannot be opened or entered.
    #[error("failed to enter the network namespace of process {pid}")]
    Namespace {
        /// The shim.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a change.
    #[error("failed to {what}")]
    Netlink {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: rtnetlink::Error,
    },
    /// A netlink socket or the thread for it could not be made.
    #[error("failed to {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A link that was just made is not there.
    #[error("the link `{0}` is not there")]
    NoLink(String),
}

/// Name of a pod's link on the node's side: at most 15 characters (IFNAMSIZ), from the random part of the ULID.
pub fn link_name(pod_id: &str) -> String {
    let tail: String = pod_id
        .chars()
        .rev()
        .take(13)
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .collect();
    format!("bm{}", tail.to_ascii_lowercase())
}

/// Links the pod whose shim is `shim_pid` and gives it `ip`. Blocks for some milliseconds.
pub fn attach(pod_id: &str, shim_pid: i32, ip: Ipv4Addr) -> Result<(), NetworkError> {
    let name = link_name(pod_id);
    let path = format!("/proc/{shim_pid}/ns/net");
    let namespace = File::open(path).map_err(|source| NetworkError::Namespace {
        pid: shim_pid,
        source,
    })?;
    let pod = namespace.try_clone().map_err(|source| NetworkError::Namespace {
        pid: shim_pid,
        source,
    })?;
    on_thread(None, move |handle| node_side(handle, name, namespace, ip))?;
    on_thread(Some((shim_pid, pod)), move |handle| pod_side(handle, ip))
}

/// Takes the pod's link away; it is gone already where the pod's namespace is.
pub fn detach(pod_id: &str) -> Result<(), NetworkError> {
    let name = link_name(pod_id);
    on_thread(None, move |handle| async move {
        match link_index(&handle, &name).await {
            Ok(index) => match handle.link().del(index).execute().await {
                Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -nix::libc::ENODEV => {
                    Ok(())
                }
                other => other.map_err(|source| NetworkError::Netlink {
                    what: "delete the pod's link",
                    source,
                }),
            },
            Err(NetworkError::NoLink(_)) => Ok(()),
            Err(err) => Err(err),
        }
    })
}

/// Runs `work` with a netlink connection on a new thread, in the namespace given.
fn on_thread<W, F>(namespace: Option<(i32, File)>, work: W) -> Result<(), NetworkError>
where
    W: FnOnce(Handle) -> F + Send + 'static,
    F: Future<Output = Result<(), NetworkError>>,
{
    let run = move || {
        if let Some((pid, namespace)) = namespace {
            setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| NetworkError::Namespace {
                pid,
                source: errno.into(),
            })?;
        }
        let io = |what| move |source| NetworkError::Io { what, source };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(io("start a thread for netlink"))?;
        runtime.block_on(async move {
            let (connection, handle, _) = rtnetlink::new_connection().map_err(io("open a netlink socket"))?;
            tokio::spawn(connection);
            tokio::time::timeout(TIMEOUT, work(handle))
                .await
                .unwrap_or_else(|_| {
                    let source = io::Error::new(io::ErrorKind::TimedOut, "the kernel did not answer");
                    Err(NetworkError::Io {
                        what: "talk to the kernel",
                        source,
                    })
                })
        })
    };
    let ended = || io::Error::other("the thread ended unexpectedly");
    std::thread::spawn(run).join().unwrap_or_else(|_| {
        Err(NetworkError::Io {
            what: "talk to the kernel",
            source: ended(),
        })
    })
}

fn refused(what: &'static str) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    move |source| NetworkError::Netlink { what, source }
}

async fn link_index(handle: &Handle, name: &str) -> Result<u32, NetworkError> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await {
        Ok(Some(link)) => Ok(link.header.index),
        Ok(None) => Err(NetworkError::NoLink(name.into())),
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -nix::libc::ENODEV => {
            Err(NetworkError::NoLink(name.into()))
        }
        Err(source) => Err(NetworkError::Netlink {
            what: "look for a link",
            source,
        }),
    }
}

async fn up(handle: &Handle, index: u32) -> Result<(), NetworkError> {
    handle
        .link()
        .set(LinkUnspec::new_with_index(index).up().build())
        .execute()
        .await
        .map_err(refused("switch a link on"))
}

async fn node_side(handle: Handle, name: String, namespace: File, ip: Ipv4Addr) -> Result<(), NetworkError> {
    // The peer is made in the pod's namespace at once: no name of ours can clash with one on the node.
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(INSIDE)
        .setns_by_fd(namespace.as_raw_fd())
        .build();
    let pair = LinkVeth::new(&name, INSIDE)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    handle
        .link()
        .add(pair)
        .execute()
        .await
        .map_err(refused("make the pod's link"))?;
    let index = link_index(&handle, &name).await?;
    keep_gateway(&handle).await?;
    keep_without_ipv6(&handle, index).await;
    up(&handle, index).await?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(ip, 32)
        .output_interface(index)
        .pref_source(GATEWAY)
        .scope(rtnetlink::packet_route::route::RouteScope::Link)
        .build();
    handle
        .route()
        .add(route)
        .execute()
        .await
        .map_err(refused("set the route to the pod"))
}

/// The node's address for its pods: one for all of them, on the loopback link. An address on each pod's link would be one more
/// that the fabric listens on and looks for members at, in the pod's sight and while the pod starts.
async fn keep_gateway(handle: &Handle) -> Result<(), NetworkError> {
    let loopback = link_index(handle, "lo").await?;
    let mut add = handle.address().add(loopback, GATEWAY.into(), 32);
    // Nobody but a pod is to see it as the source of a packet.
    add.message_mut().header.scope = AddressScope::Link;
    match add.execute().await {
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -nix::libc::EEXIST => Ok(()),
        other => other.map_err(refused("give the node its address for pods")),
    }
}

/// No link-local address for the node's side of a link, for the same reason. A kernel without IPv6 refuses, and gives none.
async fn keep_without_ipv6(handle: &Handle, index: u32) {
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let none = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]);
    let link = LinkUnspec::new_with_index(index)
        .append_extra_attribute(none)
        .build();
    if let Err(error) = handle.link().set(link).execute().await {
        tracing::debug!(%error, "a pod's link keeps its IPv6 address on the node's side");
    }
}

async fn pod_side(handle: Handle, ip: Ipv4Addr) -> Result<(), NetworkError> {
    let loopback = link_index(&handle, "lo").await?;
    up(&handle, loopback).await?;
    let index = link_index(&handle, INSIDE).await?;
    handle
        .address()
        .add(index, ip.into(), 32)
        .execute()
        .await
        .map_err(refused("give the pod its address"))?;
    up(&handle, index).await?;
    let gateway = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(GATEWAY, 32)
        .output_interface(index)
        .scope(rtnetlink::packet_route::route::RouteScope::Link)
        .build();
    handle
        .route()
        .add(gateway)
        .execute()
        .await
        .map_err(refused("set the pod's route to the node"))?;
    let default = RouteMessageBuilder::<Ipv4Addr>::new()
        .gateway(GATEWAY)
        .output_interface(index)
        .build();
    handle
        .route()
        .add(default)
        .execute()
        .await
        .map_err(refused("set the pod's default route"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_fit_and_differ_where_ulids_do() {
        let name = link_name("01ARZ3NDEKTSV4RRFFQ69G5FAV");
        assert_eq!(name, "bm4rrffq69g5fav");
        assert!(name.len() <= 15);
        assert_ne!(name, link_name("01ARZ3NDEKTSV4RRFFQ69G5FAW"));
    }
}
